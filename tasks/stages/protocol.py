"""What a stage may use: the arrays of earlier stages, and protocols for sampling, scoring and verification."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from schemas.arrays import AnyArray, Arrays
from schemas.config import RunConfig, Settings
from schemas.pipeline import layout_of
from schemas.signals import Signal, Source
from tasks.engines.protocol import Differentiable, Sampler, Scorer
from tasks.engines.scoring import Scored
from tasks.engines.translation import Translation
from tasks.verifiers.protocol import Judge


class Tokenizer(Protocol):
    """Gives the text of token ids."""

    def batch_decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool = False) -> list[str]:
        """One text for each sequence."""
        ...


class Models(Protocol):
    """The student and its teachers with their prompts; questions are referred to by id."""

    @property
    def decoded(self) -> int:
        """Tokens sampled so far."""
        ...

    @property
    def sampler(self) -> Sampler:
        """The student's sampler, for draws."""
        ...

    @property
    def student(self) -> Scorer:
        """The student's scorer, for its distributions."""
        ...

    @property
    def differentiable(self) -> Differentiable:
        """The student, for gradients by its parameters."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The student's tokenizer."""
        ...

    @property
    def verifier(self) -> Judge:
        """The verifier of the run."""
        ...

    def prompt(self, question: str) -> Sequence[int]:
        """The student's prompt, token ids."""
        ...

    def given_rollouts(self, question: str) -> Arrays | None:
        """Rollouts that a table has; None where the student samples them."""
        ...

    def answer(self, question: str) -> str:
        """The reference answer."""
        ...

    def together(self, sources: Sequence[Source]) -> list[list[Source]]:
        """Sources in groups whose models fit in memory together, with the student."""
        ...

    def teacher(self, source: Source) -> Scorer:
        """A teacher's scorer."""
        ...

    def served_view(self, source: Source, prompt: Sequence[int], by_rollout: Sequence[Sequence[int]]) -> Scored | None:
        """A teacher on a server with its prompts; None where it is here."""
        ...

    def translation(self, source: Source) -> Translation | None:
        """From the student's tokens to a teacher's; None where they are the same."""
        ...

    def teacher_prompts(
        self, source: Source, question: str, rollouts: Arrays, texts: Arrays | None = None
    ) -> tuple[Sequence[int], Sequence[Sequence[int]]]:
        """A teacher's prompt with its context, token ids; and one for each rollout where they differ, else none.

        Args:
            texts: the generated texts of the context, if it has some.
        """
        ...

    def writer(self, source: Source) -> Sampler:
        """The model that writes the text of a context, as a sampler."""
        ...

    def writer_tokenizer(self, source: Source) -> Tokenizer:
        """Its tokenizer."""
        ...

    def writer_prompts(self, source: Source, question: str, rollouts: Arrays) -> Sequence[Sequence[int]]:
        """What it is asked, token ids: for the question, or for each rollout."""
        ...

    def answerer(self, source: Source) -> Sampler:
        """A teacher, as a sampler of answers."""
        ...

    def answer_tokenizer(self, source: Source) -> Tokenizer:
        """The tokenizer of its answers."""
        ...

    def as_students(self, source: Source, tokens: Sequence[int]) -> list[int]:
        """Tokens of a teacher's answer as the student's, which has them in common unless its tokenizer is another."""
        ...

    def close(self) -> None:
        """Stop worker processes and the sampler."""
        ...


class Unit(NamedTuple):
    """A slice `first:last` of rollouts, branches or windows that is decoded together."""

    first: int
    last: int


Decode = Callable[[Unit], Arrays]
"""Decodes and verifies one unit; its arrays are laid out as "rounds" or "continuations" declare."""


class Checkpoints(Protocol):
    """Saves draws while a stage makes them, so that a kill loses little."""

    def decode_round(
        self, stage: str, question: str, index: int, units: Sequence[Unit], decode: Decode, layout: str = "rounds"
    ) -> dict[str, AnyArray]:
        """The outcomes of one round, unit after unit; saved units are not decoded again."""
        ...

    @property
    def most_draws(self) -> int:
        """Maximum number of draws of a unit."""
        ...


