"""Stage 6 of many questions: quantiles in one pass, one question held at a time, a prior of a sample of nodes."""

import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flows.command.configuration import checked
from schemas.arrays import AnyArray
from schemas.config import AdaptiveTree, Grouping, ReverseKL, Scores
from schemas.pipeline import diagnosis_stages
from schemas.signals import Signal
from tasks.calibration.simulate import OracleTeaching, roll
from tasks.calibration.suite import Family, make_question
from tasks.outputs.diagnosis import make_outputs
from tasks.run.session import start_session
from tasks.run.shells import run_stage
from tasks.stages.aggregate.pooling import make_pool
from tasks.stages.aggregate.predictors import AtNodes, predictor_rows
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.aggregate.selection import selection_rows, sum_choices
from tasks.stages.aggregate.tables import summary_table, tokens_table
from tasks.stages.ideal import ideal_gradients
from tasks.statistics import prior
from tasks.statistics.estimators import Outcomes, pool_rounds
from tasks.statistics.quantiles import Histogram
from tasks.store.codec import Artefact
from tasks.store.store import Store
from tests.helpers.oracle import (
    Given,
    OracleModels,
    oracle_config,
    oracle_rollouts,
    oracle_tree,
    random_chain,
    scored_tree,
    teacher_of,
)
from tests.stages.test_estimators import scored
from tests.stages.test_planners import grown


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


