"""The prior of nodes: likelihoods against the closed form, a fit that is no worse than where it began, posteriors."""

from itertools import pairwise
from math import comb, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom

from tasks.statistics import prior as module
from tasks.statistics.estimators import Outcomes
from tasks.statistics.prior import CONCENTRATIONS, MEANS, Prior, fit, fitted, log_likelihood, responsibilities


def outcomes(nodes: list[list[tuple[int, int]]]) -> Outcomes:
    """Nodes of branches, (successes, draws) each."""
    flat = [branch for node in nodes for branch in node]
    sizes = [len(node) for node in nodes]
    successes, draws = (np.array([pair[i] for pair in flat], dtype=np.float64) for i in (0, 1))
    return Outcomes(
        np.cumsum([0, *sizes]).astype(np.int64),
        np.concatenate([np.empty(0), *(np.full(n, 1 / n) for n in sizes)]),
        np.zeros(len(flat), dtype=bool),
        draws,
        successes,
        np.array([1 / n for n in sizes]),
        np.zeros(len(sizes)),
    )


COUNTS = st.integers(2, 20).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
NODES = st.lists(st.lists(COUNTS, min_size=1, max_size=4), min_size=1, max_size=4)
GRID = np.array([0.1, 0.5, 0.9, 0.5]), np.array([0.5, 2.0, 64.0, 65536.0])


@given(NODES)
def test_the_likelihood_is_beta_binomial_but_for_the_counts_of_orders(nodes: list[list[tuple[int, int]]]) -> None:
    mu, kappa = GRID
    found = log_likelihood(outcomes(nodes), mu, kappa)
    for n, node in enumerate(nodes):
        for c, (m, k) in enumerate(zip(mu, kappa, strict=True)):
            expected = sum(betabinom.logpmf(s, d, m * k, (1 - m) * k) - log(comb(d, s)) for s, d in node)
            assert found[n, c] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(NODES)
def test_branches_of_a_node_may_stand_in_any_order(nodes: list[list[tuple[int, int]]]) -> None:
    mu, kappa = GRID
    one, other = (log_likelihood(outcomes(ns), mu, kappa) for ns in (nodes, [node[::-1] for node in nodes]))
    assert np.allclose(one, other)


def believed(prior: Prior, least: float, most: float) -> float:
    """Weight of concentrations within these ends."""
    return float(prior.weight[(prior.kappa >= least) & (prior.kappa <= most)].sum())


def test_without_any_node_of_several_branches_nothing_is_believed_but_that_nothing_differs() -> None:
    prior = fit([outcomes([[(1, 4)], [(2, 2)]]), outcomes([])])
    assert prior.weight.sum() == pytest.approx(1) and (prior.weight > 0).all()
    assert believed(prior, CONCENTRATIONS[-1], np.inf) > 0.9


def test_branches_that_differ_and_that_do_not_give_small_and_large_concentrations() -> None:
    rng = np.random.default_rng(0)
    far = outcomes([[(0, 30), (30, 30)], [(30, 30), (0, 30)]] * 100)
    near = outcomes([[(int(s), 30) for s in rng.binomial(30, 0.5, 2)] for _ in range(200)])
    small, large = fit([far]), fit([near])
    assert believed(small, 0, 1) > 0.8
    assert believed(large, 32, np.inf) > 0.8


def test_questions_may_be_cut_in_any_way() -> None:
    nodes = [[(i % 5, 4), ((2 * i) % 5, 4)] for i in range(12)]
    whole, cut = fit([outcomes(nodes)]), fit([outcomes(nodes[:5]), outcomes([]), outcomes(nodes[5:])])
    assert np.allclose(whole.weight, cut.weight)
    assert len(whole.mu) == len(MEANS) * len(CONCENTRATIONS)


def test_the_fit_makes_the_data_likelier_than_equal_weights_do() -> None:
    rng = np.random.default_rng(1)
    seen = outcomes([[(int(s), 10) for s in rng.binomial(10, rng.beta(1, 3), 3)] for _ in range(100)])
    prior = fit([seen])
    likelihood = np.exp(log_likelihood(seen, prior.mu, prior.kappa))
    even = np.full(len(prior.mu), 1 / len(prior.mu))
    assert np.log(likelihood @ prior.weight).sum() > np.log(likelihood @ even).sum() + 5


@given(NODES)
@settings(deadline=None, max_examples=20)
def test_posteriors_are_those_of_bayes(nodes: list[list[tuple[int, int]]]) -> None:
    prior = Prior(*GRID, np.array([0.1, 0.2, 0.3, 0.4]))
    found = responsibilities(prior, outcomes(nodes))
    joint = np.exp(log_likelihood(outcomes(nodes), prior.mu, prior.kappa)) * prior.weight
    assert np.allclose(found, joint / joint.sum(axis=1, keepdims=True))


def test_posteriors_of_very_many_draws_are_still_numbers() -> None:
    prior = Prior(*GRID, np.full(4, 0.25))
    found = responsibilities(prior, outcomes([[(0, 10**8), (10**8, 10**8)]]))
    assert np.isfinite(found).all() and found.sum() == pytest.approx(1) and found[0].argmax() == 0


def test_of_very_many_nodes_as_many_as_are_fitted_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_NODES", 50)
    questions = [outcomes([[(1, 2)] * (1 + i % 3) for i in range(n)]) for n in (60, 0, 3, 90)]
    kept = fitted(questions)
    assert sum(len(rows) for rows in kept) == 50
    for seen, rows in zip(questions, kept, strict=True):
        assert (np.diff(seen.offsets)[rows] > 1).all() and all(a < b for a, b in pairwise(rows.tolist()))
    again = fitted(questions)
    assert all(np.array_equal(a, b) for a, b in zip(kept, again, strict=True))


def test_a_prior_is_read_from_its_arrays() -> None:
    prior = Prior(*GRID, np.array([0.1, 0.2, 0.3, 0.4]))
    read = Prior.of({**prior._asdict(), "other": np.empty(0)})
    assert all(np.array_equal(a, b) for a, b in zip(prior, read, strict=True))
