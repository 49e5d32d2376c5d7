"""The interface of every kind of verifier, and what it checks."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol


class Attempt(NamedTuple):
    """A completion to check; `truncated`: the length limit ended it."""

    completion: str
    answer: str
    truncated: bool


class Reading(NamedTuple):
    """What is taken for the answer of a completion, and the index of its first character there."""

    text: str
    start: int


class Judge(Protocol):
    """Decides which completions are correct."""

    def check_all(self, attempts: Sequence[Attempt]) -> list[bool]:
        """One verdict per attempt."""
        ...

    def places(self, attempts: Sequence[Attempt]) -> list[int | None]:
        """Where the answer of each begins; its length where there is none, None where that is not told."""
        ...


class VerifierKind(Protocol):
    """One kind of verifier, made from its settings.

    Attributes:
        version: raised whenever its code gives another verdict; part of the keys of rollouts.
        packages: packages whose versions are in the keys too.
    """

    version: ClassVar[int]
    packages: ClassVar[tuple[str, ...]]

    def check_all(self, attempts: Sequence[Attempt]) -> list[bool]:
        """Verdicts, in order."""
        ...

    def read_all(self, attempts: Sequence[Attempt]) -> list[str | None]:
        """What it takes for the answer of each completion, in order; None where it finds none, or does not tell."""
        ...

    def places(self, attempts: Sequence[Attempt]) -> list[int | None]:
        """Index of the first character of what it reads; the completion's length without any, None if not known."""
        ...

    def problem(self, answers: Sequence[str]) -> tuple[int, str] | None:
        """The first reference answer that it could never accept, as index and reason; None where all are fine."""
        ...

    def close(self) -> None:
        """End worker processes, if any."""
        ...
