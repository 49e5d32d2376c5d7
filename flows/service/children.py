"""Child processes of a command: each has a log, and what a killed command left is ended by the next one."""

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
"""Seconds that a child may take to end."""
_RECORD = ".process.json"

_Process = tuple[Annotated[int, Field(gt=0, lt=2**31)], float]
"""Number and start, as of `tasks.operations.processes`."""


class _Record(BaseModel, strict=True):
    """A process that a command has started."""

    name: str
    parent: _Process
    child: _Process


@contextmanager
def child(
    home: Path, name: str, command: list[str], environment: dict[str, str]
) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """A process with a log in a folder, in a session of its own: Ctrl-C reaches only the command."""
    log = home / f"{name}.log"
    with ExitStack() as stack:
        with signals_held(), log.open("wb") as file:
            process = start(command, environment, file)
            stack.callback(_end_recorded, process, psutil.Process(process.pid), record(home, name, process))
        yield process, log


def start(command: list[str], environment: dict[str, str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start a process in a session of its own."""
    return subprocess.Popen(  # noqa: S603 - this project's own command line
        command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
    )


def record(home: Path, name: str, process: "subprocess.Popen[bytes]") -> Path:
    """Note that this command has started a process, for `end_orphans`; returns the note's place."""
    place = home / f"{name}-{os.getpid()}{_RECORD}"
    begun = psutil.Process(process.pid).create_time()
    noted = _Record(name=name, parent=this_process(), child=(process.pid, begun))
    place.write_text(noted.model_dump_json())
    return place


def _end_recorded(process: "subprocess.Popen[bytes]", found: psutil.Process, place: Path) -> None:
    with signals_held():
        _end(found)
        process.wait()
        place.unlink(missing_ok=True)


def end_orphans(home: Path, name: str = "*") -> list[str]:
    """End children whose command was killed, those that were started last first; returns their names.

    Args:
        name: of the children; of any by default.
    """
    ended = []
    places = [place for place in home.glob(f"{name}-*{_RECORD}") if place.is_file()]
    for place in sorted(places, key=_written, reverse=True):
        try:
            found = _Record.model_validate_json(place.read_bytes())
        except FileNotFoundError:  # its own command has ended the process
            continue
        except ValidationError:  # the command was killed while it wrote it, or it is somebody else's file
            place.unlink(missing_ok=True)
            continue
        if not is_gone(*found.parent):
            continue
        if not is_gone(*found.child):
            with suppress(psutil.NoSuchProcess):
                _end(psutil.Process(found.child[0]))
            ended.append(found.name)
        place.unlink(missing_ok=True)
    return ended


def _written(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except FileNotFoundError:  # since it was listed
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
