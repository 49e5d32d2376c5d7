"""One run of the estimators on oracle questions, and how far it is from the truth.

Questions are drawn from a finite population whose truth is exact, so intervals are judged by what they claim: the
population's score. Errors are judged against the same questions, so that they are the estimator's alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from schemas.arrays import AnyArray
from schemas.config import (
    AdaptiveTree,
    ForcedTree,
    ForwardKL,
    Grouping,
    ReverseKL,
    Settings,
    WindowsTree,
)
from schemas.config import Scores as ScoreSettings
from tasks.calibration.chain import Chain, Sums, exact_scores, expected
from tasks.calibration.chain import Scores as Exact
from tasks.calibration.simulate import Rolled, Taught, continue_windows, draw, roll
from tasks.calibration.suite import TEACHERS, Family, OracleQuestion, equal_teacher, make_question
from tasks.run.keys import Signal
from tasks.stages.aggregate.pooling import Pool, QuestionScores, make_pool
from tasks.stages.alignment import make_alignment
from tasks.stages.distillation.gradients import NO_NODES
from tasks.stages.ideal import ideal_gradients
from tasks.stages.ranking import RankedQuestion, rank
from tasks.stages.trees.rounds import Drawn, assembled
from tasks.stages.trees.tree import next_round
from tasks.stages.trees.windows import count_visits, windows, windows_tree
from tasks.statistics.estimators import Outcomes, merged
from tasks.statistics.prior import fit

POPULATION, QUESTIONS, ROLLOUTS = 48, 24, 8
EQUAL, EQUAL_COSINE = "equal", 0.4
"""A teacher that is aligned alike at every node, so that all groups are."""
SCORES = ScoreSettings(groupings=[Grouping(by="outcome")], posterior=200, bootstrap=1000)


@dataclass(frozen=True)
class Setting:
    """What is judged: a planner with its budget on a family of questions; `rank` makes no tree."""

    family: Family
    planner: str
    draws: int
    rollouts: int = ROLLOUTS

    @property
    def tree(self) -> ForcedTree | AdaptiveTree | WindowsTree | None:
        """Settings of the planner at this budget of draws a question."""
        match self.planner:
            case "adaptive":
                return AdaptiveTree(draws=self.draws, round=min(512, self.draws))
            case "forced":
                return ForcedTree(nodes=max(1, self.draws // 64))
            case "uniform":
                return ForcedTree(nodes=max(1, self.draws // 64), node_choice="uniform", allocation="equal")
            case "windows":
                return WindowsTree(draws=self.draws)
            case _:
                return None


@dataclass(frozen=True)
class Member:
    """A question of the population with all that is exact of it, by teacher."""

    question: OracleQuestion
    teachers: dict[str, Chain]
    exact: dict[str, Exact]
    expected: dict[str, dict[str, Sums]]


def loss_of(teacher: str) -> Settings:
    """The equal teacher is equal for forward KL; all others teach by reverse KL."""
    return ForwardKL() if teacher == EQUAL else ReverseKL()


@lru_cache(maxsize=1)
def population(family: Family, seed: int) -> list[Member]:
    """The questions of a family, with their exact scores."""
    members = []
    for number in range(POPULATION):
        q = make_question(family, number, seed)
        teachers = {**q.teachers, EQUAL: equal_teacher(q.student, EQUAL_COSINE, np.random.default_rng([seed, number]))}
        exact = {name: exact_scores(q.student, chain, loss_of(name)) for name, chain in teachers.items()}
        sums = {name: expected(q.student, scores) for name, scores in exact.items()}
        members.append(Member(q, teachers, exact, sums))
    return members


def truth(members: Sequence[Member], teacher: str, group: str) -> Sums:
    """Expected sums over one rollout of each of some questions."""
    return sum((m.expected[teacher][group] for m in members), start=Sums(0.0, 0.0, 0.0))


def grow(setting: Setting, rolled: Rolled, rng: np.random.Generator) -> tuple[dict[str, AnyArray], int]:
    """A tree, and the tokens it took."""
    tree, ground = setting.tree, rolled.ground
    if isinstance(tree, WindowsTree):
        launched = windows(tree, ground.offsets)
        continued, success, tokens = continue_windows(rolled, launched, rng)
        each = [w for w in launched for _ in range(w.draws)]
        never = np.zeros(len(success), dtype=bool)
        visits = count_visits(rolled.arrays["tokens"], ground.offsets, each, continued, success, never)
        return windows_tree(tree, ground, visits), tokens
    if tree is None:
        raise ValueError(f"{setting.planner} makes no tree")
    drawn: list[Drawn] = []
    while (plan := next_round(tree, ground, drawn)) is not None:
        successes, tokens = draw(rolled, plan, rng)
        drawn.append(Drawn(plan, successes, np.zeros_like(successes), tokens))
    return assembled(ground, drawn), sum(d.tokens for d in drawn)


def measure(setting: Setting, seed: int, run: int) -> list[dict[str, Any]]:
    """Rows of one run: score, teacher, estimate, interval and both truths; see `flows.calibrate`."""
    members = population(setting.family, seed)
    rng = np.random.default_rng([seed, run, setting.draws, setting.rollouts])
    drawn = [members[i] for i in rng.integers(0, len(members), size=QUESTIONS)]
    rolled = [roll(m.question.student, f"{n}", setting.rollouts, seed + run, rng) for n, m in enumerate(drawn)]
    tokens = QUESTIONS * setting.rollouts * setting.family.length
    if setting.tree is None:
        rows = list(_ranks(drawn, rolled, run))
    else:
        trees = []
        for r in rolled:
            tree, decoded = grow(setting, r, rng)
            trees.append(tree)
            tokens += decoded
        rows = list(_scores(setting, members, drawn, rolled, trees, run))
    shared = {
        "length": setting.family.length,
        "signal": setting.family.signal,
        "student": setting.family.student,
        "decisions": setting.family.decisions,
        "planner": setting.planner,
        "draws": setting.draws,
        "rollouts": setting.rollouts,
        "run": run,
        "tokens": tokens,
    }
    return [{**shared, **row} for row in rows]


def _row(score: str, teacher: str, estimate: float, truth: float, **more: float) -> dict[str, Any]:
    blank = {"low": np.nan, "high": np.nan, "own": truth, "count": 1}
    return {"score": score, "teacher": teacher, "estimate": estimate, "truth": truth, **blank, **more}


def _ranks(drawn: Sequence[Member], rolled: Sequence[Rolled], run: int) -> Iterator[dict[str, Any]]:
    """The ranking's gains, in the unit of alignments: divided by the exact sqrt(sum |g|^2) of a rollout."""
    signals = {name: Signal(name, "none", "reverse_kl") for name in TEACHERS}
    questions = [
        RankedQuestion(
            r.arrays,
            {s: Taught(r, m.teachers[name], loss_of(name)).distillation(NO_NODES) for name, s in signals.items()},
        )
        for m, r in zip(drawn, rolled, strict=True)
    ]
    ranking = rank(questions, 1.0, SCORES, run)
    for row in ranking.rows:
        own = truth(drawn, row["teacher"], "all")
        scale = np.sqrt(own.g_sq / len(drawn))
        yield _row("rank gain", row["teacher"], row["gain"] / scale, own.alignment)