def test_questions_are_gone_through_one_by_one(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many questions and signals there are: the artefacts of one are held, each read at most twice."""
    job = start_session(checked(settings))
    ids = job.keys.questions
    for stage in diagnosis_stages():
        run_stage(job, stage, ids)
    reads: Counter[str] = Counter()
    most = 0
    need = Store.need

    class Kept(dict[str, AnyArray]):
        """Arrays that can be watched."""

    def watched(store: Store, stage: str, key: str) -> Artefact:
        nonlocal most
        found = need(store, stage, key)
        reads[f"{stage}/{key}"] += 1
        kept = Kept(found.arrays)
        finalizers.append(weakref.finalize(kept, lambda: None))
        most = max(most, sum(f.alive for f in finalizers))
        return replace(found, arrays=kept)

    finalizers: list[weakref.finalize[Any, Any]] = []
    monkeypatch.setattr(Store, "need", watched)
    outputs = dict(make_outputs(job, ids, {}).files)
    assert {"tokens.parquet", "report.html"} <= set(outputs)
    of_question = len(job.keys.artefacts(ids[0]))
    assert most <= of_question + 1  # the prior is held beside them
    shown = 4
    assert sum(n > 2 for n in reads.values()) <= shown * of_question and max(reads.values()) <= 3


def oracle_question() -> tuple[QuestionScores, list[Signal]]:
    chain = random_chain(3, length=10)
    models = OracleModels(chain, oracle_config(chain, rollouts=6, nodes=30, head=4, tail=2, draws=40))
    rollouts = oracle_rollouts(models)
    q = scored(models, teacher_of(chain, 4, 2.0, 0.5), rollouts, oracle_tree(models, rollouts))
    return q, list(q.distillation)


def alike(q: QuestionScores, won: bool = False) -> QuestionScores:
    """The question with draws that all end alike."""
    tree = {**q.tree, "successes": np.asarray(q.tree["draws"]) * won}
    ideal = ideal_gradients(Outcomes.of(tree), 1.0)
    still = {
        s: {**a, "inner": np.zeros_like(a["inner"]), "cosine_plain": np.full_like(a["inner"], np.nan)}
        for s, a in q.alignment.items()
    }
    return replace(q, tree=tree, ideal=ideal, alignment=still)


def test_units_are_questions_that_carry_signal_or_their_rollouts() -> None:
    q, signals = oracle_question()
    scores, carrying = Scores(bootstrap=200, groupings=[]), {}
    for n, closed in ((4, 0), (4, 6), (5, 0), (5, 6)):
        pool = make_pool([q] * n + [alike(q)] * closed, signals, scores, 0)
        carrying[n, closed] = int(pool.carrying[signals[0]][0])
        assert np.isfinite(pool.estimate(signals[0], 0, "gain")).all()
    assert carrying[5, 0] == carrying[5, 6] == 5
    assert 5 < carrying[4, 0] == carrying[4, 6] <= 4 * 6  # rollouts, those with draws that differ


@pytest.mark.parametrize("won", [True, False])
def test_no_score_is_zero_where_all_draws_end_alike(won: bool) -> None:
    q, signals = oracle_question()
    row = summary_table(make_pool([alike(q, won)] * 6, signals, Scores(bootstrap=200), 0)).row(0, named=True)
    assert row["carrying"] == 0 and row["resolved"] is False
    for name in ("alignment", "gain", "mean_cosine"):
        assert [row[f"{name}{end}"] for end in ("", "_low", "_high")] == [None] * 3


def test_a_group_in_which_few_questions_carry_goes_by_their_rollouts() -> None:
    """However many questions carry in the run as a whole; more questions never tell less of a group."""
    q, signals = oracle_question()
    scores = Scores(bootstrap=400, groupings=[Grouping(by="difficulty", bins=2)])
    half = np.arange(len(q.rollouts["correct"]))
    easy, hard = (replace(q, rollouts={**q.rollouts, "correct": half < n}) for n in (5, 1))
    few = make_pool([easy] * 3, signals, scores, 0)
    many = make_pool([easy] * 3 + [hard] * 6, signals, scores, 0)
    place = [p[1] for p in many.places[signals[0]]].index("50-100 %")
    assert many.carrying[signals[0]].tolist()[0] == 9
    assert many.carrying[signals[0]][place] == few.carrying[signals[0]][place] > 5
    for score in ("alignment", "gain"):
        assert np.isfinite(many.estimate(signals[0], place, score)).all()
    value, low, high = many.difference(signals[0], place, signals[0], place - 1, "gain")
    assert np.isfinite(value) and np.isnan([low, high]).all()  # not paired


def test_tables_agree_on_the_gain_of_all_tokens() -> None:
    """Also where few rollouts hold a node, and nodes are no sample, as under windows."""
    q, signals = oracle_question()
    few = np.flatnonzero(q.rollout_of_position[q.tree["node"]] < 2)
    sizes = np.diff(q.tree["branch_offsets"])
    branch = np.isin(np.repeat(np.arange(len(sizes)), sizes), few)
    tree = {
        name: values[few] if len(values) == len(sizes) else values[branch] if len(values) == sizes.sum() else values
        for name, values in q.tree.items()
    }
    tree |= {
        "branch_offsets": np.append(0, np.cumsum(sizes[few])),
        "share": np.ones(len(few)),
        "inclusion": np.ones(len(few)),
    }
    fitted = prior.fit([pool_rounds(tree).outcomes])
    d = {
        s: {n: v[few] if len(v) == len(sizes) else v[branch] if len(v) == sizes.sum() else v for n, v in x.items()}
        for s, x in q.distillation.items()
    }
    part = replace(scored_tree(Given(q.rollouts, tree, d)), sampled=False)
    summary = summary_table(make_pool([part] * 6, signals, Scores(bootstrap=200), 0)).row(0, named=True)
    sums = np.stack([sum_choices(part, signals, fitted, Scores(), 1.0, 1e-3, seed) for seed in range(40)])
    found = np.mean([selection_rows(s[None], signals, Scores(bootstrap=200), 0)[0]["gain"] for s in sums])
    assert found == pytest.approx(summary["gain"], rel=0.05)


def test_a_pooled_gain_is_that_of_a_rollout() -> None:
    q, signals = oracle_question()
    rows = [summary_table(make_pool([q] * n, signals, Scores(bootstrap=200), 0)).rows(named=True) for n in (6, 24)]
    for few, many in zip(*rows, strict=True):
        assert (few["group"], few["bin"]) == (many["group"], many["bin"])
        assert few["gain"] is None or few["gain"] == pytest.approx(many["gain"])


def test_a_node_counts_once_however_many_rounds_drew_it() -> None:
    """Against the table of nodes; those that were drawn for their own sake alone are left out."""
    q = make_question(Family(64, "clear", "even"), 0, 0)
    rolled = roll(q.student, "q", 8, 0, np.random.default_rng(0))
    tree, _ = grown(AdaptiveTree(draws=8192, target="tokens"), rolled, np.random.default_rng(3))
    tree["share"] = np.where(tree["node"] == tree["node"][0], 0.0, tree["share"])
    signal = Signal("fair", "none", "reverse_kl")
    d = OracleTeaching(rolled, q.teachers["fair"], ReverseKL()).distillation(tree)
    scores = scored_tree(Given(rolled.arrays, tree, {signal: d}))
    row = summary_table(make_pool([scores], [signal], Scores(bootstrap=200), 0)).row(0, named=True)
    tokens = tokens_table(scores, [signal], lambda ids: {i: str(i) for i in ids}, 0.95)
    counted = tokens.filter(tokens["weight"] > 0)
    predictors = predictor_rows({signal: [AtNodes.of(scores, signal)]}, Scores(bootstrap=200), 0)
    assert {p["nodes"] for p in predictors if p["predictor"] == "entropy"} == {row["nodes"]}
    assert row["nodes"] == counted.height < tokens.height < len(tree["node"])
    assert row["mean_cosine"] == pytest.approx(counted["cosine_plain"].mean())


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
    places = np.concatenate(prior.fitted([question(64) for _ in range(100)]))
    assert len(places) == 1000 and len(np.unique(places)) == 64  # of all places within the questions
    assert sum(len(rows) for rows in prior.fitted(questions)) == 1000
