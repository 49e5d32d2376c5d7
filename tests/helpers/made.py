"""Questions made at random, of any size, with all that the tables of a run are made from."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from schemas.arrays import NO_DRAWS, AnyArray
from schemas.config import Scores
from schemas.signals import Signal
from schemas.tables import FORECASTS, SUCCESS
from tasks.outputs.diagnosis import make_tables
from tasks.outputs.report.facts import Told
from tasks.outputs.report.page import render
from tasks.outputs.report.rollouts import Rollouts
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.aggregate.tables import Texts, frame
from tasks.stages.alignment import node_scores, simulate
from tasks.stages.ideal import ideal_gradients
from tasks.statistics.csr import offsets_of, owners, row_sums
from tasks.statistics.estimators import Outcomes, pool_rounds
from tasks.statistics.prior import Prior
from tests.helpers.oracle import oracle_config, random_chain

VOCABULARY = 20_000
TEMPERATURE, LEVEL, TAIL_LIMIT, SAMPLES = 1.0, 0.95, 0.05, 100
PRIOR = Prior(np.array([0.3, 0.7]), np.array([4.0, 4.0]), np.array([0.5, 0.5]))
"""Success of branches about .3 or .7."""


def made_signals(teachers: int, losses: int, prefix: str = "") -> list[Signal]:
    """Signals of so many teachers and losses; all names start with the prefix."""
    return [
        Signal(f"{prefix}teacher-{t}", f"{prefix}none", f"{prefix}loss_{i}")
        for t in range(teachers)
        for i in range(losses)
    ]


def made_question(
    name: str, signals: Sequence[Signal], *, rollouts: int, tokens: int, nodes: int, branches: int, seed: int
) -> QuestionScores:
    """One question: random text and probabilities, draws of random success, and signals that lean towards it."""
    rng = np.random.default_rng(seed)
    T, B = rollouts * tokens, nodes * branches
    text = (VOCABULARY * rng.random(T) ** 4).astype(np.int32)
    node = np.sort(rng.choice(T, nodes, replace=False)).astype(np.int64)
    offsets = offsets_of(np.full(nodes, branches))
    prob = rng.dirichlet(np.ones(branches), nodes) * 0.99
    token = (VOCABULARY * rng.random((nodes, branches)) ** 4).astype(np.int32)
    token[:, 0] = text[node]
    draws = rng.integers(2, 24, B).astype(np.int32)
    Q = rng.beta(0.6, 0.6, B)
    successes = rng.binomial(draws, Q).astype(np.int32)
    tree: dict[str, AnyArray] = {
        "token_prob": rng.random(T),
        "entropy": rng.exponential(0.5, T),
        "leverage": rng.random(T),
        "node": node,
        "round": np.zeros(nodes, dtype=np.int32),
        "inclusion": np.full(nodes, nodes / T),
        "share": np.ones(nodes),
        "p_sq": (prob**2).sum(axis=1),
        "tail_prob": np.full(nodes, 0.01),
        "branch_offsets": offsets,
        "branch_token": token.reshape(-1),
        "branch_prob": prob.reshape(-1),
        "branch_tail": np.zeros(B, dtype=np.bool_),
        "draws": draws,
        "successes": successes,
        "truncations": np.zeros(B, dtype=np.int32),
        **NO_DRAWS,
    }
    correct = rng.random(rollouts) < 0.5
    taken: dict[str, AnyArray] = {
        "prompt": np.zeros(1, dtype=np.int32),
        "tokens": text,
        "offsets": offsets_of(np.full(rollouts, tokens)),
        "correct": correct,
        "truncated": np.zeros(rollouts, dtype=np.bool_),
        "reward": correct.astype(np.float64),
    }
    rows, pooled = Outcomes.of(tree), pool_rounds(tree)
    posterior = simulate(pooled.outcomes, PRIOR, TEMPERATURE, SAMPLES, seed)
    distillation, alignment = {}, {}
    for signal in signals:
        d = 0.1 * (Q - 0.5) + rng.normal(0.0, 0.05, B)
        flat = prob.reshape(-1)
        d_sq = rng.exponential(0.01, T)
        d_sq[node] = row_sums(d**2, offsets)
        kl = rng.exponential(0.3, T)
        distillation[signal] = {
            "d_sq": d_sq,
            "student_kept": np.ones(T),
            "teacher_kept": np.ones(T),
            "kl": kl,
            "js": kl / 4,
            "teacher_token_prob": rng.random(T),
            "d_token": rng.normal(0.0, 0.05, T),
            "d_bar": row_sums(flat * d, offsets),
            "d": d,
            "d_head": d - (row_sums(flat * d, offsets) / row_sums(flat, offsets))[owners(offsets)] * flat,
            "teacher_prob": (rng.dirichlet(np.ones(branches), nodes) * 0.99).reshape(-1),
            **{f"return_{part}": np.empty(0) for part in ("sum", "sq", "sum_won", "sq_won")},
        }
        alignment[signal] = node_scores(
            rows, pooled, distillation[signal], d_sq[node], posterior, TEMPERATURE, LEVEL, TAIL_LIMIT
        )
    return QuestionScores(name, taken, tree, ideal_gradients(rows, TEMPERATURE), distillation, alignment)


class MadeQuestions(Sequence[QuestionScores]):
    """Questions of one size, made when they are looked at; the last one is kept."""

    def __init__(self, number: int, signals: Sequence[Signal], prefix: str = "", **size: int) -> None:
        self._number, self._signals, self._prefix, self._size = number, signals, prefix, size
        self._last: tuple[int, QuestionScores] | None = None

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, place: int) -> QuestionScores:  # type: ignore[override]
        if not 0 <= place < self._number:
            raise IndexError(place)
        if self._last is None or self._last[0] != place:
            made = made_question(f"{self._prefix}question-{place:03}", self._signals, seed=place, **self._size)
            self._last = (place, made)
        return self._last[1]

    def __iter__(self) -> Iterator[QuestionScores]:
        return (self[i] for i in range(self._number))


class MadePage(NamedTuple):
    """A report of made questions, with the tables that it shows."""

    html: str
    tables: dict[str, pl.DataFrame]
    questions: MadeQuestions


def made_page(
    questions: int, teachers: int, losses: int, texts: Texts | None = None, prefix: str = "", **size: int
) -> MadePage:
    """A report of questions made at random; forecasts and own success are made at random too.

    Args:
        texts: of tokens; words by default.
        prefix: what all names start with.
    """
    signals = made_signals(teachers, losses, prefix)
    made = MadeQuestions(questions, signals, prefix, **size)
    rng = np.random.default_rng(0)
    spell = texts or word

    def decode(runs: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(spell(run)[token] for token in run) for run in runs]

    shown = Rollouts(signals, questions, spell, decode, TEMPERATURE)
    chain = random_chain(3, length=10)
    scores = Scores(bootstrap=200, posterior=100)
    config = oracle_config(chain).model_copy(update={"scores": scores, "name": "made"})
    tables, facts = make_tables(config, made, spell, PRIOR, shown.add)
    forecasts, success = [], []
    for place, signal in enumerate(signals, 1):
        middle = float(rng.uniform(0.3, 0.9))
        ends = {"": middle, "_low": middle - 0.1, "_high": middle + 0.1}
        row: dict[str, Any] = {"place": place, **signal._asdict(), "base": 0.5, "ceiling": middle}
        row |= {f"forecast{end}": value for end, value in ends.items()}
        row |= {f"change{end}": value - 0.5 for end, value in ends.items()}
        verdict = "helps" if middle > 0.6 else "harms" if middle < 0.4 else "unclear"
        forecasts.append(row | {"p_best": 1 / len(signals), "p_harm": 0.1, "verdict": verdict, "remark": ""})
        if signal.loss == signals[0].loss:
            of_source: dict[str, Any] = signal.source._asdict()
            for name in ("own", "gap", "handover", "copied"):
                of_source |= {f"{name}{end}": value for end, value in ends.items()}
            success.append(of_source | {"truncated": 0.0, "answers": 8 * questions, "questions": questions})
    forecasts.sort(key=lambda row: -row["forecast"])
    tables |= {"forecasts": frame(forecasts, FORECASTS), "success": frame(success, SUCCESS)}
    told = Told(None, [], "train with something")
    return MadePage(render(config, facts, tables, shown, {}, told), tables, made)


def word(ids: Iterable[int]) -> dict[int, str]:
    """A word for every token, some of them with a line break."""
    return {i: "\n" if i % 97 == 0 else f" {_SYLLABLES[i % 13]}{_SYLLABLES[i // 13 % 13]}{i % 7 or ''}" for i in ids}


_SYLLABLES = ("ba", "co", "du", "fe", "gi", "ho", "ju", "ka", "le", "mi", "no", "pu", "ra")
