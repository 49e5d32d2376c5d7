"""Rollouts and draws of an oracle question, by its tables: exact in law, and fast at thousands of tokens.

What an estimator sees is what a language model would give it: tokens, outcomes, and probabilities of student and
teachers. Draws are not walked token by token: the state at the end has a known law from any prefix.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from schemas.arrays import AnyArray
from schemas.config import Settings
from tasks.calibration.chain import Chain, directions, walk
from tasks.losses import floored
from tasks.ragged import Floats, Ints, owners
from tasks.trees.nodes import leverage
from tasks.trees.plan import Ground, Plan


@dataclass(frozen=True)
class Rolled:
    """Rollouts of a question: depth and state of every position [T], and what stage 2 may look at."""

    chain: Chain
    arrays: dict[str, AnyArray]
    state: Ints
    ground: Ground

    @property
    def depth(self) -> Ints:
        """Place of each position in its rollout, [T]."""
        return np.arange(len(self.state)) % self.chain.length


def roll(chain: Chain, question: str, rollouts: int, seed: int, rng: np.random.Generator) -> Rolled:
    """Stage 1: rollouts of the student, whose outcomes are the verifier's and not a token."""
    start = np.full(rollouts, chain.start)
    tokens, states = walk(chain, np.zeros(rollouts, dtype=np.int64), start, rng)
    correct = tokens[:, -1] == chain.passes
    token, state = tokens[:, :-1].reshape(-1), states[:, :-1].reshape(-1)
    kind = np.tile(chain.kinds, rollouts)
    p = torch.from_numpy(chain.rows)
    table = leverage(p.reshape(-1, chain.tokens))[0].reshape(p.shape[:2]).numpy()
    entropy = -(p * p.log()).nan_to_num(0.0).sum(-1).numpy()
    offsets = np.arange(rollouts + 1) * chain.length

    def distributions(nodes: Ints) -> Iterator[tuple[Ints, torch.Tensor]]:
        yield nodes, torch.from_numpy(chain.rows[kind[nodes], state[nodes]])

    by_position = {
        "token_prob": chain.rows[kind, state, token],
        "entropy": entropy[kind, state],
        "leverage": table[kind, state],
    }
    arrays = {
        "prompt": np.zeros(1, dtype=np.int32),
        "tokens": token.astype(np.int32),
        "offsets": offsets,
        "correct": correct,
        "truncated": np.zeros(rollouts, dtype=bool),
    }
    return Rolled(chain, arrays, state, Ground(seed, question, offsets, correct, by_position, distributions))


def draw(rolled: Rolled, plan: Plan, rng: np.random.Generator) -> tuple[Ints, int]:
    """Successes of every branch, and the tokens that decoding them would have taken."""
    chain, arrays = rolled.chain, plan.arrays
    node = arrays["node"][owners(arrays["branch_offsets"])]
    depth = rolled.depth[node]
    after = chain.follow[chain.kinds[depth], rolled.state[node], arrays["branch_token"]]
    branch = np.repeat(np.arange(plan.branches), arrays["draws"])
    law = np.cumsum(chain.arrivals[depth + 1, after], axis=-1)[branch]
    end = (law[:, :-1] <= rng.random(len(branch))[:, None] * law[:, -1:]).sum(axis=1)
    success = rng.random(len(branch)) < chain.success[end]
    tokens = int(((chain.length - depth - 1) * arrays["draws"]).sum())
    return np.bincount(branch, success, plan.branches).astype(np.int64), tokens


@dataclass(frozen=True)
class Taught:
    """A teacher's view of rollouts: stage 4 by table look-up."""

    rolled: Rolled
    teacher: Chain
    loss: Settings

    @cached_property
    def _d(self) -> Floats:
        return directions(self.rolled.chain, self.teacher, self.loss)[self.rolled.depth, self.rolled.state]

    @cached_property
    def _p(self) -> Floats:
        rolled = self.rolled
        return np.asarray(rolled.chain.rows[rolled.chain.kinds[rolled.depth], rolled.state])

    @cached_property
    def _t(self) -> Floats:
        rolled = self.rolled
        return np.asarray(self.teacher.rows[self.teacher.kinds[rolled.depth], rolled.state])

    def distillation(self, tree: dict[str, AnyArray]) -> dict[str, AnyArray]:
        """The arrays of stage 4."""
        from tasks.distillation import divergences, head_direction

        node, token = tree["node"], tree["branch_token"]
        row = node[owners(tree["branch_offsets"])]
        p, t = (torch.from_numpy(x) for x in (self._p, self._t))
        kl, js = divergences(p.log(), t.log())
        everywhere, sampled = np.arange(len(self.rolled.state)), self.rolled.arrays["tokens"]
        d_bar = (self._p * self._d).sum(-1)
        return {
            "d_sq": np.square(self._d).sum(-1),
            "d_token": self._d[everywhere, sampled] - d_bar,
            "kl": kl.numpy(),
            "js": js.numpy(),
            "teacher_token_prob": self._t[everywhere, sampled],
            "d_bar": d_bar[node],
            "d": self._d[row, token],
            "d_head": head_direction(
                self.loss,
                floored(p.log())[row, token],
                floored(t.log())[row, token],
                tree["branch_offsets"],
                tree["branch_tail"],
            ),
            "teacher_prob": self._t[row, token],
        }
