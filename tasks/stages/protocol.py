"""What a stage may ask for: the arrays of earlier stages, and whoever samples, scores and tells right from wrong."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from schemas.arrays import AnyArray, Arrays
from schemas.config import RunConfig, Settings
from schemas.pipeline import layout_of
from schemas.signals import Signal, Source
from tasks.engines.protocol import Sampler, Scorer
from tasks.verifiers.protocol import Attempt


class Tokenizer(Protocol):
    """Gives the text of token ids."""

    def batch_decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool = False) -> list[str]:
        """One text for each sequence."""
        ...


class Judge(Protocol):
    """Tells right completions."""

    def check_all(self, attempts: Sequence[Attempt]) -> list[bool]:
        """The verdict on each."""
        ...


class Models(Protocol):
    """The student and its teachers, with all that they are shown; questions go by their ids."""

    @property
    def decoded(self) -> int:
        """Tokens that have been sampled so far."""
        ...

    @property
    def sampler(self) -> Sampler:
        """The student, for draws."""
        ...

    @property
    def student(self) -> Scorer:
        """The student, for its distributions."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The student's."""
        ...

    @property
    def verifier(self) -> Judge:
        """The verifier of the run."""
        ...

    def prompt(self, question: str) -> Sequence[int]:
        """The student's prompt, token ids."""
        ...

    def answer(self, question: str) -> str:
        """The reference answer."""
        ...

    def teacher(self, source: Source) -> Scorer:
        """The model of a teacher."""
        ...

    def teacher_prompt(self, source: Source, question: str) -> Sequence[int]:
        """A teacher's prompt with its context, token ids."""
        ...

    def close(self) -> None:
        """End worker processes, and what samples."""
        ...


class Unit(NamedTuple):
    """What is decoded together: rollouts, branches, or windows, `first:last`."""

    first: int
    last: int


Decode = Callable[[Unit], Arrays]
"""Decodes and verifies one unit; its arrays are laid out as "rounds" or "continuations" declare."""


class Checkpoints(Protocol):
    """Keeps draws while a stage makes them, so that a kill loses little."""

    def decode_round(
        self, stage: str, question: str, index: int, units: Sequence[Unit], decode: Decode, layout: str = "rounds"
    ) -> dict[str, AnyArray]:
        """The outcomes of one round, unit after unit, without decoding what is kept of it."""
        ...

    @property
    def most_draws(self) -> int:
        """Draws of a unit, at most."""
        ...


class Provider(Protocol):
    """Where a run's evidence comes from: models that sample and score, or tables that another system recorded.

    Arrays are those of `schemas.arrays`.
    """

    @property
    def decoded(self) -> int:
        """Tokens that have been sampled so far."""
        ...

    def rollouts(self, question: str) -> Arrays:
        """Stage 1."""
        ...

    def tree(self, question: str, rollouts: Arrays) -> Arrays:
        """Stage 2."""
        ...

    def distillation(
        self, question: str, source: Source, losses: Mapping[str, Settings], rollouts: Arrays, tree: Arrays
    ) -> Mapping[str, Arrays]:
        """Stage 4, by loss."""
        ...

    def values(self, question: str, rollouts: Arrays) -> Arrays:
        """Success probabilities along rollouts, for a ranking."""
        ...

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """Text of token ids."""
        ...

    def close(self) -> None:
        """End worker processes, and what samples."""
        ...


class Reads(Protocol):
    """The artefacts of earlier stages."""

    def artefact(self, stage: str, question: str, signal: Signal | None = None) -> Arrays:
        """One of them; where there is one of all questions, or of all signals, it is the same for each."""
        ...

    def every(self, stage: str) -> Iterator[Arrays]:
        """Those of all questions, in an order of their own."""
        ...

    def seed(self, purpose: str, stage: str, question: str) -> int:
        """64-bit seed of a random stream that follows from an artefact."""
        ...


@dataclass(frozen=True)
class Work:
    """What a stage is asked to make.

    Attributes:
        question: whose artefacts; of what is made of all questions, any of them.
        wanted: the signals whose artefacts are missing; None alone where a stage makes one for all.
        source: the teacher and context that they are of, for a stage that works on one.
    """

    config: RunConfig
    provider: Provider
    reads: Reads
    question: str
    wanted: Sequence[Signal | None]
    source: Source | None = None

    def read(self, stage: str, signal: Signal | None = None) -> Arrays:
        """An artefact of this question."""
        return self.reads.artefact(stage, self.question, signal)

    @property
    def signals(self) -> list[Signal]:
        """The signals that are wanted."""
        return [signal for signal in self.wanted if signal is not None]


Made = Mapping[Signal | None, Arrays]
"""What a stage made, by signal where there is one artefact for each."""


def equal_units(total: int, most: int) -> list[Unit]:
    """Units of at most so many, as equal as can be."""
    n = -(-total // most)
    return [Unit(total * i // n, total * (i + 1) // n) for i in range(n)]


def joined(outcomes: Sequence[Arrays], layout: str = "rounds") -> dict[str, AnyArray]:
    """Outcomes one after another; offsets of ragged ones go on from each other."""
    out: dict[str, AnyArray] = {}
    for name, declared in layout_of(layout).items():
        parts = [np.asarray(o[name]) for o in outcomes]
        if name == "offsets":
            starts = np.cumsum([0, *(int(p[-1]) for p in parts)])
            parts = [np.zeros(1, dtype=np.int64), *(p[1:] + s for p, s in zip(parts, starts[:-1], strict=True))]
        out[name] = np.concatenate([np.empty(0, dtype=declared.dtype), *parts]).astype(declared.dtype)
    return out
