"""Child processes of a command: each has a log, and what a killed command left is ended by the next one."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tasks.processes import is_gone, this_process

_STOP = 30.0
"""Seconds that a child may take to end."""
_RECORD = ".process.json"


@contextmanager
def child(
    home: Path, name: str, command: list[str], environment: dict[str, str]
) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """A process with a log in a folder, in a session of its own: Ctrl-C reaches only the command."""
    log, record = home / f"{name}.log", home / f"{name}-{os.getpid()}{_RECORD}"
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - this project's own command line
            command, env={**os.environ, **environment}, stdout=file, stderr=file, start_new_session=True
        )
    found = psutil.Process(process.pid)
    try:
        content = {"name": name, "parent": this_process(), "child": [process.pid, found.create_time()]}
        record.write_text(json.dumps(content))
        yield process, log
    finally:
        _end(found)
        process.wait()
        record.unlink(missing_ok=True)


def end_orphans(home: Path) -> list[str]:
    """End children whose command was killed, those that were started last first; returns their names."""
    ended = []
    for record in sorted(home.glob(f"*{_RECORD}"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            found = json.loads(record.read_text())
        except ValueError:  # the command was killed while it wrote it
            found = None
        if found is not None and not is_gone(*found["parent"]):
            continue
        if found is not None and not is_gone(*found["child"]):
            with suppress(psutil.NoSuchProcess):
                _end(psutil.Process(found["child"][0]))
            ended.append(found["name"])
        record.unlink(missing_ok=True)
    return ended


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
