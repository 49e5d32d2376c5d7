"""What one question tells about the weights of its tokens, under signals that compete for them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from schemas.arrays import AnyArray
from schemas.signals import Signal
from tasks.stages.aggregate.questions import NodeRows, QuestionScores
from tasks.stages.aggregate.selection import split
from tasks.stages.aggregate.token_rule_fit import weights
from tasks.stages.alignment import Posterior, simulate, simulate_products
from tasks.statistics.csr import Floats, Ints, owners, row_sums
from tasks.statistics.estimators import Outcomes, PooledRounds, adjust_for_tail, estimate_linear, pool_rounds
from tasks.statistics.prior import Prior


class Setting(NamedTuple):
    """How success is simulated: the prior of all nodes, the temperature of the draws, and the number of simulations."""

    prior: Prior
    temperature: float
    samples: int


@dataclass(frozen=True)
class Evidence:
    """Numbers of one question under K signals.

    Attributes:
        d_sq: |d|^2 of all positions, [K, T].
        inner, noise: unbiased <g, d> of each node and round, and its variance over draws, [K, N].
        node, weight: its position, and how many positions it stands for, [N].
        rollouts: their number.
        carries: whether some node's draws have differing outcomes.
    """

    d_sq: Floats
    inner: Floats
    noise: Floats
    node: Ints
    weight: Floats
    rollouts: int
    carries: bool

    @classmethod
    def of(cls, q: QuestionScores, signals: Sequence[Signal]) -> "Evidence":
        """Of a question."""
        return cls(
            np.stack([np.nan_to_num(np.asarray(q.distillation[s]["d_sq"], dtype=np.float64)) for s in signals]),
            np.stack([np.nan_to_num(np.asarray(q.alignment[s]["inner"], dtype=np.float64)) for s in signals]),
            np.stack([np.asarray(q.alignment[s]["inner_noise"], dtype=np.float64) for s in signals]),
            np.asarray(q.tree["node"], dtype=np.int64),
            q.weight,
            len(q.rollouts["correct"]),
            bool(((q.weight > 0) & q.open).any()),
        )

    def sums(self, chosen: Ints, w: Floats) -> Floats:
        """Estimate of sum w <g, d>, and sum w^2 |d|^2, [2], where each position follows one signal.

        Args:
            chosen: which signal, [T].
            w: weights, [T]; 0 where there is none.
        """
        inner = np.take_along_axis(self.inner, chosen[self.node][None], axis=0)[0]
        of_signal = np.take_along_axis(self.d_sq, chosen[None], axis=0)[0]
        return np.array([(self.weight * w[self.node] * inner).sum(), (w**2 * of_signal).sum()])


class Drawn(NamedTuple):
    """Simulated <g, d> / |d|^2 at the nodes with several branches: their positions [n], and the ratio [K, S, n]."""

    node: Ints
    ratio: Floats

    def of(self, chosen: Ints) -> Floats:
        """The simulated ratio of the signal that each node's position follows, [S, n]."""
        ratio: Floats = np.take_along_axis(self.ratio, chosen[self.node][None, None], axis=0)[0]
        return ratio


def posterior(
    q: QuestionScores, tree: Mapping[str, AnyArray], signals: Sequence[Signal], setting: Setting, seed: int
) -> Drawn:
    """Posterior of the nodes given the draws of a tree, or of a part of them.

    One simulation of the branches' success serves all signals, so that their differences are simulated too.
    """
    nodes = pool_rounds(tree)
    rows = Outcomes.of(tree)
    simulated = simulate(nodes.outcomes, setting.prior, setting.temperature, setting.samples, seed)
    place = np.unique(np.asarray(tree["node"], dtype=np.int64))
    branches = np.diff(nodes.outcomes.offsets)
    norms = np.stack([np.asarray(q.distillation[s]["d_sq"], dtype=np.float64)[place] for s in signals])
    told = (branches >= 2) & (norms > 0).any(axis=0)
    ratio = []
    for signal, d_sq in zip(signals, norms, strict=True):
        inner = _inner(nodes, rows, simulated, q.distillation[signal], setting.temperature)
        ratio.append(inner[:, told] / np.where(d_sq > 0, d_sq, np.inf)[told])
    return Drawn(place[told], np.stack(ratio))


