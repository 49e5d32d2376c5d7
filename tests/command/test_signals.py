"""Signals that end a command, and what they leave: no server of Prefect's, however often they are sent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import psutil
import pytest
from pydantic import BaseModel, model_serializer
from pydantic_core import PydanticSerializationError

from flows.command.configuration import ConfigurationError
from flows.command.guarded import guarded
from flows.command.signals import Ended, ended_by_signals, signals_held
from tests.helpers.places import ROOT

COMMAND = """
import sys, time
from flows.command.guarded import guarded
from flows.command.signals import ended_by_signals

def action():
    from prefect import flow
    from flows.service.own_server import server_of_command

    @flow
    def endless():
        print("started", flush=True)
        while sys.argv[1] == "endless":
            time.sleep(0.05)

    with server_of_command():
        endless()
    return 0

sys.exit(ended_by_signals(lambda: guarded(action)))
"""
AT_IMPORT = """
import signal, sys
from flows.cli import main

def audit(event, given):
    if event == "import" and given[0] == module and not sent:
        sent.append(number)
        signal.raise_signal(number)

module, number, sent = sys.argv.pop(1), int(sys.argv.pop(1)), []
sys.addaudithook(audit)
main()
"""
LINE = "interrupted; completed work is kept, run again to continue\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_ends_a_command_with_its_own_exit_code(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)

    def command(raised: bool) -> int:
        if raised:
            signal.raise_signal(number)
        return 3

    assert ended_by_signals(lambda: command(True)) == 128 + number and ended_by_signals(lambda: command(False)) == 3
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == LINE


def test_a_signal_is_of_the_command_that_received_it() -> None:
    def command() -> int:
        signal.raise_signal(signal.SIGTERM)
        return 3

    assert ended_by_signals(command) == 143
    assert guarded(lambda: 3) == 3


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def command() -> int:
        with signals_held():
            signal.raise_signal(signal.SIGHUP)
        return 0

    def both() -> int:
        with signals_held():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        return 0

    try:
        assert ended_by_signals(command) == 0 and ended_by_signals(both) == 143
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_held_signal_acts_after_the_block() -> None:
    done = []

    def command() -> int:
        with signals_held():
            with signals_held():
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)
                done.append("inner")
            done.append("outer")
        done.append("after")
        return 0

    assert ended_by_signals(command) == 143 and done == ["inner", "outer"]


class Serialized(BaseModel):
    """As Prefect's settings: its serializer is Python that pydantic calls."""

    @model_serializer
    def serialize(self) -> dict[str, int]:
        signal.raise_signal(signal.SIGTERM)
        return {}


def test_an_error_that_a_signal_became_counts_as_interrupted(capfd: pytest.CaptureFixture[str]) -> None:
    became = []

    def action() -> int:
        try:
            Serialized().model_dump_json()
        except PydanticSerializationError as error:
            became.append(error)
            raise ConfigurationError(str(error)) from error
        return 0

    assert ended_by_signals(lambda: guarded(action)) == 143
    assert len(became) == 1 and capfd.readouterr().err == LINE


def test_a_return_after_a_signal_counts_as_interrupted() -> None:
    def command() -> int:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        return 0

    assert ended_by_signals(command) == 143


def test_a_signal_that_somebody_swallowed_comes_again(capfd: pytest.CaptureFixture[str]) -> None:
    class Swallows:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)  # Python prints what a destructor raises, and goes on

    times = []

    def command() -> int:
        Swallows()
        for _ in range(2):
            with suppress(Ended):
                for _ in range(500):
                    time.sleep(0.02)
                times.append("whole")
            times.append("ended")
        return 0

    assert ended_by_signals(command) == 143 and times == ["ended", "ended"]
    assert capfd.readouterr().err == LINE


def test_what_ends_because_of_a_signal_has_its_time() -> None:
    done = []

    def command() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            for _ in range(75):
                time.sleep(0.02)
            with suppress(OSError):
                raise OSError("an error of its own")
            done.append("whole")
        return 0

    assert ended_by_signals(command) == 143 and done == ["whole"]


def test_no_module_is_left_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sends_a_signal.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGTERM)\ntime.sleep(0.5)\nWHOLE = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = []

    def command() -> int:
        module = import_module("sends_a_signal")
        done.append(module.WHOLE)
        for _ in range(500):
            time.sleep(0.02)
        done.append("went on")
        return 0

    assert ended_by_signals(command) == 143 and done == [True]


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("flows.command.run", signal.SIGTERM),
        pytest.param("pydantic", signal.SIGINT, marks=pytest.mark.slow),
        ("prefect", signal.SIGHUP),
        pytest.param("prefect.settings", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("prefect.plugins", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("prefect.context", signal.SIGINT, marks=pytest.mark.slow),
        ("flows.service.own_server", signal.SIGTERM),
    ],
)
def test_a_signal_while_a_command_starts(
    module: str, number: signal.Signals, tmp_path: Path, config_file: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    ended = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, module, str(int(number)), "run", str(config_file)],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (128 + number, LINE)


class Started:
    """A command with a flow, and Prefect's server that it has started."""

    def __init__(self, home: Path, *command: str, ready: str = "started") -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment |= {"PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)}
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
        if process.pid not in before and "flows.service.guarded_server" in process.cmdline():
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
    assert "interrupted; completed work is kept" in errors and "Traceback" not in errors
    assert started.left() == [] and not list(home.glob("*.process.json"))


@pytest.mark.slow
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
    assert started.process.returncode == 130 and "completed work is kept" in errors and "Traceback" not in errors
    assert started.left() == []
