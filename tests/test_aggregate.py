"""Stage 6 of many questions: quantiles in one pass, one question held at a time, a prior of a sample of nodes."""

import weakref
from collections import Counter, UserDict
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import pytest

from schemas.arrays import AnyArray
from schemas.config import Scores
from tasks import prior
from tasks.aggregate import Histogram, Loaded, QuestionScores, make_pool
from tasks.outcomes import Outcomes, merged
from tasks.outputs import make_tables
from tests.oracle import OracleJob, oracle_config, oracle_rollouts, random_chain, teacher_of
from tests.test_estimators import scored, tree_of


@pytest.mark.parametrize("parts", [1, 7])
def test_quantiles_in_one_pass(parts: int) -> None:
    values = np.concatenate([np.random.default_rng(0).lognormal(-3, 2, 20_000), np.full(100, np.nan)])
    histogram = Histogram()
    for part in np.array_split(values, parts):
        histogram.add(part)
    bins = histogram.bins("entropy", 5)
    exact = np.nanquantile(values, [0.2, 0.4, 0.6, 0.8], method="inverted_cdf")
    assert (bins.edges <= exact).all() and (bins.edges > exact * (1 - 1 / 8192)).all()
    assert bins.labels == ["0-20 %", "20-40 %", "40-60 %", "60-80 %", "80-100 %"]


@pytest.mark.parametrize(
    ("values", "edges", "labels"),
    [
        ([], [], ["0-100 %"]),
        ([np.nan, np.inf], [], ["0-100 %"]),
        ([0.0, -0.0, -1e-17], [], ["0-100 %"]),  # KL can come out below 0 by rounding
        ([0.0, 0.0, 0.0, 1.0], [], ["0-100 %"]),
        ([0.0, 1.0, 1.0, 1.0], [1.0], ["0-50 %", "50-100 %"]),
        ([1.0, 2.0, 4.0, 8.0], [2.0, 4.0], ["0-50 %", "50-75 %", "75-100 %"]),
    ],
)
def test_quantiles_that_tie(values: list[float], edges: list[float], labels: list[str]) -> None:
    histogram = Histogram()
    histogram.add(np.array(values, dtype=np.float64))
    bins = histogram.bins("entropy", 4)
    assert (bins.edges.tolist(), bins.labels) == (edges, labels)


class Held(UserDict[str, AnyArray]):
    """Arrays that tell whether something still holds them."""

    __hash__ = object.__hash__


def test_questions_are_gone_through_one_by_one() -> None:
    """However many questions there are: the arrays of one at a time, each read twice."""
    chain = random_chain(3, length=10)
    job = OracleJob(chain, oracle_config(chain, rollouts=6, nodes=30, head=4, tail=2, draws=40))
    rollouts = oracle_rollouts(job)
    whole = scored(job, teacher_of(chain, 4, 2.0, 0.5), rollouts, tree_of(job, rollouts))
    reads: Counter[str] = Counter()
    alive: weakref.WeakSet[Held] = weakref.WeakSet()
    most = 0

    @lru_cache(maxsize=1)
    def read(question: str) -> Held:
        nonlocal most
        reads[question] += 1
        arrays = Held(whole.tree)
        alive.add(arrays)
        most = max(most, len(alive))
        return arrays

    def stored(question: str) -> QuestionScores:
        return replace(whole, question_id=question, tree=Loaded(partial(read, question)))

    config = job.config.model_copy(update={"scores": Scores(bootstrap=200, posterior=100)})
    texts = dict.fromkeys(range(chain.tokens), "x")
    fitted = prior.fit([merged(whole.tree).outcomes])
    tables, facts = make_tables(config, [stored(str(n)) for n in range(9)], lambda _: texts, fitted)
    assert len(facts) == 9 and tables["tokens"]["question_id"].n_unique() == 9
    assert set(reads.values()) == {2} and len(reads) == 9  # quantiles need a look before
    assert most <= 2  # the last one and the one that is being read


def test_rollouts_are_the_units_of_a_few_questions() -> None:
    chain = random_chain(3, length=10)
    job = OracleJob(chain, oracle_config(chain, rollouts=6, nodes=30, head=4, tail=2, draws=40))
    rollouts = oracle_rollouts(job)
    q = scored(job, teacher_of(chain, 4, 2.0, 0.5), rollouts, tree_of(job, rollouts))
    signals, scores = list(q.distillation), Scores(bootstrap=200)
    units = len(rollouts["correct"])
    assert make_pool([q] * 4, signals, scores, 0).units == 4 * units
    assert make_pool([q] * 5, signals, scores, 0).units == 5


def test_the_prior_of_very_many_nodes_is_that_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def question(nodes: int) -> Outcomes:
        mean = np.repeat(rng.beta(2, 2, nodes), 4)
        won = rng.binomial(16, np.clip(mean + rng.normal(0, 0.1, len(mean)), 0, 1)).astype(np.float64)
        n, p = np.full(len(won), 16.0), np.full(len(won), 0.25)
        tail = np.zeros(len(won), dtype=bool)
        return Outcomes(np.arange(nodes + 1) * 4, p, tail, n, won, np.full(nodes, 0.25), np.zeros(nodes))

    questions = [question(n) for n in (1500, 1, 700, 1800)]
    full = prior.fit(questions)
    monkeypatch.setattr(prior, "MOST_NODES", 1000)
    part = prior.fit(questions)
    likelihood = np.exp(np.concatenate([prior.log_likelihood(q, full.mu, full.kappa) for q in questions]))
    a, b = (float(np.log(likelihood @ p.weight).mean()) for p in (full, part))
    assert a - 0.02 < b < a  # nats a node; the one fitted to all nodes is the likeliest
    assert sum(len(rows) for rows in prior._fitted(questions)) == 1000
