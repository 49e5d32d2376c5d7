"""Signals that end a command, and what they leave: no server of Prefect's, however often they are sent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.signals import INTERRUPTED, Ended, ended_by_signals, signals_held
from tests.served import HERE

COMMAND = """
import sys, time
from flows.runs import guarded

def action():
    from prefect import flow
    from flows.own_server import server_of_command

    @flow
    def endless():
        print("started", flush=True)
        while sys.argv[1] == "endless":
            time.sleep(0.05)

    with server_of_command():
        endless()
    return 0

sys.exit(guarded(action))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_ends_a_command_with_its_own_exit_code(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    @ended_by_signals
    def command(raised: bool) -> int:
        try:
            if raised:
                signal.raise_signal(number)
        except KeyboardInterrupt:
            return INTERRUPTED
        return 0

    assert command(True) == 128 + number and command(False) == 0
    assert signal.getsignal(number) is before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        @ended_by_signals
        def command() -> int:
            signal.raise_signal(signal.SIGHUP)
            return 0

        assert command() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_held_signal_acts_after_the_block() -> None:
    done = []

    @ended_by_signals
    def command() -> int:
        with pytest.raises(Ended, match="SIGTERM"), signals_held():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            done.append(True)
        return 0

    assert command() == 0 and done == [True]


class Started:
    """A command with a flow, and Prefect's server that it has started."""

    def __init__(self, home: Path, *command: str, ready: str = "started") -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment |= {"PREFECT_HOME": str(home), "PYTHONPATH": str(HERE)}
        self.process = subprocess.Popen(
            [sys.executable, *(command or ("-c", COMMAND, "endless"))],
            env=environment,
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        assert self.process.stdout is not None
        assert any(line.startswith(ready) for line in self.process.stdout)
        time.sleep(1)
        self.servers = [
            p for p in psutil.Process(self.process.pid).children(recursive=True) if "server" in " ".join(p.cmdline())
        ]

    def left(self) -> list[psutil.Process]:
        return [p for p in self.servers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    before = set(psutil.pids())
    yield tmp_path
    for process in psutil.process_iter():
        if process.pid not in before and "flows.guarded_server" in process.cmdline():
            process.kill()


@pytest.mark.parametrize(
    ("number", "times", "terminal"),
    [
        (signal.SIGINT, 2, True),  # as Ctrl-C in a terminal: it reaches all processes of the command
        (signal.SIGTERM, 1, False),
        *(
            pytest.param(number, times, False, marks=pytest.mark.slow)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            for times in (1, 2, 3)
            if (number, times) != (signal.SIGTERM, 1)
        ),
    ],
)
def test_no_server_is_left(number: signal.Signals, times: int, terminal: bool, home: Path) -> None:
    started = Started(home)
    assert len(started.servers) == 1
    for _ in range(times):
        (os.killpg if terminal else os.kill)(started.process.pid, number)
        time.sleep(0.2)
        if started.process.poll() is not None:
            break
    errors, _ = started.process.communicate(timeout=60)
    assert started.process.returncode == 128 + number, errors
    assert "interrupted; what is done is kept" in errors and "Traceback" not in errors
    assert started.left() == [] and not list(home.glob("*.process.json"))


def test_the_next_command_ends_the_server_of_one_that_was_killed(home: Path) -> None:
    started = Started(home)
    started.process.kill()
    started.process.communicate()
    assert started.left()
    again = Started(home, "-c", COMMAND, "short")
    errors, _ = again.process.communicate(timeout=60)
    assert again.process.returncode == 0, errors
    assert started.left() == again.left() == [] and not list(home.glob("*.process.json"))


def test_ctrl_c_in_a_terminal_ends_a_run_at_once(home: Path, config_file: Path) -> None:
    started = Started(home, "-m", "flows.cli", "run", str(config_file), "--set", "tree.draws=4000", ready="draws")
    assert len(started.servers) == 1
    os.killpg(started.process.pid, signal.SIGINT)
    errors, _ = started.process.communicate(timeout=60)
    assert started.process.returncode == 130 and "what is done is kept" in errors and "Traceback" not in errors
    assert started.left() == []
