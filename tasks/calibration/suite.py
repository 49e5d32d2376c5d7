"""The suite: families of chains with their teachers, from short to long, clear to weak, easy to hard.

A chain has levels of progress. At a pivot, tokens raise or lower the level; at a wording choice the student is equally
uncertain but nothing depends on it; the rest is filler with one nearly certain token. Longer chains have more filler
between the same decisions, as longer solutions do; one dense family has decisions in proportion to its length.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.calibration.chain import Chain
from tasks.statistics.csr import Floats, Ints

PIVOTS, WORDINGS = 12, 20
"""Numbers of decisions of a chain that matter and that do not."""
LEVELS = 7
ORDINARY = 14
"""Tokens other than the two outcomes."""
SPREAD = {"clear": 4.0, "weak": 2.0}
"""Difference in log-odds of success between the middle level and the highest or lowest."""
CENTRE = {"easy": 1.5, "even": 0.0, "hard": -1.5}
"""Log-odds of success at the middle level."""


@dataclass(frozen=True)
class Family:
    """A population of questions.

    Attributes:
        length: tokens of a rollout, including the outcome.
        signal: how strongly the decisions affect success.
        student: how often it succeeds.
        decisions: a chain of 64 tokens has `PIVOTS + WORDINGS`; longer ones have as many, or proportionally more.
    """

    length: int
    signal: Literal["clear", "weak"]
    student: Literal["easy", "even", "hard"]
    decisions: Literal["fixed", "dense"] = "fixed"

    @property
    def name(self) -> str:
        """Short name in tables."""
        return f"{self.length} {self.signal} {self.student}" + (" dense" if self.decisions == "dense" else "")


@dataclass(frozen=True)
class Teaching:
    """A teacher: how strongly it leans towards success, and how much it differs at random."""

    lean: float
    noise: float


TEACHERS = {
    "good": Teaching(1.5, 0.3),
    "fair": Teaching(0.8, 0.5),
    "other": Teaching(0.8, 0.7),
    "random": Teaching(0.0, 0.6),
    "wrong": Teaching(-0.6, 0.5),
}


@dataclass(frozen=True)
class OracleQuestion:
    """One question: the student's chain and each teacher's, over the same states."""

    id: str
    student: Chain
    teachers: dict[str, Chain]


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def make_question(family: Family, number: int, seed: int) -> OracleQuestion:
    """A question of a family: its own layout, student and teachers."""
    rng = np.random.default_rng([seed, number])
    length = family.length - 1
    scale = length / 63 if family.decisions == "dense" else 1.0
    pivots, wordings = round(PIVOTS * scale), round(WORDINGS * scale)
    # kinds: a filler, then one for each decision of a short chain; longer dense chains repeat them
    places = np.sort(rng.permutation(length)[: pivots + wordings])
    roles = rng.permutation(np.arange(pivots + wordings) < pivots)
    kinds = np.zeros(length, dtype=np.int64)
    pivot_kinds, word_kinds = np.arange(1, 1 + PIVOTS), np.arange(1 + PIVOTS, 1 + PIVOTS + WORDINGS)
    kinds[places[roles]] = np.resize(pivot_kinds, pivots)
    kinds[places[~roles]] = np.resize(word_kinds, wordings)

    n_kinds = 1 + PIVOTS + WORDINGS
    logits = 1.8 * rng.standard_normal((n_kinds, LEVELS, ORDINARY))
    logits[0] = rng.standard_normal((LEVELS, ORDINARY))
    logits[0, :, 0] += 9.0
    moves = np.zeros((n_kinds, LEVELS, ORDINARY), dtype=np.int64)
    step = rng.choice([-1, 0, 1], p=[0.25, 0.5, 0.25], size=(PIVOTS, LEVELS, ORDINARY))
    moves[pivot_kinds] = step
    follow = np.clip(np.arange(LEVELS)[None, :, None] + moves, 0, LEVELS - 1)
    level = np.linspace(-1, 1, LEVELS)
    success = 1 / (1 + np.exp(-(CENTRE[family.student] + SPREAD[family.signal] * level)))
    student = Chain(kinds, _softmax(logits), follow, success, start=LEVELS // 2)
    teachers = {name: _teacher(student, moves, teaching, rng) for name, teaching in TEACHERS.items()}
    return OracleQuestion(f"{family.name} #{number}", student, teachers)


def _teacher(student: Chain, moves: Ints, teaching: Teaching, rng: np.random.Generator) -> Chain:
    """A chain whose log-probabilities differ by a lean along the moves and by noise; the lean is largest early."""
    certainty = np.zeros(len(moves))
    certainty[1 : 1 + PIVOTS] = np.linspace(1.7, 0.3, PIVOTS)
    differs = teaching.lean * certainty[:, None, None] * moves + teaching.noise * rng.standard_normal(moves.shape)
    with np.errstate(divide="ignore"):
        step = _softmax(np.log(student.step) + differs)
    return Chain(student.kinds, step, student.follow, student.success, student.start)


def equal_teacher(student: Chain, cosine: float, rng: np.random.Generator) -> Chain:
    """A teacher whose forward-KL direction T - P has the same cosine with the ideal gradient at every node.

    T = P + s |g| (cosine g / |g| + sine h / |h|), h a random direction orthogonal to g, s the same at every node of
    the chain: pooled alignment is `cosine` in every group.
    """
    g, p = student.gradients[:-1, :, :-2], student.rows[student.kind_at[:-1], :, :-2]
    norm = np.sqrt(np.square(g).sum(-1, keepdims=True))
    unit = np.divide(g, norm, out=np.zeros_like(g), where=norm > 0)
    h = p * rng.standard_normal(g.shape)  # small where P is small, so that T stays positive
    h -= p * h.sum(-1, keepdims=True)
    h -= (h * unit).sum(-1, keepdims=True) * unit
    h /= np.sqrt(np.square(h).sum(-1, keepdims=True))
    d = norm * (cosine * unit + np.sqrt(1 - cosine**2) * h)
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.nanmin(np.where(d < 0, -p / d, np.inf))
    outcome = student.gradients[-1, :, -1]
    scale = min(0.9 * room, 0.5)
    success = np.clip(student.success + scale * outcome, 1e-6, 1 - 1e-6)
    return Chain(np.arange(student.length), p + scale * d, student.follow[student.kinds], success, student.start)
