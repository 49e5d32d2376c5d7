"""Stage 5: scores of nodes: unbiased inner products; cosines and signs by posterior simulation."""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from schemas.arrays import AnyArray
from schemas.config import Scores
from tasks.stages.protocol import Made, Work
from tasks.statistics.csr import Floats, owners, row_sums
from tasks.statistics.estimators import (
    Outcomes,
    PooledRounds,
    adjust_for_tail,
    estimate_covariance,
    estimate_linear,
    estimate_product,
    pool_rounds,
)
from tasks.statistics.prior import CONCENTRATIONS, Prior, responsibilities
from tasks.statistics.returns import Returns

K = TypeVar("K")

_LEAN, _ONE = 3, 0.9


class Posterior(NamedTuple):
    """Simulated success probabilities of one question's branches; one set serves every teacher and loss.

    weight: of a branch in sum_j P_j (.), [S, B]; Q: [S, B]; g_norm: |g|, [S, N]; null: the node's branches do not
    differ, [S, N]; seed: what it was simulated from.
    """

    weight: Floats
    Q: Floats
    g_norm: Floats
    null: npt.NDArray[np.bool_]
    seed: int


def simulate(outcomes: Outcomes, prior: Prior, temperature: float, samples: int, seed: int) -> Posterior:
    """Posterior simulation of Q at every node, under the prior of all nodes.

    A node's cell of the prior is sampled first, then its branches, which are Beta given the cell. Which tail tokens
    were sampled is uncertain too: their weights are simulated by the Bayesian bootstrap (Rubin 1981).

    Args:
        samples: number of simulations S.
        seed: 64-bit seed.
    """
    rng = np.random.default_rng(seed)
    offsets, owner, p = outcomes.offsets, owners(outcomes.offsets), outcomes.prob
    cumulative = np.cumsum(responsibilities(prior, outcomes), axis=1)
    u = rng.random((samples, len(cumulative))) * cumulative[:, -1]
    cell = np.empty((samples, len(cumulative)), dtype=np.int64)
    for node, column in enumerate(u.T):
        cell[:, node] = np.searchsorted(cumulative[node], column)
    a, b = prior.mu * prior.kappa, (1 - prior.mu) * prior.kappa
    null = prior.kappa[cell] == CONCENTRATIONS[-1]
    cell = cell[:, owner]
    Q = rng.beta(a[cell] + outcomes.successes, b[cell] + outcomes.draws - outcomes.successes)
    weight = np.broadcast_to(p, Q.shape).copy()
    tail = np.flatnonzero(outcomes.tail)
    if len(tail):
        mass = np.zeros_like(Q)
        mass[:, tail] = rng.exponential(size=(samples, len(tail)))
        total = row_sums(mass, offsets)[:, owner[tail]]
        weight[:, tail] = outcomes.tail_prob[owner[tail]] * mass[:, tail] / total
    g_sq = np.maximum(_product(outcomes, weight, Q, Q), 0.0)
    return Posterior(weight, Q, np.sqrt(g_sq) / temperature, null, seed)


def _product(outcomes: Outcomes, weight: Floats, x: Floats, y: Floats) -> Floats:
    """`estimate_product` of simulated x and y, [S, B] -> [S, N]."""
    p, one, undrawn = outcomes.prob, np.ones_like(outcomes.prob), outcomes.tail_size == 0
    V_x, V_y = (_simulated(outcomes, weight, v, one, outcomes.tail_prob) for v in (x, y))
    W_x, W_y = (_simulated(outcomes, weight, v, p, outcomes.tail_p_sq) for v in (x, y))
    rest = np.where(undrawn, outcomes.tail_p_sq, 0.0) + outcomes.p_sq
    return row_sums(weight * p * x * y, outcomes.offsets) - V_x * W_y - V_y * W_x + rest * V_x * V_y


def _simulated(outcomes: Outcomes, weight: Floats, Q: Floats, c: Floats, rest: Floats) -> Floats:
    """sum_j P_j Q_j c_j in every simulation, adjusted for the tail as in `adjust_for_tail`; [S, N]."""
    offsets = outcomes.offsets
    sampled = row_sums(np.where(outcomes.tail, weight * c, 0.0), offsets)
    share = (rest - sampled) / row_sums(outcomes.head_prob, offsets)
    return row_sums(weight * Q * c, offsets) + share * row_sums(outcomes.head_prob * Q, offsets)


