"""Reads the artefacts of a run's earlier stages from its store."""

from collections.abc import Iterator

from schemas.arrays import Arrays
from schemas.pipeline import PIPELINE
from schemas.signals import Signal
from tasks.run.keys import RunKeys
from tasks.statistics.streams import stream_seed
from tasks.store.store import Store


class StoredReads:
    """A `tasks.stages.protocol.Reads` on a store."""

    def __init__(self, store: Store, keys: RunKeys) -> None:
        self._store, self._keys = store, keys

    def artefact(self, stage: str, question: str, signal: Signal | None = None) -> Arrays:
        """One artefact.

        Raises:
            StoreError: it is missing.
        """
        return self._store.need(stage, self._keys.key(stage, question, signal)).arrays

    def every(self, stage: str) -> Iterator[Arrays]:
        """Artefacts of all questions, in the order of their keys, in which they enter the keys of later artefacts."""
        keys = sorted(self._keys.key(stage, question) for question in self._keys.questions)
        return (self._store.need(PIPELINE[stage].name, key).arrays for key in keys)

    def seed(self, purpose: str, stage: str, question: str) -> int:
        """64-bit seed of a random stream, derived from an artefact's key."""
        return stream_seed(purpose, self._keys.key(stage, question))
