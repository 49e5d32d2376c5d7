"""The distribution over all nodes of success probabilities of sibling branches: the prior for single nodes.

At most nodes the branches hardly differ, at a few they differ a lot. So the prior is fitted, not chosen: a node has
a mean mu and a concentration kappa, its branches' Q_j are Beta(mu kappa, (1 - mu) kappa), and the joint distribution of
(mu, kappa) over nodes is the nonparametric maximum-likelihood estimate on a grid (Kiefer and Wolfowitz 1956), by EM.
Nodes share information about how often differences are real, which keeps the error rates of their signs calibrated.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import betaln, expit, logsumexp

from schemas.arrays import AnyArray
from tasks.statistics.csr import Floats, Ints, row_sums
from tasks.statistics.estimators import Outcomes

MEANS = expit(np.linspace(-6, 6, 41))
CONCENTRATIONS = np.concatenate([2.0 ** np.arange(-1, 11), [4096.0, 65536.0]])
_ITERATIONS = 500
MOST_NODES = 20_000
"""Most nodes that the prior is fitted to; more would use more memory and hardly improve the fit."""
_NO_DIFFERENCE = 10.0
"""Pseudo-count of nodes added to the hypothesis of no difference at all (Stephens 2017)."""


class Prior(NamedTuple):
    """Cells of the grid with their weights: mu, kappa and weight, [C] each."""

    mu: Floats
    kappa: Floats
    weight: Floats

    @classmethod
    def of(cls, arrays: Mapping[str, AnyArray]) -> "Prior":
        """From a prior's arrays."""
        return cls(*(np.asarray(arrays[name], dtype=np.float64) for name in cls._fields))


def log_likelihood(outcomes: Outcomes, mu: Floats, kappa: Floats) -> Floats:
    """Log-likelihood of each node's draws in each cell, up to a constant of the node: beta-binomial, [N, C]."""
    a, b = mu * kappa, (1 - mu) * kappa
    s, n = outcomes.successes, outcomes.draws
    pairs, which = np.unique(np.stack([s, n]), axis=1, return_inverse=True)
    s, n = pairs[:, :, None]
    table = betaln(a + s, b + n - s) - betaln(a, b)  # counts repeat, so most are computed once
    return row_sums(table[which.reshape(-1)].T, outcomes.offsets).T


def fit(questions: Sequence[Outcomes]) -> Prior:
    """The prior of the nodes of all questions, by EM from equal weights; of very many nodes, a sample is used."""
    mu, kappa = (x.reshape(-1) for x in np.meshgrid(MEANS, CONCENTRATIONS, indexing="ij"))
    likelihood = np.concatenate(
        [
            log_likelihood(outcomes.at(rows), mu, kappa)
            for outcomes, rows in zip(questions, fitted(questions), strict=True)
        ]
    )
    likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    extra = np.where(kappa == CONCENTRATIONS[-1], _NO_DIFFERENCE / len(MEANS), 1e-3 / len(mu))
    weight = np.full(len(mu), 1 / len(mu))
    for _ in range(_ITERATIONS):
        weight = weight * (likelihood.T @ (1 / (likelihood @ weight))) + extra
        weight /= weight.sum()
    return Prior(mu, kappa, weight)


def fitted(questions: Sequence[Outcomes]) -> list[Ints]:
    """The nodes of each question that the prior is fitted to: those with several branches, `MOST_NODES` at most."""
    several = [np.flatnonzero(np.diff(outcomes.offsets) > 1) for outcomes in questions]
    ends = np.cumsum([len(rows) for rows in several])
    if ends[-1] <= MOST_NODES:
        return several
    # random, not every n-th: questions have similar numbers of nodes, in order of position
    kept = np.sort(np.random.default_rng(0).choice(ends[-1], MOST_NODES, replace=False))
    return [
        rows[kept[(kept >= end - len(rows)) & (kept < end)] - (end - len(rows))]
        for rows, end in zip(several, ends, strict=True)
    ]


def responsibilities(prior: Prior, outcomes: Outcomes) -> Floats:
    """Posterior probability of each cell at each node, [N, C]."""
    joint = log_likelihood(outcomes, prior.mu, prior.kappa) + np.log(prior.weight)
    return np.asarray(np.exp(joint - logsumexp(joint, axis=1, keepdims=True)))
