"""What kind a failure is, and how often and how long it is waited for."""

import errno
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.engines.protocol import EngineAwayError, EngineError
from tasks.inputs.errors import InputError
from tasks.inputs.files import NotAFileError
from tasks.operations.errors import is_fatal, is_transient, patiently
from tasks.operations.implementations import implementation
from tasks.operations.processes import is_gone, this_process
from tasks.store.outages import StoreAwayError
from tasks.store.store import StoreError

PASSING = [
    OSError(errno.ENOSPC, "No space left on device"),
    StoreAwayError("away"),
    EngineAwayError("away"),
    ConnectionResetError(),
    TimeoutError(),
]
LASTING = [
    FileNotFoundError("x"),
    PermissionError("x"),
    IsADirectoryError("x"),
    NotADirectoryError("x"),
    FileExistsError("x"),
    NotAFileError("x"),
    EngineError("x"),
    InputError("field", "x"),
    StoreError("x"),
    MemoryError(),
]
OWN = [ValueError("x"), KeyError("x"), ZeroDivisionError(), AssertionError(), RuntimeError("x"), RecursionError()]


def of(error: BaseException) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", PASSING, ids=of)
def test_what_may_pass_is_of_the_whole_run(error: BaseException) -> None:
    assert is_transient(error) and is_fatal(error)


@pytest.mark.parametrize("error", LASTING, ids=of)
def test_what_waiting_does_not_change(error: BaseException) -> None:
    assert not is_transient(error) and is_fatal(error)


@pytest.mark.parametrize("error", OWN, ids=of)
def test_what_is_a_questions_own(error: BaseException) -> None:
    assert not is_transient(error) and not is_fatal(error)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    out: list[float] = []
    monkeypatch.setattr("tasks.operations.errors.time.sleep", out.append)
    return out


def failing(times: int, error: BaseException) -> Callable[[], int]:
    calls = 0

    def action() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error
        return calls

    return action


@pytest.mark.parametrize("error", PASSING, ids=of)
def test_what_passes_is_tried_again_after_longer_and_longer(error: BaseException, waited: list[float]) -> None:
    assert patiently(failing(3, error), 3, 1.5) == 4
    assert waited == [1.5, 3.0, 6.0]


@pytest.mark.parametrize("error", PASSING, ids=of)
def test_what_does_not_pass_is_raised_at_last(error: BaseException, waited: list[float]) -> None:
    with pytest.raises(type(error)):
        patiently(failing(3, error), 2, 1.0)
    assert waited == [1.0, 2.0]


@pytest.mark.parametrize("error", [*LASTING, *OWN], ids=of)
def test_other_errors_are_raised_at_once(error: BaseException, waited: list[float]) -> None:
    with pytest.raises(type(error)):
        patiently(failing(1, error), 5, 1.0)
    assert waited == []


def test_a_success_waits_for_nothing_and_no_retries_are_one_try(waited: list[float]) -> None:
    assert patiently(failing(0, OSError()), 3, 1.0) == 1
    with pytest.raises(OSError, match="away"):
        patiently(failing(1, StoreAwayError("away")), 0, 1.0)
    assert waited == []


@given(st.integers(0, 6), st.integers(0, 6))
def test_an_action_is_called_once_and_again_for_every_retry(fails: int, retries: int) -> None:
    action = failing(fails, OSError())
    if fails <= retries:
        assert patiently(action, retries, 0.0) == fails + 1
        return
    with pytest.raises(OSError):
        patiently(action, retries, 0.0)
    if fails == retries + 1:
        assert action() == retries + 2


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("tasks.operations.errors:no_such_name", AttributeError),
        ("tasks.operations.errors", AttributeError),
        ("tasks.no_such_module:x", ModuleNotFoundError),
        (":x", ValueError),
    ],
)
def test_a_place_that_names_nothing_is_an_error(place: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        implementation(place)


def test_a_place_names_what_stands_there() -> None:
    assert implementation("tasks.operations.errors:patiently") is patiently


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    number, started = this_process()
    assert not is_gone(number, started) and is_gone(number, started - 1) and is_gone(2**22 + 1, started)
