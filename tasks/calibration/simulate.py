"""Rollouts and draws of an oracle question from its tables: exactly distributed, and fast at thousands of tokens.

An estimator sees what a language model would provide: tokens, outcomes, and the probabilities of student and teachers.
Draws are not simulated token by token: from any prefix, the distribution of the final state is known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from schemas.arrays import AnyArray, Arrays
from schemas.config import Settings
from tasks.calibration.chain import Chain, walk
from tasks.stages.distillation.directions import divergences, head_direction
from tasks.stages.distillation.losses import distillation_direction, floored, kept_probability
from tasks.stages.distillation.returns import NO_RETURNS
from tasks.stages.trees.frame import SamplingFrame
from tasks.stages.trees.planner import Launches
from tasks.statistics.csr import Floats, Ints, owners
from tasks.statistics.design import leverage


@dataclass(frozen=True)
class Rolled:
    """Rollouts of a question: state of every position [T], and the sampling frame of stage 2."""

    chain: Chain
    arrays: dict[str, AnyArray]
    state: Ints
    frame: SamplingFrame

    @property
    def depth(self) -> Ints:
        """Place of each position in its rollout, [T]."""
        return np.arange(len(self.state)) % self.chain.length

    def position(self, launches: Launches) -> Ints:
        """The position that each launch precedes, [L]."""
        return np.asarray(self.arrays["offsets"][launches.rollout] + launches.depth)


def roll(chain: Chain, question: str, rollouts: int, seed: int, rng: np.random.Generator) -> Rolled:
    """Stage 1: rollouts of the student; the outcome token becomes the verifier's verdict."""
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
        "reward": correct.astype(np.float64),
    }
    frame = SamplingFrame(seed, question, arrays["tokens"], offsets, correct, by_position, distributions)
    return Rolled(chain, arrays, state, frame)


def draw(rolled: Rolled, launches: Launches, rng: np.random.Generator) -> dict[str, AnyArray]:
    """Outcomes of draws that start with forced tokens, in the layout "rounds"."""
    chain, depth, owner = rolled.chain, launches.depth, launches.owner
    after = chain.follow[chain.kinds[depth], rolled.state[rolled.position(launches)], launches.token]
    cdf = np.cumsum(chain.arrivals[depth + 1, after], axis=-1)[owner]
    end = (cdf[:, :-1] <= rng.random(len(owner))[:, None] * cdf[:, -1:]).sum(axis=1)
    success = rng.random(len(owner)) < chain.success[end]
    length = (chain.length - depth - 1)[owner]
    return {"success": success, "truncated": np.zeros(len(owner), dtype=bool), "length": length.astype(np.int32)}


def continue_freely(rolled: Rolled, launches: Launches, rng: np.random.Generator) -> dict[str, AnyArray]:
    """Continuations without forced tokens, in the layout "continuations"."""
    chain, owner = rolled.chain, launches.owner
    depth = launches.depth[owner]
    walked, _ = walk(chain, depth, rolled.state[rolled.position(launches)][owner], rng)
    tokens = [row[start:-1] for row, start in zip(walked, depth.tolist(), strict=True)]
    return {
        "success": walked[:, -1] == chain.passes,
        "truncated": np.zeros(len(owner), dtype=bool),
        "tokens": np.concatenate([np.empty(0, dtype=np.int32), *tokens]).astype(np.int32),
        "offsets": np.cumsum([0, *(len(t) for t in tokens)]).astype(np.int64),
    }


@dataclass(frozen=True)
class OracleTeaching:
    """A teacher's distributions at the rollouts' positions: stage 4 by table look-up."""

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
        flat = distillation_direction(self.loss, log_p.flatten(0, 1), log_t.flatten(0, 1))
        return np.asarray(flat.numpy().reshape(log_p.shape))

    @cached_property
    def _kept(self) -> dict[str, Floats]:
        log_p, log_t, _ = self._pair
        flat = kept_probability(self.loss, log_p.flatten(0, 1), log_t.flatten(0, 1))
        names = ("student_kept", "teacher_kept")
        return {name: x.numpy().reshape(log_p.shape[:2]) for name, x in zip(names, flat, strict=True)}

    def distillation(self, tree: Arrays) -> dict[str, AnyArray]:
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
            **{name: kept[pair, state] for name, kept in self._kept.items()},
            "kl": kl,
            "js": js,
            "teacher_token_prob": log_t.exp().numpy()[pair, state, sampled],
            "d_bar": d_bar[pair[node], state[node]],
            "d": d[pair[at], state[at], token],
            "d_head": head_direction(self.loss, p_branch, t_branch, tree["branch_offsets"], tree["branch_tail"]),
            "teacher_prob": t_branch.exp().numpy(),
            **NO_RETURNS,
        }