class Provider(Protocol):
    """Source of a run's evidence: models that sample and score, or tables recorded by another system.

    Arrays are those of `schemas.arrays`.
    """

    @property
    def decoded(self) -> int:
        """Tokens sampled so far."""
        ...

    def rollouts(self, question: str) -> Arrays:
        """Stage 1."""
        ...

    def tree(self, question: str, rollouts: Arrays) -> Arrays:
        """Stage 2."""
        ...

    def write(self, question: str, sources: Sequence[Source], rollouts: Arrays) -> Mapping[Source, Arrays]:
        """Texts that contexts show, for some sources whose contexts have generated ones."""
        ...

    def answers(
        self, question: str, sources: Sequence[Source], rollouts: Arrays, texts: Mapping[Source, Arrays]
    ) -> Mapping[Source, Arrays]:
        """Teachers' own answers; `texts` as for `distillation`."""
        ...

    def handover(self, question: str, rollouts: Arrays, answers: Mapping[Source, Arrays]) -> Mapping[Source, Arrays]:
        """What the student makes of parts of teachers' answers."""
        ...

    def distillation(
        self,
        question: str,
        losses: Mapping[Source, Mapping[str, Settings]],
        rollouts: Arrays,
        tree: Arrays,
        texts: Mapping[Source, Arrays],
    ) -> Mapping[Signal, Arrays]:
        """Stage 4 for some losses of each source.

        Args:
            texts: what was written for those whose contexts have generated texts.
        """
        ...

    def updates(
        self,
        question: str,
        wanted: Mapping[Source, Mapping[str, Settings]],
        rollouts: Arrays,
        texts: Mapping[Source, Arrays],
    ) -> Mapping[Signal, Arrays]:
        """Updates of the student's parameters by some losses of each source; the reward's is its policy gradient."""
        ...

    def together(self, sources: Sequence[Source]) -> list[list[Source]]:
        """Sources in groups that are to be asked for together, as their models fit in memory together."""
        ...

    def values(self, question: str, rollouts: Arrays) -> Arrays:
        """Success probabilities along rollouts, for a ranking."""
        ...

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """Text of token ids."""
        ...

    def decode(self, runs: Sequence[Sequence[int]]) -> list[str]:
        """Texts of runs of tokens in the middle of a text."""
        ...

    def close(self) -> None:
        """Stop worker processes and the sampler."""
        ...


class Reads(Protocol):
    """The artefacts of earlier stages."""

    def artefact(self, stage: str, question: str, signal: Signal | None = None) -> Arrays:
        """One artefact; where a single one covers all questions or signals, each of them gets that one."""
        ...

    def every(self, stage: str) -> Iterator[Arrays]:
        """A stage's artefacts of all questions, in a fixed order."""
        ...

    def seed(self, purpose: str, stage: str, question: str) -> int:
        """64-bit seed of an artefact's random stream."""
        ...


@dataclass(frozen=True)
class Work:
    """The artefacts that a stage is to make.

    Attributes:
        question: the question; any of them for an artefact of all questions.
        wanted: the signals whose artefacts are missing; only None where a stage makes one for all.
    """

    config: RunConfig
    provider: Provider
    reads: Reads
    question: str
    wanted: Sequence[Signal | None]

    def read(self, stage: str, signal: Signal | None = None) -> Arrays:
        """An artefact of this question."""
        return self.reads.artefact(stage, self.question, signal)

    @property
    def signals(self) -> list[Signal]:
        """The requested signals."""
        return [signal for signal in self.wanted if signal is not None]


Made = Mapping[Signal | None, Arrays]
"""The artefacts of a stage by signal; the key is None where there is one for all."""


def equal_units(total: int, most: int) -> list[Unit]:
    """Units of at most `most` items, as equal as possible."""
    n = -(-total // most)
    return [Unit(total * i // n, total * (i + 1) // n) for i in range(n)]


def joined(outcomes: Sequence[Arrays], layout: str = "rounds") -> dict[str, AnyArray]:
    """Concatenated outcomes; offsets of ragged arrays are shifted accordingly."""
    out: dict[str, AnyArray] = {}
    for name, declared in layout_of(layout).items():
        parts = [np.asarray(o[name]) for o in outcomes]
        if name == "offsets":
            starts = np.cumsum([0, *(int(p[-1]) for p in parts)])
            parts = [np.zeros(1, dtype=np.int64), *(p[1:] + s for p, s in zip(parts, starts[:-1], strict=True))]
        out[name] = np.concatenate([np.empty(0, dtype=declared.dtype), *parts]).astype(declared.dtype)
    return out
