"""The interface of every kind of verifier, and what it checks."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol


class Attempt(NamedTuple):
    """A completion to check; `truncated`: the length limit ended it."""

    completion: str
    answer: str
    truncated: bool


class Judge(Protocol):
    """Decides which completions are correct."""

    @property
    def tells(self) -> bool:
        """Whether it tells what it reads as an answer."""
        ...

    def check_all(self, attempts: Sequence[Attempt]) -> list[bool]:
        """One verdict per attempt."""
        ...

    def read_all(self, attempts: Sequence[Attempt]) -> list[str | None]:
        """What it reads as the answer of each; None where it finds none."""
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

    def problem(self, answers: Sequence[str]) -> tuple[int, str] | None:
        """The first reference answer that it could never accept, as index and reason; None where all are fine."""
        ...

    def close(self) -> None:
        """End worker processes, if any."""
        ...
