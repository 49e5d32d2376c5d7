"""Child processes of a command: each has a log; children of a killed command are ended by the next one."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated

import psutil
from pydantic import BaseModel, Field, ValidationError

from flows.command.signals import signals_held
from tasks.operations.processes import is_gone, this_process

_STOP = 30.0
"""Seconds that a child may take to terminate."""
_RECORD = ".process.json"

_Process = tuple[Annotated[int, Field(gt=0, lt=2**31)], float]
"""PID and start time, as in `tasks.operations.processes`."""


class _Record(BaseModel, strict=True):
    """A process started by a command."""

    name: str
    parent: _Process
    child: _Process


@contextmanager
def child(
    home: Path, name: str, command: list[str], environment: dict[str, str]
) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """A process with a log in `home`, in its own session, so that Ctrl-C reaches only the command."""
    log = home / f"{name}.log"
    with ExitStack() as stack:
        with signals_held(), log.open("wb") as file:
            process = start(command, environment, file)
            stack.callback(_end_recorded, process, psutil.Process(process.pid), record(home, name, process))
        yield process, log


def start(command: list[str], environment: dict[str, str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start a process in its own session."""
    return subprocess.Popen(  # noqa: S603 - this project's own command line
        command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
    )


def record(home: Path, name: str, process: "subprocess.Popen[bytes]") -> Path:
    """Record that this command has started a process, for `end_orphans`; returns the record's path."""
    path = home / f"{name}-{os.getpid()}{_RECORD}"
    started = psutil.Process(process.pid).create_time()
    content = _Record(name=name, parent=this_process(), child=(process.pid, started))
    path.write_text(content.model_dump_json())
    return path


def _end_recorded(process: "subprocess.Popen[bytes]", running: psutil.Process, path: Path) -> None:
    with signals_held():
        _end(running)
        process.wait()
        path.unlink(missing_ok=True)


def end_orphans(home: Path, name: str = "*") -> list[str]:
    """End children of killed commands, the latest first; returns their names.

    Args:
        name: of the children; any by default.
    """
    ended = []
    paths = [path for path in home.glob(f"{name}-*{_RECORD}") if path.is_file()]
    for path in sorted(paths, key=_modified, reverse=True):
        try:
            recorded = _Record.model_validate_json(path.read_bytes())
        except FileNotFoundError:  # its own command has ended the process
            continue
        except ValidationError:  # the command was killed while writing it, or it is another file
            path.unlink(missing_ok=True)
            continue
        if not is_gone(*recorded.parent):
            continue
        if not is_gone(*recorded.child):
            with suppress(psutil.NoSuchProcess):
                _end(psutil.Process(recorded.child[0]))
            ended.append(recorded.name)
        path.unlink(missing_ok=True)
    return ended


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # deleted since it was listed
        return 0.0


def _end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.terminate()
        try:
            process.wait(_STOP)
        except psutil.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(_STOP)


def last_lines(log: Path, lines: int = 5) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
