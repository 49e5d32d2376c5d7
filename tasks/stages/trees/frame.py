"""The sampling frame: rollouts and student statistics that a planner may use before any draw."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from schemas.arrays import Arrays
from schemas.config import RunConfig
from tasks.engines.protocol import Scorer
from tasks.engines.scoring import View, score_blocks, tempered
from tasks.statistics.csr import Floats, Ints
from tasks.statistics.design import leverage
from tasks.statistics.streams import stream_seed, uniforms


@dataclass(frozen=True)
class SamplingFrame:
    """The positions that nodes are sampled from, with their statistics.

    Attributes:
        seed, question: identify the random streams.
        tokens, offsets: the rollouts, [T] and [R+1].
        correct: the rollouts' verdicts, [R]; node choice may use them, estimates never do.
        by_position: `token_prob`, `entropy` and `leverage`, [T] each.
        distributions: streams next-token distributions [n, V] at the given increasing positions.
    """

    seed: int
    question: str
    tokens: npt.NDArray[np.int32]
    offsets: Ints
    correct: npt.NDArray[np.bool_]
    by_position: Mapping[str, Floats]
    distributions: Callable[[Ints], Iterator[tuple[Ints, torch.Tensor]]]

    @property
    def leverage(self) -> Floats:
        """Leverage of each position, [T]."""
        return self.by_position["leverage"]

    def start(self, round_: int) -> float:
        """The uniform that starts a round's systematic sample of nodes, independent between rounds."""
        seed = stream_seed(self.seed, self.question, "nodes", round_)
        return float(uniforms(np.array([seed], dtype=np.uint64), 0)[0])

    def tail_uniforms(self, positions: Ints, n: int, round_: int) -> torch.Tensor:
        """Uniforms for the tail tokens of nodes, [positions, n]."""
        seeds = [
            stream_seed(self.seed, self.question, "tail", f"{rollout}:{depth}")
            for rollout, depth in (locate(self.offsets, position) for position in positions.tolist())
        ]
        columns = round_ * n + np.arange(n)
        return torch.from_numpy(uniforms(np.array(seeds, dtype=np.uint64)[:, None], columns))


def locate(offsets: Ints, position: int) -> tuple[int, int]:
    """Rollout and depth within it of an index into T."""
    rollout = int(np.searchsorted(offsets, position, side="right")) - 1
    return rollout, position - int(offsets[rollout])


def survey(student: Scorer, config: RunConfig, question: str, rollouts: Arrays) -> SamplingFrame:
    """The frame of a question's rollouts: the student scores every position once."""
    tokens, offsets = rollouts["tokens"], rollouts["offsets"]
    view = View(student, rollouts["prompt"].tolist())
    scoring = partial(score_blocks, block=config.engine.score_rows, group_tokens=config.engine.batch_tokens)

    def distributions(rows: Ints | None) -> Iterator[tuple[Ints, torch.Tensor]]:
        for positions, (log_probs,) in scoring([view], tokens, offsets, rows=rows):
            yield positions, tempered(log_probs, config.sampling.temperature)

    scores: dict[str, list[npt.NDArray[np.float64]]] = {"token_prob": [], "entropy": [], "leverage": []}
    for positions, p in distributions(None):
        picked = p[torch.arange(len(p)), torch.from_numpy(tokens[positions]).long().to(p.device)]
        scores["token_prob"].append(picked.double().cpu().numpy())
        scores["entropy"].append((-(p * p.log()).nan_to_num(0.0).sum(-1, dtype=torch.float64)).cpu().numpy())
        scores["leverage"].append(leverage(p)[0].cpu().numpy())
    by_position = {name: np.concatenate(parts) for name, parts in scores.items()}
    return SamplingFrame(config.seed, question, tokens, offsets, rollouts["correct"], by_position, distributions)
