"""The name of a run, and its outputs, kept for one process at a time; what the store's clean-up is told of it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from prefect.logging import get_run_logger

from schemas.config import RunConfig
from tasks.inputs.questions import InputError
from tasks.outputs.files import read_json
from tasks.run.session import RunSession, open_session
from tasks.store.keys import digest
from tasks.store.references import pin, pin_also

WAIT_SECONDS = 0.2
"""Seconds between two looks at a name that is in use."""


@contextmanager
def named(config: RunConfig, flow: str, stages: Sequence[str]) -> Iterator[None]:
    """Keep the run's name for the time of a block, so that another configuration's run does not mix with it.

    Runs that need the same of the store share a name.

    Raises:
        InputError: another configuration's run of this name is at work.
    """
    session = open_session(config)
    need = digest(session.keys.references(stages))
    lease = digest(["run", flow, config.name])
    seen: set[str] = set()
    while True:
        with ExitStack() as held:
            if session.with_retries(lambda: held.enter_context(session.leases.acquire(lease, need))):
                yield
                return
        others = {r.name for r in session.leases.rivals(lease) if r.alive and not r.expired and r.subject != need}
        if others & seen:  # not one that has only come and looked
            raise InputError(
                "name",
                f"a run named {config.name!r} with another configuration is at work on {config.store!r}; "
                "wait for its end, or give this one another name (--name)",
            )
        seen = others
        time.sleep(WAIT_SECONDS)


@contextmanager
def writing(session: RunSession) -> Iterator[None]:
    """Write the outputs of a run's name for the time of a block, after any other that writes them."""

    def log_waiting() -> None:
        get_run_logger().info("another run named %r writes its outputs: waiting for it", session.config.name)

    lease = digest(["outputs", session.config.name])
    with ExitStack() as held:
        session.with_retries(lambda: held.enter_context(session.leases.wait(lease, log_waiting)))
        yield


def write_references(session: RunSession, flow: str, stages: Sequence[str]) -> None:
    """Tell the store's clean-up what a run needs, before it has made it."""
    needed = [f"{stage}/{key}" for stage, key in session.keys.references(stages)]
    session.with_retries(lambda: pin(session.store, session.config.name, flow, needed))


def add_references(session: RunSession, flow: str, stages: Sequence[str]) -> None:
    """Tell it again, once questions are left out: what is made of all questions has another key then."""
    needed = [f"{stage}/{key}" for stage, key in session.keys.references(stages)]
    session.with_retries(lambda: pin_also(session.store, session.config.name, flow, needed))


def left_out_before(session: RunSession) -> list[str]:
    """Questions that the last run of this name left out for what their rollouts are, which these still are."""
    if "run.json" not in session.store.names("runs", session.config.name):
        return []
    run = read_json(session.store, session.config.name, "run.json") or {}
    lost = set(run.get("left_out", {})) - set(run.get("failed", []))
    keys = session.keys
    return [i for i in keys.questions if i in lost and session.store.names("rollouts", keys.key("rollouts", i))]