def node_scores(
    rows: Outcomes,
    nodes: PooledRounds,
    distillation: Mapping[str, AnyArray],
    d_sq: Floats,
    posterior: Posterior,
    temperature: float,
    level: float,
    tail_limit: float,
) -> dict[str, AnyArray]:
    """The arrays of stage 5 for one signal.

    Args:
        rows: draws by node and round, for the unbiased estimates.
        nodes: draws by node, for the posterior.
        distillation: `d`, `d_head` and `teacher_prob` at the branches, `d_bar` at the rows, and returns of draws.
        d_sq: |d|^2 at the rows without the part that needs draws, [N].
        level: coverage of the intervals.
        tail_limit: largest teacher probability of a tail that was not drawn for which the advantage is reported.

    Returns:
        `p_positive` and `lfsr` are NaN where |d| = 0 or a node has a single branch; a cosine and its interval also
        where the branches more likely than not do not differ at all.
    """
    offsets, owner = rows.offsets, owners(rows.offsets)
    c = (np.asarray(distillation["d"]) - np.asarray(distillation["d_bar"])[owner]) / temperature
    # over the whole vocabulary sum_j P_j c_j = 0, so the tail's sum is minus the head's
    c_rest = -row_sums(rows.head_prob * c, offsets)
    returns = Returns.of(distillation)

    row_of_node = np.zeros(len(nodes.outcomes.offsets) - 1, dtype=np.int64)
    row_of_node[nodes.row] = np.arange(len(nodes.row))  # any row of the node
    linear = c[nodes.first], c_rest[row_of_node]
    simulated, norm_sq = simulate_products(nodes, posterior, linear, d_sq[row_of_node], returns, temperature)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.clip(simulated / (posterior.g_norm * np.sqrt(norm_sq)), -1.0, 1.0)
    has_signal = (norm_sq > 0).all(axis=0) & (np.diff(nodes.outcomes.offsets) >= 2)  # one branch: no difference
    differs = (~posterior.null).mean(axis=0)
    defined = has_signal & (differs >= 0.5) & np.isfinite(cosines).all(axis=0)
    low, high = interval(np.where(np.isfinite(cosines), cosines, 0.0), level)
    # a direction from the same draws as g agrees with its noise: without a difference between branches that is no sign
    even = (simulated == 0) if returns is None else (simulated == 0) | posterior.null
    positive = ((simulated > 0) & ~even).mean(axis=0) + 0.5 * even.mean(axis=0)
    signs = [((sign * simulated > 0) & ~posterior.null).mean(axis=0) for sign in (1, -1)]
    scores = {
        "cosine": np.where(defined, cosines.mean(axis=0), np.nan),
        "cosine_low": np.where(defined, low, np.nan),
        "cosine_high": np.where(defined, high, np.nan),
        "p_positive": np.where(has_signal, positive, np.nan),
        "p_differs": np.where(has_signal, differs, np.nan),
        "lfsr": np.where(has_signal, 1 - np.maximum(*signs), np.nan),
    }
    d_head, estimates = _estimates(rows, c, c_rest, np.asarray(distillation["d_head"]), d_sq, returns, temperature)
    return {
        **estimates,
        **{name: score[nodes.row] for name, score in scores.items()},
        "cosine_plain": plain_cosine(rows, d_head),
        "teacher_advantage": _advantage(rows, np.asarray(distillation["teacher_prob"]), tail_limit),
    }


def _advantage(rows: Outcomes, T: Floats, tail_limit: float) -> Floats:
    """sum_j (T_j - P_j) Q_j, [N]; NaN where the teacher puts more than the limit on a tail that was not drawn."""
    T_rest = np.maximum(1 - row_sums(np.where(rows.tail, 0.0, T), rows.offsets), 0.0)
    advantage = estimate_linear(rows, adjust_for_tail(rows, T / rows.prob - 1, T_rest - rows.tail_prob))
    return np.where((rows.tail_size > 0) | (T_rest <= tail_limit), advantage, np.nan)


def _estimates(
    rows: Outcomes,
    c: Floats,
    c_rest: Floats,
    d_head: Floats,
    d_sq: Floats,
    returns: Returns | None,
    temperature: float,
) -> tuple[Floats, dict[str, Floats]]:
    """d over the head's branches, and unbiased <g, d>, its variance over draws, and |d|^2.

    Args:
        c, c_rest: as in `node_scores`; like `d_head` and `d_sq`, without the part that needs draws.
        returns: of the draws; None where the loss needs none.
    """
    adjusted = adjust_for_tail(rows, c, c_rest)
    inner, noise = estimate_linear(rows, adjusted), estimate_covariance(rows, c, c, c_rest, c_rest)
    if returns is None:
        return d_head, {"inner": inner, "inner_noise": noise, "d_sq": d_sq}
    h = returns.mean(rows)
    inner = inner - estimate_product(rows, returns.with_outcome(rows))[0] / temperature**2
    of_h = estimate_product(rows, returns.with_itself(rows))[0] / temperature**2
    norm_sq = d_sq - 2 * estimate_linear(rows, adjusted, h) + of_h
    d_head = d_head - _head_gradient(rows, h) / temperature
    return d_head, {"inner": inner, "inner_noise": np.full_like(noise, np.nan), "d_sq": norm_sq}


