"""Rollouts and draws of an oracle question, by its tables: exact in law, and fast at thousands of tokens.

What an estimator sees is what a language model would give it: tokens, outcomes, and probabilities of student and
teachers. Draws are not walked token by token: the state at the end has a known law from any prefix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from schemas.arrays import AnyArray
from schemas.config import Settings
from tasks.calibration.chain import Chain, walk
from tasks.stages.distillation.gradients import divergences, head_direction
from tasks.stages.distillation.losses import descent, floored
from tasks.stages.trees.rounds import Ground, Plan
from tasks.stages.trees.windows import Window
from tasks.statistics.csr import Floats, Ints, owners
from tasks.statistics.design import leverage


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
    def _pair(self) -> tuple[torch.Tensor, torch.Tensor, Ints]:
        """log P and log T by pair of kinds, [pairs, S, V], and the pair at each position, [T]."""
        chain = self.rolled.chain
        pairs, which = np.unique(np.stack([chain.kinds, self.teacher.kinds]), axis=1, return_inverse=True)
        log_p, log_t = (torch.from_numpy(c.rows[k]).log() for c, k in zip((chain, self.teacher), pairs, strict=True))
        return log_p, log_t, which.reshape(-1)[self.rolled.depth]

    @cached_property
    def _d(self) -> Floats:
        log_p, log_t, _ = self._pair
        flat = descent(self.loss, log_p.flatten(0, 1), log_t.flatten(0, 1))
        return np.asarray(flat.numpy().reshape(log_p.shape))

    def distillation(self, tree: dict[str, AnyArray]) -> dict[str, AnyArray]:
        """The arrays of stage 4."""
        log_p, log_t, pair = self._pair
        state, sampled = self.rolled.state, self.rolled.arrays["tokens"]
        kl, js = (x.numpy()[pair, state] for x in divergences(log_p, log_t))
        d, d_bar = self._d, (log_p.exp().numpy() * self._d).sum(-1)
        node, token = tree["node"], tree["branch_token"]
        at = node[owners(tree["branch_offsets"])]
        p_branch, t_branch = (floored(x)[pair[at], state[at], token] for x in (log_p, log_t))
        return {
            "d_sq": np.square(d).sum(-1)[pair, state],
            "d_token": d[pair, state, sampled] - d_bar[pair, state],
            "kl": kl,
            "js": js,
            "teacher_token_prob": log_t.exp().numpy()[pair, state, sampled],
            "d_bar": d_bar[pair[node], state[node]],
            "d": d[pair[at], state[at], token],
            "d_head": head_direction(self.loss, p_branch, t_branch, tree["branch_offsets"], tree["branch_tail"]),
            "teacher_prob": t_branch.exp().numpy(),
        }


def continue_windows(
    rolled: Rolled, launched: Sequence[Window], rng: np.random.Generator
) -> tuple[list[Ints], npt.NDArray[np.bool_], int]:
    """Continuations of every window, one after another: their tokens, their outcomes, and the tokens decoded."""
    chain, draws = rolled.chain, [w.draws for w in launched]
    depth = np.repeat([w.depth for w in launched], draws)
    place = np.repeat([int(rolled.arrays["offsets"][w.rollout]) + w.depth for w in launched], draws)
    tokens, _ = walk(chain, depth, rolled.state[place], rng)
    return (
        [row[start:-1] for row, start in zip(tokens, depth.tolist(), strict=True)],
        tokens[:, -1] == chain.passes,
        int((chain.length - depth).sum()),
    )