def _scores(
    setting: Setting,
    members: Sequence[Member],
    drawn: Sequence[Member],
    rolled: Sequence[Rolled],
    trees: Sequence[dict[str, AnyArray]],
    run: int,
) -> Iterator[dict[str, Any]]:
    prior = fit([merged(tree).outcomes for tree in trees])
    signals = {name: Signal(name, "none", "loss") for name in [*TEACHERS, EQUAL]}
    scored = []
    for n, (m, r, tree) in enumerate(zip(drawn, rolled, trees, strict=True)):
        d = {name: Taught(r, m.teachers[name], loss_of(name)).distillation(tree) for name in signals}
        a = make_alignment(tree, d, prior, SCORES, 1.0, 1e-3, 1000 * run + n)
        scored.append(
            QuestionScores(
                str(n),
                r.arrays,
                tree,
                ideal_gradients(Outcomes.of(tree), 1.0),
                {signals[name]: arrays for name, arrays in d.items()},
                {signals[name]: arrays for name, arrays in a.items()},
                sampled=setting.planner != "windows",
            )
        )
    pool = make_pool(scored, list(signals.values()), SCORES, run)
    yield from _pooled(pool, signals, members, drawn)
    for name, signal in signals.items():
        yield from _nodes(name, [q.alignment[signal] for q in scored], drawn, rolled, trees)