def simulate_products(
    nodes: PooledRounds,
    posterior: Posterior,
    linear: tuple[Floats, Floats],
    d_sq: Floats,
    returns: Returns | None,
    temperature: float,
) -> tuple[Floats, Floats]:
    """<g, d> and |d|^2 in every simulation, [S, N] each; the latter is [1, N] where it needs no draws.

    Args:
        linear: c at the branches and its sum over each tail, as in `node_scores`, without the part that needs draws.
        d_sq: |d|^2 of that, [N].
        returns: of the draws, by row; None where the loss needs none.
    """
    outcomes, weight, Q = nodes.outcomes, posterior.weight, posterior.Q
    inner, norm_sq = _simulated(outcomes, weight, Q, *linear), d_sq[None]
    if returns is None:
        return inner, norm_sq
    h = returns.pooled(nodes).simulate(outcomes, Q, np.random.default_rng([posterior.seed, 1]))
    inner = inner - _product(outcomes, weight, Q, h) / temperature**2
    of_h = _product(outcomes, weight, h, h) / temperature**2
    return inner, np.maximum(norm_sq - 2 * _simulated(outcomes, weight, h, *linear) + of_h, 0.0)


def _head_gradient(outcomes: Outcomes, mean: Floats) -> Floats:
    """P (mean - its mean under P) over the head's branches, P renormalised there; 0 in the tail; [B]."""
    p = outcomes.head_prob / row_sums(outcomes.head_prob, outcomes.offsets)[owners(outcomes.offsets)]
    return p * (mean - row_sums(p * mean, outcomes.offsets)[owners(outcomes.offsets)])


def interval(cosines: Floats, level: float) -> tuple[Floats, Floats]:
    """Interval of each node's cosine from its simulations, [S, N] -> [N], [N].

    The prior has no preferred direction, but a teacher may be right, or wrong, nearly everywhere. So each end is taken
    under a prior tilted towards it, by (1 + cosine)^3 or (1 - cosine)^3, and cosines beyond .9 are treated as 1.
    """
    alpha = (1 - level) / 2
    order = np.argsort(cosines, axis=0)
    ascending = np.take_along_axis(cosines, order, axis=0)
    ends = []
    for lean, share in ((-1, alpha), (1, 1 - alpha)):
        mass = np.cumsum((1 + lean * ascending) ** _LEAN, axis=0)
        place = (mass < share * mass[-1]).sum(axis=0)
        ends.append(np.take_along_axis(ascending, np.minimum(place, len(mass) - 1)[None], axis=0)[0])
    low, high = ends
    return np.where(low < -_ONE, -1.0, low), np.where(high > _ONE, 1.0, high)


def plain_cosine(outcomes: Outcomes, d_head: Floats) -> Floats:
    """The uncorrected cosine of g_hat and d over the head's branches with P and T renormalised there, as in the paper.

    NaN with fewer than two head branches, where their success rates agree within 1e-4, and where d is 0.
    """
    offsets, head = outcomes.offsets, ~outcomes.tail
    g = _head_gradient(outcomes, outcomes.rate)
    g_sq, d_sq = row_sums(g * g, offsets), row_sums(d_head * d_head, offsets)
    rates = np.where(head, outcomes.rate, np.nan)
    starts = offsets[:-1]
    spread = np.fmax.reduceat(rates, starts) - np.fmin.reduceat(rates, starts) if len(starts) else np.empty(0)
    usable = (row_sums(head.astype(np.float64), offsets) >= 2) & (spread > 1e-4) & (g_sq > 0) & (d_sq > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.clip(row_sums(g * d_head, offsets) / np.sqrt(g_sq * d_sq), -1.0, 1.0)
    return np.where(usable, cosine, np.nan)


def make(work: Work) -> Made:
    """The scores of one question's nodes, for every requested signal."""
    made = make_alignment(
        work.read("trees"),
        {signal: work.read("distillation", signal) for signal in work.signals},
        Prior.of(work.read("prior")),
        work.config.scores,
        work.config.sampling.temperature,
        work.config.tree.tail_limit,
        work.reads.seed("posterior", "trees", work.question),
    )
    return dict(made.items())


def make_alignment(
    tree: Mapping[str, AnyArray],
    distillations: Mapping[K, Mapping[str, AnyArray]],
    prior: Prior,
    scores: Scores,
    temperature: float,
    tail_limit: float,
    seed: int,
) -> dict[K, dict[str, AnyArray]]:
    """Stage 5 of one question for several signals, by key."""
    rows, nodes = Outcomes.of(tree), pool_rounds(tree)
    posterior = simulate(nodes.outcomes, prior, temperature, scores.posterior, seed)
    return {
        key: node_scores(
            rows,
            nodes,
            d,
            np.asarray(d["d_sq"])[tree["node"]],
            posterior,
            temperature,
            scores.level,
            tail_limit,
        )
        for key, d in distillations.items()
    }
