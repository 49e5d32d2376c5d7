"""The exact oracle: a tabular chain whose values, gradients and scores are known without sampling.

A chain has `length` steps over finite states; the next-token distribution and the next state depend on the state and
on the kind of position. After the last step one more token gives the outcome, FAIL or PASS, with a probability that
depends on the state. Dimension letters: K kinds, S states, V tokens with FAIL and PASS as the last two, L+1 depths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from schemas.config import Settings
from tasks.stages.distillation.losses import distillation_direction
from tasks.statistics.csr import Floats, Ints


@dataclass(frozen=True)
class Chain:
    """Tables of a chain: kind of each step [L], step [K, S, V - 2], next state [K, S, V - 2], success [S]."""

    kinds: Ints
    step: Floats
    follow: Ints
    success: Floats
    start: int = 0

    @property
    def length(self) -> int:
        """L, the number of steps before the outcome."""
        return len(self.kinds)

    @property
    def tokens(self) -> int:
        """V, the vocabulary size: ordinary tokens and two outcomes."""
        return int(self.step.shape[2]) + 2

    @property
    def passes(self) -> int:
        """The token PASS."""
        return self.tokens - 1

    @cached_property
    def rows(self) -> Floats:
        """Next-token distributions by kind of position, that of the outcome last: [K + 1, S, V]."""
        kinds, states, _ = self.step.shape
        out = np.zeros((kinds + 1, states, self.tokens))
        out[:-1, :, :-2] = self.step
        out[-1, :, -2], out[-1, :, -1] = 1 - self.success, self.success
        return out

    @cached_property
    def kind_at(self) -> Ints:
        """Row of `rows` at each depth, [L + 1]."""
        return np.append(self.kinds, len(self.step))

    @cached_property
    def values(self) -> Floats:
        """V at each depth and state, by backward recursion, [L + 1, S]."""
        values = np.empty((self.length + 1, len(self.success)))
        values[-1] = self.success
        for t in range(self.length - 1, -1, -1):
            k = self.kinds[t]
            values[t] = (self.step[k] * values[t + 1][self.follow[k]]).sum(axis=1)
        return values

    @cached_property
    def branch_values(self) -> Floats:
        """Q_j at each depth, state and token, [L + 1, S, V]; 0 for impossible outcomes."""
        out = np.zeros((self.length + 1, len(self.success), self.tokens))
        for t, k in enumerate(self.kinds):
            out[t, :, :-2] = self.values[t + 1][self.follow[k]]
        out[-1, :, -1] = 1.0
        return out

    @cached_property
    def gradients(self) -> Floats:
        """Ideal gradients g_j = P_j (Q_j - V), [L + 1, S, V]."""
        return np.asarray(self.rows[self.kind_at] * (self.branch_values - self.values[..., None]))

    @cached_property
    def transitions(self) -> Floats:
        """State transition probabilities by kind and state, [K, S, S]."""
        kinds, states, _ = self.step.shape
        out = np.zeros((kinds, states, states))
        for k in range(kinds):
            for s in range(states):
                np.add.at(out[k, s], self.follow[k, s], self.step[k, s])
        return out

    @cached_property
    def occupancy(self) -> Floats:
        """Probability of each state at each depth of the student's rollouts, [L + 1, S]."""
        out = np.zeros((self.length + 1, len(self.success)))
        out[0, self.start] = 1.0
        for t, k in enumerate(self.kinds):
            out[t + 1] = out[t] @ self.transitions[k]
        return out

    @cached_property
    def arrivals(self) -> Floats:
        """Probability of each final state, from each depth and state, [L + 1, S, S]."""
        states = len(self.success)
        out = np.empty((self.length + 1, states, states))
        out[-1] = np.eye(states)
        for t in range(self.length - 1, -1, -1):
            out[t] = self.transitions[self.kinds[t]] @ out[t + 1]
        return out

    def states(self, completion: Sequence[int]) -> list[int]:
        """The state before each token."""
        out, state = [], self.start
        for depth, token in enumerate(completion):
            out.append(state)
            if token < self.tokens - 2 and depth < self.length:
                state = int(self.follow[self.kinds[depth], state, token])
        return out


def walk(chain: Chain, depth: Ints, state: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Sample continuations to their ends: tokens and the states before them, [n, L + 1]; -1 before `depth`."""
    n = len(depth)
    tokens = np.full((n, chain.length + 1), -1)
    states = np.full((n, chain.length + 1), -1)
    cdf = np.cumsum(chain.rows, axis=-1)
    cdf /= cdf[..., -1:]
    state = np.array(state)
    for t in range(int(depth.min(initial=chain.length)), chain.length + 1):
        live = np.flatnonzero(depth <= t)
        s = state[live]
        token = (cdf[chain.kind_at[t], s] <= rng.random(len(live))[:, None]).sum(axis=1)
        tokens[live, t], states[live, t] = token, s
        if t < chain.length:
            state[live] = chain.follow[chain.kinds[t], s, token]
    return tokens, states


@dataclass(frozen=True)
class Scores:
    """Exact products at every depth and state, [L + 1, S] each."""

    inner: Floats
    g_sq: Floats
    d_sq: Floats


def exact_scores(chain: Chain, teacher: Chain, loss: Settings) -> Scores:
    """<g, d>, |g|^2 and |d|^2 at every depth and state."""
    d, g = directions(chain, teacher, loss), chain.gradients
    return Scores((g * d).sum(-1), np.square(g).sum(-1), np.square(d).sum(-1))


def directions(chain: Chain, teacher: Chain, loss: Settings) -> Floats:
    """Distillation directions at every depth and state, [L + 1, S, V]."""
    pairs, which = np.unique(np.stack([chain.kind_at, teacher.kind_at]), axis=1, return_inverse=True)
    with np.errstate(divide="ignore"):
        log_p, log_t = np.log(chain.rows[pairs[0]]), np.log(teacher.rows[pairs[1]])
    width = log_p.shape[-1]
    d = distillation_direction(
        loss, torch.from_numpy(log_p.reshape(-1, width)), torch.from_numpy(log_t.reshape(-1, width))
    )
    return np.asarray(d.numpy().reshape(log_p.shape)[which.reshape(-1)])


@dataclass(frozen=True)
class Sums:
    """Exact expectations over one rollout of the student."""

    inner: float
    g_sq: float
    d_sq: float

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.inner + other.inner, self.g_sq + other.g_sq, self.d_sq + other.d_sq)

    @property
    def alignment(self) -> float:
        """Pooled alignment (statistics of section 7)."""
        return self.inner / float(np.sqrt(self.g_sq * self.d_sq))

    @property
    def gain(self) -> float:
        """Pooled gain."""
        return self.inner / float(np.sqrt(self.d_sq))


def expected(chain: Chain, scores: Scores) -> dict[str, Sums]:
    """Expected sums over the L steps of a rollout, without the outcome: for all, correct and incorrect rollouts."""
    weights = {
        "all": chain.occupancy,
        "correct": chain.occupancy * chain.values,
        "incorrect": chain.occupancy * (1 - chain.values),
    }
    return {
        name: Sums(*(float((w * x)[:-1].sum()) for x in (scores.inner, scores.g_sq, scores.d_sq)))
        for name, w in weights.items()
    }