def _pooled(
    pool: Pool,
    signals: Mapping[str, Signal],
    members: Sequence[Member],
    drawn: Sequence[Member],
) -> Iterator[dict[str, Any]]:
    """Pooled scores, and differences of groups and teachers; `own` is the truth of the very questions."""
    groups = ("all", "incorrect", "correct")  # places 0, 1, 2 of the pool

    def row(score: str, teacher: str, found: tuple[float, float, float], truth: float, **more: float) -> dict[str, Any]:
        return {**_row(score, teacher, found[0], truth, **more), "low": found[1], "high": found[2]}

    for name, signal in signals.items():
        whole, own = ({g: truth(of, name, g) for g in groups} for of in (members, drawn))
        for score in ("alignment", "gain", "mean_cosine"):
            # a gain over the exact sqrt(sum |g|^2) of a rollout is an alignment
            unit = np.sqrt(truth(members, name, "all").g_sq / len(members)) if score == "gain" else 1.0
            value, low, high = (float(x / unit) for x in pool.estimate(signal, 0, score))
            yield row(score, name, (value, low, high), whole["all"].alignment, own=own["all"].alignment)
        places = pool.places[signal]
        correct, incorrect = (
            next(i for i, place in enumerate(places) if place[:2] == ("outcome", g)) for g in ("correct", "incorrect")
        )
        score = "equal groups" if name == EQUAL else "group difference"
        gap = pool.difference(signal, correct, signal, incorrect, "alignment")
        yield row(score, name, gap, whole["correct"].alignment - whole["incorrect"].alignment)
    for a, b in (("good", "fair"), ("fair", "other"), ("other", "random")):
        exact_difference = truth(members, a, "all").alignment - truth(members, b, "all").alignment
        gap = pool.difference(signals[a], 0, signals[b], 0, "alignment")
        yield row("teacher difference", f"{a} - {b}", gap, exact_difference)


def _nodes(
    name: str,
    alignments: Sequence[Mapping[str, AnyArray]],
    drawn: Sequence[Member],
    rolled: Sequence[Rolled],
    trees: Sequence[dict[str, AnyArray]],
) -> Iterator[dict[str, Any]]:
    """Intervals and signs of single nodes: shares, with the number of nodes that they are of.

    Where |g| is exactly 0 a node has no sign, so a resolved one is wrong there, and no cosine to be covered.
    """
    columns = []
    for a, m, r, tree in zip(alignments, drawn, rolled, trees, strict=True):
        node, first = np.unique(tree["node"], return_index=True)
        depth, state = r.depth[node], r.state[node]
        exact = m.exact[name]
        inner, g_sq, d_sq = (x[depth, state] for x in (exact.inner, exact.g_sq, exact.d_sq))
        flat = g_sq < 1e-20  # rounding
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = np.where(flat, np.nan, inner / np.sqrt(g_sq * d_sq))
        estimates = [np.asarray(a[x])[first] for x in ("cosine_low", "cosine_high", "p_positive", "lfsr")]
        columns.append(np.stack([*estimates, np.where(flat, 0.0, np.sign(inner)), g_sq, cosine]))
    low, high, p_positive, lfsr, sign, g_sq, cosine = np.concatenate(columns, axis=1)
    resolved = lfsr < 1 - SCORES.level
    judged = np.isfinite(low) & np.isfinite(cosine)
    inside = (low <= cosine + 1e-9) & (cosine - 1e-9 <= high)
    wrong = np.sign(p_positive - 0.5) != sign
    for score, of, what in (
        ("node coverage", judged, inside),
        ("node coverage, resolved", judged & resolved, inside),
        ("wrong signs", resolved, wrong),
        ("resolved", np.isfinite(lfsr), resolved),
    ):
        if of.any():
            yield _row(score, name, float(what[of].mean()), np.nan, count=int(of.sum()))
    if g_sq.sum() > 0:
        yield _row("|g|^2 of the resolved", name, float(g_sq[resolved].sum() / g_sq.sum()), np.nan)
