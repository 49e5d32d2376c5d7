"""Where tasks run: sequentially in this process, or in parallel on Ray's workers."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect import State, Task

from schemas.config import Execution
from tasks.operations.errors import is_transient

Finish = Callable[[], State[Any]]
Start = Callable[[Task[..., Any], dict[str, Any]], Finish]
"""Starts a task with its parameters; returns a function that waits for the task's final state."""


@contextmanager
def task_runner(execution: Execution) -> Iterator[Start]:
    """A function that starts tasks according to the settings; requires a passed `check_execution`."""
    if execution.task_runner == "process":
        yield _run_here
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    if execution.ray_cpus is not None:
        local["num_cpus"] = execution.ray_cpus
    address = execution.ray_address
    init: dict[str, Any] = {"log_to_driver": False, **(local if address is None else {})}
    with RayTaskRunner(address, init) as ray, remote_options(num_gpus=execution.num_gpus):

        def submit(task: Task[..., Any], parameters: dict[str, Any]) -> Finish:
            future = ray.submit(task, parameters)

            def finish() -> State[Any]:
                future.wait()
                state: State[Any] = future.state
                return state

            return finish

        yield submit


def _run_here(task: Task[..., Any], parameters: dict[str, Any]) -> Finish:
    def finish() -> State[Any]:
        state: State[Any] = task(**parameters, return_state=True)
        return state

    return finish


def retried(task: Task[..., Any], execution: Execution) -> Task[..., Any]:
    """A task that is retried after transient errors, with pauses that double each time."""
    pauses = [execution.retry_seconds * 2**i for i in range(execution.retries)]
    return task.with_options(retries=execution.retries, retry_delay_seconds=pauses, retry_condition_fn=_should_retry)


def _should_retry(task: Task[..., Any], run: object, state: State[Any]) -> bool:
    return isinstance(state.data, BaseException) and is_transient(state.data)
