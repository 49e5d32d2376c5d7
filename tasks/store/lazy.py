"""Lazily read artefacts, cached for one question at a time: memory does not grow with the number of questions."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from schemas.arrays import AnyArray
from tasks.store.store import Store


class Loaded(Mapping[str, AnyArray]):
    """Arrays of an artefact, read on access."""

    def __init__(self, read: Callable[[], Mapping[str, AnyArray]]) -> None:
        """Read nothing yet; caching is up to `read`."""
        self._read = read

    def __getitem__(self, name: str) -> AnyArray:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


class OneQuestion:
    """Reads artefacts, and caches those of the most recently accessed question."""

    def __init__(self, store: Store) -> None:
        """Start with an empty cache."""
        self._store = store
        self._question = ""
        self._cache: dict[tuple[str, str], Mapping[str, AnyArray]] = {}

    def loaded(self, question: str, stage: str, key: str) -> Loaded:
        """An artefact of a question.

        Raises:
            StoreError: on access, if it is missing.
        """
        return Loaded(partial(self._read, question, stage, key))

    def _read(self, question: str, stage: str, key: str) -> Mapping[str, AnyArray]:
        if question != self._question:
            self._question, self._cache = question, {}
        if (stage, key) not in self._cache:
            self._cache[stage, key] = self._store.need(stage, key).arrays
        return self._cache[stage, key]
