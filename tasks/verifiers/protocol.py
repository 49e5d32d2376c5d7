"""What every kind of verifier does, and what it is asked."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol


class Attempt(NamedTuple):
    """A completion to be checked; `truncated` says that the length limit ended it."""

    completion: str
    answer: str
    truncated: bool


class VerifierKind(Protocol):
    """One kind of verifier, made from its settings.

    Attributes:
        version: raised whenever its code gives another verdict: rollouts' keys hold it.
        packages: whose versions are in the keys too.
    """

    version: ClassVar[int]
    packages: ClassVar[tuple[str, ...]]

    def check_all(self, attempts: Sequence[Attempt]) -> list[bool]:
        """Verdicts, in order."""
        ...

    def problem(self, answers: Sequence[str]) -> tuple[int, str] | None:
        """The first reference answer that it could never accept, as its index and why; None where all are fine."""
        ...

    def close(self) -> None:
        """End worker processes, if any."""
        ...
