"""One run of the estimators on oracle questions, and its deviation from the truth.

Questions are drawn from a finite population with known exact scores. Intervals are judged against what they claim to
cover: the population's score. Errors are measured against the sampled questions, so that they are due to the estimator
alone.
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
    Model,
    Questions,
    ReverseKL,
    RunConfig,
    Sampling,
    Settings,
    Teacher,
    WindowsTree,
    loss_name,
)
from schemas.config import Scores as ScoreSettings
from schemas.config.success import Success
from schemas.pipeline import diagnosis_stages
from schemas.signals import Signal
from tasks.calibration.chain import Chain, Sums, exact_scores, expected
from tasks.calibration.chain import Scores as Exact
from tasks.calibration.provider import Chains, OracleProvider
from tasks.calibration.simulate import Rolled
from tasks.calibration.suite import TEACHERS, Family, OracleQuestion, equal_teacher, make_question
from tasks.stages.aggregate.pooling import Pool, make_pool
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.compute import Computed
from tasks.stages.ranking import RankedQuestion, rank

POPULATION, QUESTIONS, ROLLOUTS = 48, 24, 8
EQUAL, EQUAL_COSINE = "equal", 0.4
"""A teacher with the same alignment at every node, and therefore in every group."""
SCORES = ScoreSettings(groupings=[Grouping(by="outcome")], posterior=200, bootstrap=1000)


@dataclass(frozen=True)
class Setting:
    """What is evaluated: a planner with its budget on a family of questions; `rank` builds no tree."""

    family: Family
    planner: str
    draws: int
    rollouts: int = ROLLOUTS

    @property
    def tree(self) -> ForcedTree | AdaptiveTree | WindowsTree | None:
        """Settings of the planner at this budget of draws per question."""
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

    @property
    def signals(self) -> list[Signal]:
        """The teachers that are evaluated, each with its loss; a ranking omits the teacher with equal groups."""
        teachers = TEACHERS if self.tree is None else [*TEACHERS, EQUAL]
        return [Signal(name, "none", loss_name(loss_of(name))) for name in teachers]

    def config(self, seed: int) -> RunConfig:
        """The configuration of a user's run that does the same."""
        return RunConfig(
            seed=seed,
            questions=Questions(path="oracle"),
            student=Model(path="oracle"),
            sampling=Sampling(rollouts=self.rollouts, max_tokens=self.family.length),
            tree=self.tree or ForcedTree(),
            teachers=[Teacher(name=name) for name in (*TEACHERS, EQUAL)],
            losses=[ReverseKL(), ForwardKL()],
            success=Success(rollouts=0),
            scores=SCORES,
        )


@dataclass(frozen=True)
class Member:
    """A question of the population with its exact scores by teacher."""

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
    """Expected sums over one rollout of each question."""
    return sum((m.expected[teacher][group] for m in members), start=Sums(0.0, 0.0, 0.0))


def measure(setting: Setting, seed: int, run: int) -> list[dict[str, Any]]:
    """Rows of one run: score, teacher, estimate, interval and both truths; see `flows.calibrate`."""
    members = population(setting.family, seed)
    rng = np.random.default_rng([seed, run, setting.draws, setting.rollouts])
    drawn = {f"{n}": members[i] for n, i in enumerate(rng.integers(0, len(members), size=QUESTIONS))}
    chains = {name: Chains(m.question.student, m.teachers) for name, m in drawn.items()}
    config = setting.config(seed + run)
    provider = OracleProvider(config, chains, rng)
    computed = Computed(config, provider, list(drawn), setting.signals, lambda _, __, name: 1000 * run + int(name))
    if setting.tree is None:
        computed.run("rollouts", "ranking")
        rows = list(_ranks(list(drawn.values()), computed, run))
    else:
        computed.run(*diagnosis_stages())
        rows = list(_scores(members, list(drawn.values()), computed, provider, config, run))
    shared = {
        "length": setting.family.length,
        "signal": setting.family.signal,
        "student": setting.family.student,
        "decisions": setting.family.decisions,
        "planner": setting.planner,
        "draws": setting.draws,
        "rollouts": setting.rollouts,
        "run": run,
        "tokens": provider.decoded,
    }
    return [{**shared, **row} for row in rows]


def _row(score: str, teacher: str, estimate: float, truth: float, **more: float) -> dict[str, Any]:
    blank = {"low": np.nan, "high": np.nan, "own": truth, "count": 1}
    return {"score": score, "teacher": teacher, "estimate": estimate, "truth": truth, **blank, **more}


def _ranks(drawn: Sequence[Member], computed: Computed, run: int) -> Iterator[dict[str, Any]]:
    """The ranking's gains in units of alignment: divided by the exact sqrt(sum |g|^2) of a rollout."""
    questions = [
        RankedQuestion(
            computed.artefact("rollouts", name),
            {signal: computed.artefact("ranking", name, signal) for signal in computed.signals},
        )
        for name in computed.questions
    ]
    ranking = rank(questions, 1.0, SCORES, run)
    for row in ranking.rows:
        own = truth(drawn, row["teacher"], "all")
        scale = np.sqrt(own.g_sq / len(drawn))
        yield _row("rank gain", row["teacher"], row["gain"] / scale, own.alignment)


def _scores(
    members: Sequence[Member],
    drawn: Sequence[Member],
    computed: Computed,
    provider: OracleProvider,
    config: RunConfig,
    run: int,
) -> Iterator[dict[str, Any]]:
    sampled = config.tree.sampled
    scored = [QuestionScores.of(name, computed.signals, computed.artefact, sampled) for name in computed.questions]
    signals = {signal.teacher: signal for signal in computed.signals}
    pool = make_pool(scored, computed.signals, SCORES, run)
    yield from _pooled(pool, signals, members, drawn)
    for name, signal in signals.items():
        alignments, trees = [q.alignment[signal] for q in scored], [q.tree for q in scored]
        yield from _nodes(name, alignments, drawn, list(provider.rolled.values()), trees)


def _pooled(
    pool: Pool,
    signals: Mapping[str, Signal],
    members: Sequence[Member],
    drawn: Sequence[Member],
) -> Iterator[dict[str, Any]]:
    """Pooled scores, and differences of groups and teachers; `own` is the truth of the sampled questions."""
    groups = ("all", "incorrect", "correct")  # places 0, 1, 2 of the pool

    def row(score: str, teacher: str, found: tuple[float, float, float], truth: float, **more: float) -> dict[str, Any]:
        value, low, high = found
        return {**_row(score, teacher, value, truth, **more), "low": low, "high": high}

    for name, signal in signals.items():
        whole, own = ({g: truth(of, name, g) for g in groups} for of in (members, drawn))
        for score in ("alignment", "gain", "mean_cosine"):
            # a gain divided by the exact sqrt(sum |g|^2) of a rollout is an alignment
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
    trees: Sequence[Mapping[str, AnyArray]],
) -> Iterator[dict[str, Any]]:
    """Intervals and signs of single nodes: shares, each with its number of nodes.

    A node where |g| is exactly 0 has no sign, so resolving it is an error, and no cosine that could be covered.
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
    for score, subset, hits in (
        ("node coverage", judged, inside),
        ("node coverage, resolved", judged & resolved, inside),
        ("wrong signs", resolved, wrong),
        ("resolved", np.isfinite(lfsr), resolved),
    ):
        if subset.any():
            yield _row(score, name, float(hits[subset].mean()), np.nan, count=int(subset.sum()))
    if g_sq.sum() > 0:
        yield _row("|g|^2 of the resolved", name, float(g_sq[resolved].sum() / g_sq.sum()), np.nan)
