"""Update gains: updates of signals on some questions against the policy gradient of others, without bias."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from schemas.config import Scores
from schemas.signals import Signal
from tasks.statistics.bootstrap import bootstrap_interval, resample
from tasks.statistics.csr import Floats


class Products(NamedTuple):
    """Inner products between the questions, [Q, Q] each: policy with update, update with itself, policy with itself."""

    policy_update: Floats
    update_update: Floats
    policy_policy: Floats

    @classmethod
    def of(cls, policy: Floats, update: Floats) -> "Products":
        """Of updates by question, [Q, U] each; of a question with itself there is none, where noise does not cancel."""
        products = (policy @ update.T, update @ update.T, policy @ policy.T)
        return cls(*(np.where(np.eye(len(policy), dtype=bool), 0.0, product) for product in products))

    def scores(self, counts: Floats) -> tuple[Floats, Floats]:
        """Update gain <G, D> / |D| and update cosine <G, D> / (|G| |D|), by weights of the questions [..., Q] -> [...].

        NaN where a squared norm, which is estimated between questions too, is not above 0.
        """
        pairs = np.square(counts.sum(axis=-1)) - np.square(counts).sum(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            inner, d_sq, g_sq = (
                np.einsum("...i,ij,...j->...", counts, product, counts, optimize=True) / pairs for product in self
            )
            gain = np.where(d_sq > 0, inner / np.sqrt(np.maximum(d_sq, 0)), np.nan)
            return gain, np.where(g_sq > 0, gain / np.sqrt(np.maximum(g_sq, 0)), np.nan)


def crossed(policy: Floats, update: Floats) -> Floats:
    """<G, D> of each question with the others, [Q]: the mean of it is that over all pairs of questions; NaN for one.

    Args:
        policy, update: by question, [Q, U] each.
    """
    others = len(policy) - 1
    itself = np.einsum("qu,qu->q", policy, update)
    both = policy @ update.sum(axis=0) + update @ policy.sum(axis=0)
    return np.asarray((both / 2 - itself) / others if others else np.full(1, np.nan), dtype=np.float64)


def update_columns(
    policy: Floats, updates: Mapping[Signal, Floats], carrying: int, scores: Scores, seed: int
) -> dict[Signal, dict[str, Any]]:
    """The columns of `schemas.tables.RANKS` on updates, by signal.

    Args:
        policy, updates: by question, [Q, U].
        carrying: questions with a policy gradient.
    """
    counts = resample(len(policy), scores.bootstrap, seed)
    out = {}
    for signal, update in updates.items():
        products = Products.of(policy, update)
        (gain, cosine), replicates = products.scores(np.ones(len(policy))), products.scores(counts)
        columns: dict[str, Any] = {}
        for name, value, of_replicates in zip(
            ("update_gain", "update_cosine"), (gain, cosine), replicates, strict=True
        ):
            undefined = not (carrying and np.isfinite(value)) or np.isnan(of_replicates).mean() > (1 - scores.level) / 2
            low, high = (np.nan, np.nan) if undefined else bootstrap_interval(of_replicates, carrying, scores.level)
            columns |= {name: np.nan if undefined else float(value), f"{name}_low": low, f"{name}_high": high}
        out[signal] = columns
    return out
