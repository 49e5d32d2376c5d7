"""Child processes of a command: each has a log, and none outlives it for long."""

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


@contextmanager
def child(
    home: Path, name: str, command: list[str], environment: dict[str, str]
) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """A process with a log in a folder, in a session of its own: Ctrl-C reaches only the command."""
    log, record = home / f"{name}.log", home / f"{name}.process.json"
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - this project's own command line
            command, env={**os.environ, **environment}, stdout=file, stderr=file, start_new_session=True
        )
    started = psutil.Process(process.pid).create_time()
    record.write_text(json.dumps({"parent": this_process(), "child": [process.pid, started]}))
    try:
        yield process, log
    finally:
        _end(psutil.Process(process.pid))
        process.wait()
        record.unlink(missing_ok=True)


def end_orphans(home: Path) -> list[str]:
    """End children whose command was killed; returns their names."""
    ended = []
    for record in sorted(home.glob("*.process.json")):
        found = json.loads(record.read_text())
        if not is_gone(*found["parent"]):
            continue
        if not is_gone(*found["child"]):
            _end(psutil.Process(found["child"][0]))
            ended.append(record.name.removesuffix(".process.json"))
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
