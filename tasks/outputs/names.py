"""Exclusive use of a run's name and outputs by one process at a time; references for the store's clean-up."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from prefect.logging import get_run_logger

from schemas.config import RunConfig
from tasks.inputs.errors import InputError
from tasks.operations.errors import patiently
from tasks.outputs.files import read_json
from tasks.run.session import RunSession, open_session
from tasks.store.keys import digest
from tasks.store.leases import LeaseManager
from tasks.store.references import pin, pin_also

WAIT_SECONDS = 0.2
"""Seconds between two checks of a name that is in use."""


@contextmanager
def named(config: RunConfig, flow: str, stages: Sequence[str]) -> Iterator[None]:
    """Hold the run's name for a block, so that a run with another configuration does not mix with it.

    Runs that need the same artefacts share a name.

    Raises:
        InputError: a run of this name with another configuration is active.
    """
    session = open_session(config)
    need = digest(session.keys.references(stages))
    with holding(config, flow, need, session.leases):
        yield


def name_lease(flow: str, run: str) -> str:
    """The name of the lease that a flow holds on a run's name."""
    return digest(["run", flow, run])


@contextmanager
def holding(config: RunConfig, flow: str, need: str, leases: LeaseManager) -> Iterator[None]:
    """Hold the run's name for a flow that needs the artefacts with this digest.

    Raises:
        InputError: a run of this name with another configuration is active.
    """
    lease, execution = name_lease(flow, config.name), config.execution
    seen: set[str] = set()
    while True:
        with ExitStack() as held:

            def acquire(held: ExitStack = held) -> bool:
                return held.enter_context(leases.acquire(lease, need))

            if patiently(acquire, execution.retries, execution.retry_seconds):
                yield
                return
        others = {r.name for r in leases.rivals(lease) if r.alive and not r.expired and r.subject != need}
        if others & seen:  # not one that has only come and looked
            raise InputError(
                "name",
                f"a run named {config.name!r} with another configuration is using {config.store!r}; "
                "wait for its end, or give this one another name (--name)",
            )
        seen = others
        time.sleep(WAIT_SECONDS)


@contextmanager
def writing(session: RunSession) -> Iterator[None]:
    """Hold the outputs of a run's name for a block, once no other process writes them."""

    def log_waiting() -> None:
        get_run_logger().info("another run named %r writes its outputs: waiting for it", session.config.name)

    lease = digest(["outputs", session.config.name])
    with ExitStack() as held:
        session.with_retries(lambda: held.enter_context(session.leases.wait(lease, log_waiting)))
        yield


def write_references(session: RunSession, flow: str, stages: Sequence[str]) -> None:
    """Record for the store's clean-up what a run needs, before the run makes it."""
    needed = [f"{stage}/{key}" for stage, key in session.keys.references(stages)]
    session.with_retries(lambda: pin(session.store, session.config.name, flow, needed))


def add_references(session: RunSession, flow: str, stages: Sequence[str]) -> None:
    """Record it again once questions are left out: artefacts of all questions then have another key."""
    needed = [f"{stage}/{key}" for stage, key in session.keys.references(stages)]
    session.with_retries(lambda: pin_also(session.store, session.config.name, flow, needed))


def left_out_before(session: RunSession) -> list[str]:
    """Questions that the last run of this name left out because of their rollouts, which are unchanged."""
    if "run.json" not in session.store.names("runs", session.config.name):
        return []
    run = read_json(session.store, session.config.name, "run.json") or {}
    excluded = set(run.get("left_out", {})) - set(run.get("failed", []))
    keys = session.keys
    return [i for i in keys.questions if i in excluded and session.store.names("rollouts", keys.key("rollouts", i))]
