"""Tasks: what may pass is tried again, each time after twice the pause, and nothing else is."""

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import task
from prefect.states import Completed, Crashed, Failed

from flows.orchestration.runner import retried, task_runner
from schemas.config import Execution
from tasks.engines.protocol import EngineAwayError, EngineError
from tasks.inputs.errors import InputError
from tasks.store.outages import StoreAwayError
from tasks.store.store import StoreError


@task(name="work")
def work(x: int) -> int:
    return x


def worth_it(data: object, make: Any = Failed) -> bool:
    tried = retried(work, Execution())
    assert tried.retry_condition_fn is not None
    state: Any = make(data=data)
    run: Any = None
    return bool(tried.retry_condition_fn(tried, run, state))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), StoreAwayError("x"), EngineAwayError("x")])
def test_what_may_pass_is_tried_again(error: BaseException) -> None:
    assert worth_it(error) and worth_it(error, Crashed)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("x"),
        PermissionError("x"),
        EngineError("x"),
        StoreError("x"),
        InputError("f", "x"),
        ValueError("x"),
        MemoryError(),
        KeyboardInterrupt(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_nothing_else_is(error: BaseException) -> None:
    assert not worth_it(error)


@pytest.mark.parametrize("data", [None, "OSError", {"error": "OSError"}])
def test_states_without_an_error_are_not(data: object) -> None:
    assert not worth_it(data) and not worth_it(data, Completed)


@given(st.integers(0, 20), st.floats(0, 86_400))
def test_pauses_double(retries: int, seconds: float) -> None:
    tried = retried(work, Execution(retries=retries, retry_seconds=seconds))
    assert tried.retries == retries and tried.name == work.name
    assert tried.retry_delay_seconds == [seconds * 2**i for i in range(retries)]
    assert work.retries == 0  # the task itself stays as it is


def test_in_this_process_a_task_runs_when_its_end_is_asked_for() -> None:
    calls: list[tuple[dict[str, Any], bool]] = []

    def fake(*, return_state: bool, **parameters: Any) -> str:
        calls.append((parameters, return_state))
        return "state"

    with task_runner(Execution()) as start:
        given: Any = fake
        first, second = start(given, {"x": 1}), start(given, {"x": 2})
        assert calls == []
        state: Any = second()
        assert state == "state" and calls == [({"x": 2}, True)]
        first()
    assert [parameters for parameters, _ in calls] == [{"x": 2}, {"x": 1}]
