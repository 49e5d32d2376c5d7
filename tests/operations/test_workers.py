"""Work in processes of their own: results, progress, errors, and an end with the process that waits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.operations.progress import capture_progress, publish
from tasks.operations.workers import in_processes
from tests.helpers.places import ROOT


def square(number: int) -> int:
    publish("squares", 1, tokens=number)
    if number < 0:
        raise ValueError(f"{number} is negative")
    time.sleep(number if number > 50 else 0)
    return number**2


def once(*items: Any) -> Any:
    left = [list(items)]
    return lambda: left.pop() if left else []


def test_results_and_progress_come_back() -> None:
    with capture_progress() as events:
        found = dict(in_processes(square, once((1,), (2,), (3,)), 2))
    assert found == {(1,): 1, (2,): 4, (3,): 9}
    assert events["squares"] == (3, 6)


def test_work_that_waits_for_other_work_begins_after_it() -> None:
    done: list[int] = []

    def ready() -> list[tuple[int]]:
        if len(done) == len(asked):
            asked.append(len(done) + 1)
            return [(len(done) + 1,)] if len(done) < 3 else []
        return []

    asked: list[int] = []
    for (number,), _ in in_processes(square, ready, 2):
        done.append(number)
    assert done == [1, 2, 3]


def test_an_error_is_raised_and_the_rest_is_not_waited_for() -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="-1 is negative"):
        list(in_processes(square, once((90,), (-1,), (90,)), 2))
    assert time.monotonic() - started < 60


def test_processes_end_with_one_that_is_killed(tmp_path: Path) -> None:
    code = (
        "from tests.operations.test_workers import once, square\n"
        "from tasks.operations.workers import in_processes\n"
        "if __name__ == '__main__':\n"
        "    list(in_processes(square, once((90,), (90,)), 2))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len([c for c in children if "spawn_main" in " ".join(c.cmdline())]) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
        children = psutil.Process(process.pid).children()
    time.sleep(3)  # they wait for the end of this process only once they have begun
    process.send_signal(signal.SIGKILL)
    process.wait()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert len(gone) >= 2 and not alive
