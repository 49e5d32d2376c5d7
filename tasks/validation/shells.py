"""The shell around trainings: find the missing ones, make them in processes of their own, commit them."""

import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.logging import get_run_logger
from prefect.states import Completed

from schemas.arrays import Arrays
from schemas.config import RunConfig
from tasks.operations.errors import patiently
from tasks.operations.progress import publish
from tasks.operations.user_code import check_code
from tasks.operations.workers import in_processes
from tasks.run.shells import TaskSummary
from tasks.store.credentials import use_block
from tasks.store.keys import Recipe
from tasks.store.leases import LeaseManager
from tasks.store.store import OBJECT, Store
from tasks.validation.session import VERSION, read_material
from tasks.validation.trainer import Trainer
from tasks.validation.trainings import Training

_Item = tuple[str, Training, str, dict[str, Any]]
_WAIT = 1.0
"""Seconds before a training that another process is making is looked at again."""
LABEL = "training steps"
STAGE, STATES = "trainings", "training_states"


class StoredState:
    """A `tasks.validation.trainer.Keeper` on a store."""

    def __init__(self, store: Store, key: str, seconds: float) -> None:
        self._store, self._key, self._seconds = store, key, seconds
        self._saved = time.monotonic()

    def load(self) -> Arrays | None:
        """See the protocol."""
        artefact = self._store.load(STATES, self._key)
        return None if artefact is None else artefact.arrays

    def due(self) -> bool:
        """See the protocol."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, arrays: Arrays) -> None:
        """See the protocol."""
        self._store.commit(STATES, self._key, arrays, {"version": VERSION})
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Forget the state."""
        self._store.remove(STATES, self._key, OBJECT)


@lru_cache(maxsize=1)
def _trainer(configuration: str) -> Trainer:
    """The trainer of a process, with its share of the cores."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = RunConfig.model_validate_json(configuration)
    check_code(config)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.validation.workers))
    return Trainer(*read_material(config))


def train(configuration: str, training: Training, key: str, meta: dict[str, Any]) -> int | None:
    """Make one training; returns decoded tokens, 0 where it is there, and None where another process is making it."""
    config, started = RunConfig.model_validate_json(configuration), time.monotonic()
    execution = config.execution
    if execution.storage_block is not None:
        use_block(execution.storage_block)
    store = Store(config.store)
    with LeaseManager(store, execution.lease).acquire(key) as acquired:
        if not acquired:
            time.sleep(_WAIT)
            return None
        if store.has(STAGE, key):
            publish(LABEL, config.validation.steps if training.signal is not None else 0)
            return 0
        kept = StoredState(store, key, execution.round_seconds)
        arrays = _trainer(configuration).run(training, kept, lambda n, tokens: publish(LABEL, n, tokens=tokens))
        meta |= {"seconds": round(time.monotonic() - started, 3), "decoded_tokens": int(arrays["decoded"][-1])}
        patiently(lambda: store.commit(STAGE, key, arrays, meta), execution.retries, execution.retry_seconds)
        kept.clear()
    return int(arrays["decoded"][-1])


@task(name="train", cache_policy=NO_CACHE, persist_result=False, task_run_name="{label}")
def train_task(label: str, config: RunConfig, wanted: list[tuple[Training, Recipe]]) -> Any:
    """Some trainings of a student. `Cached` if all of them were in the store, verified."""
    started, summary, logger = time.monotonic(), TaskSummary(), get_run_logger()
    limit, validation, store = config.execution.gpu_limit, config.validation, Store(config.store)
    missing = [(training, recipe) for training, recipe in wanted if not store.has(STAGE, recipe.key)]
    summary.cached = len(wanted) - len(missing)
    there = {training for training, _ in wanted} - {training for training, _ in missing}
    publish(LABEL, validation.steps * sum(training.signal is not None for training in there))
    if not missing:
        return Completed(name="Cached", message=f"{summary.cached} trainings in the store", data=summary)
    configuration = config.model_dump_json()
    items: list[_Item] = [(configuration, training, recipe.key, asdict(recipe)) for training, recipe in missing]
    left = list(items)

    def ready() -> list[_Item]:
        given, left[:] = list(left), []
        return given

    with concurrency(limit, strict=True) if limit is not None else nullcontext():
        for item, decoded in in_processes(train, ready, min(validation.workers, len(items))):
            if decoded is None:
                left.append(item)  # comes last, as others can be made meanwhile
                continue
            summary.made += decoded > 0
            summary.cached += decoded == 0
            summary.decoded_tokens += decoded
    summary.seconds = time.monotonic() - started
    logger.info("%s: %d made, %d in the store, %.1f s", label, summary.made, summary.cached, summary.seconds)
    return summary
