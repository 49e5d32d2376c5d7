"""Faults, and the command line with one put in as a process of its own.

    python -m tests.helpers.faults FAULT ARGUMENTS...

FAULT is `trees:ID` or another stage's (that stage of question ID raises an error), `disk:N` (from the twentieth write
on, N writes find no space),
`meet:FOLDER` (with its first work in hand, waits until another process has some too), or `none`.
"""

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.command.environment import prepare

prepare()  # as the command line does, before anything imports Prefect

import tasks.run.shells  # noqa: E402
from flows.cli import app  # noqa: E402
from schemas.pipeline import PIPELINE, Stage  # noqa: E402
from tasks.stages.protocol import Work  # noqa: E402
from tasks.store.store import Store  # noqa: E402

Patch = Callable[[object, str, object], None]


def failing_question(wanted: str, question: str, patch: Patch) -> None:
    make: Callable[..., Any] = vars(tasks.run.shells)["compute"]

    def broken(stage: Stage, work: Work) -> Any:
        if stage.name == wanted and work.question == question:
            raise ValueError(f"no {stage.name} for {question}")
        return make(stage, work)

    patch(tasks.run.shells, "compute", broken)


def full_disk(writes: int, patch: Patch) -> None:
    put, seen = Store.put_bytes, 0

    def refusing(self: Store, data: bytes, *parts: str) -> None:
        nonlocal seen
        seen += 1
        if 20 <= seen < 20 + writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, data, *parts)

    patch(Store, "put_bytes", refusing)


def meeting(folder: Path, patch: Patch) -> None:
    commit: Callable[..., Any] = vars(tasks.run.shells)["_commit"]

    def meet(*args: Any) -> Any:
        folder.mkdir(exist_ok=True)
        (folder / str(os.getpid())).touch()
        while len(list(folder.iterdir())) < 2:
            time.sleep(0.01)
        return commit(*args)

    patch(tasks.run.shells, "_commit", meet)


def put_in(fault: str, patch: Patch = setattr) -> None:
    """Put a fault in; `patch` replaces an attribute."""
    name, _, value = fault.partition(":")
    if name in PIPELINE:
        failing_question(name, value, patch)
    elif name == "disk":
        full_disk(int(value), patch)
    elif name == "meet":
        meeting(Path(value), patch)


if __name__ == "__main__":
    put_in(sys.argv[1])
    app(sys.argv[2:])
