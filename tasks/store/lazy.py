"""Artefacts that are read when they are looked at, one question's at a time: memory does not grow with questions."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from schemas.arrays import AnyArray
from tasks.store.store import Store


class Loaded(Mapping[str, AnyArray]):
    """Arrays of an artefact, read when they are looked at."""

    def __init__(self, read: Callable[[], Mapping[str, AnyArray]]) -> None:
        """Read nothing yet; `read` keeps what it has read, or not."""
        self._read = read

    def __getitem__(self, name: str) -> AnyArray:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


class OneQuestion:
    """Reads artefacts, and holds those of the question that was looked at last."""

    def __init__(self, store: Store) -> None:
        """Hold nothing yet."""
        self._store = store
        self._question = ""
        self._held: dict[tuple[str, str], Mapping[str, AnyArray]] = {}

    def loaded(self, question: str, stage: str, key: str) -> Loaded:
        """An artefact of a question.

        Raises:
            StoreError: when it is looked at and not there.
        """
        return Loaded(partial(self._read, question, stage, key))

    def _read(self, question: str, stage: str, key: str) -> Mapping[str, AnyArray]:
        if question != self._question:
            self._question, self._held = question, {}
        if (stage, key) not in self._held:
            self._held[stage, key] = self._store.need(stage, key).arrays
        return self._held[stage, key]