def _inner(
    nodes: PooledRounds, rows: Outcomes, simulated: Posterior, d: Mapping[str, AnyArray], temperature: float
) -> Floats:
    """<g, d> of each node in every simulation, [S, nodes]."""
    row_of_node = np.zeros(len(nodes.outcomes.offsets) - 1, dtype=np.int64)
    row_of_node[nodes.row] = np.arange(len(nodes.row))  # any row of the node
    c, c_rest = _centred(rows, d, temperature)
    linear = c[nodes.first], c_rest[row_of_node]
    return simulate_products(nodes, simulated, linear, np.zeros(len(row_of_node)), None, temperature)[0]


def _centred(rows: Outcomes, d: Mapping[str, AnyArray], temperature: float) -> tuple[Floats, Floats]:
    """d - sum_j P_j d_j at the branches, [B], and its sum over each tail, [N], as in stage 5."""
    c = (np.asarray(d["d"]) - np.asarray(d["d_bar"])[owners(rows.offsets)]) / temperature
    return c, -row_sums(rows.head_prob * c, rows.offsets)


class Plan(NamedTuple):
    """How the positions of a question are weighted.

    Attributes:
        chosen: which signal each follows, [T].
        estimate: expected <g, d> / |d|^2 of that, by the rule, times `scale`, [T]; NaN where not known.
        scale: what such a ratio is multiplied by to be a weight.
        mask: weights are 1 where they would be above 0.
    """

    chosen: Ints
    estimate: Floats
    scale: float
    mask: bool


def replays(
    q: QuestionScores, signals: Sequence[Signal], plan: Plan, setting: Setting, seed: int
) -> Iterator[tuple[Floats, Mapping[str, AnyArray]]]:
    """Weights [T] by half of the draws at the nodes and by the rule elsewhere, with the tree of the other half."""
    rng = np.random.default_rng(seed)
    halves = split(q.tree, rng)
    for selecting, scoring in (halves, halves[::-1]):
        drawn = posterior(q, selecting, signals, setting, int(rng.integers(2**63)))
        w = np.nan_to_num(weights(plan.estimate, plan.mask))
        w[drawn.node] = weights(drawn.of(plan.chosen).mean(axis=0) * plan.scale, plan.mask)
        yield w, scoring


def replayed(
    q: QuestionScores, signals: Sequence[Signal], evidence: Evidence, plan: Plan, setting: Setting, seed: int
) -> tuple[Floats, float]:
    """`Evidence.sums` of weights that follow the draws at the nodes, [2], and the number of positions with a weight.

    The half of the draws that makes a node's weight does not score it. The nodes' own weights count once each, those of
    the rule for all other positions.
    """
    merged = NodeRows(q)
    by_rule = np.nan_to_num(weights(plan.estimate, plan.mask))
    start = evidence.sums(plan.chosen, by_rule)
    of_signal = np.take_along_axis(evidence.d_sq, plan.chosen[None], axis=0)[0]
    out, kept = np.zeros(2), 0.0
    for w, scoring in replays(q, signals, plan, setting, seed):
        inner = _unbiased(q, signals, scoring, setting.temperature)
        of_node = np.nan_to_num(merged.mean(np.take_along_axis(inner, plan.chosen[evidence.node][None], axis=0)[0]))
        out += [start[0] + ((w - by_rule)[merged.node] * of_node).sum(), (w**2 * of_signal).sum()]
        kept += float((w > 0).sum())
    return out / 2, kept / 2


def _unbiased(q: QuestionScores, signals: Sequence[Signal], tree: Mapping[str, AnyArray], temperature: float) -> Floats:
    """<g, d> without bias from a tree's draws, [K, N]."""
    rows = Outcomes.of(tree)
    centred = [_centred(rows, q.distillation[signal], temperature) for signal in signals]
    with np.errstate(divide="ignore", invalid="ignore"):  # a branch may have no draw in a half of them
        return np.stack([estimate_linear(rows, adjust_for_tail(rows, c, c_rest)) for c, c_rest in centred])
