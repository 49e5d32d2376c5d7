"""What stage 2 may look at, and what a round of it is: nodes, branches and draws, but no outcome."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from schemas.arrays import AnyArray
from schemas.config import Branching
from tasks.stages.trees.branches import Branches, split_head_and_tail
from tasks.statistics.csr import Floats, Ints
from tasks.statistics.design import leverage
from tasks.statistics.estimators import Outcomes
from tasks.statistics.streams import stream_seed, uniforms


@dataclass(frozen=True)
class Ground:
    """What is known of a question before any draw, all of it from the student.

    Attributes:
        seed, question: whose random streams these are.
        offsets: of the rollouts, [R+1].
        correct: the rollouts' verdicts, [R]; node choice may use them, estimates never do.
        by_position: `token_prob`, `entropy` and `leverage`, [T] each.
        distributions: streams next-token distributions [n, V] at increasing positions.
    """

    seed: int
    question: str
    offsets: Ints
    correct: npt.NDArray[np.bool_]
    by_position: Mapping[str, Floats]
    distributions: Callable[[Ints], Iterator[tuple[Ints, torch.Tensor]]]

    @property
    def leverage(self) -> Floats:
        """[T]."""
        return self.by_position["leverage"]

    def start(self, round_: int) -> float:
        """The uniform that starts the systematic sample of a round's nodes, independent of that of any other round."""
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


class Plan(NamedTuple):
    """Everything of a round but its outcomes: arrays as declared in `schemas.arrays.TREES`, of nodes and branches.

    A focused round is for single tokens alone: its nodes were chosen, not drawn, and have no weight in pooled scores.
    """

    arrays: dict[str, AnyArray]
    focused: bool = False

    @property
    def branches(self) -> int:
        return len(self.arrays["branch_token"])

    @property
    def draws(self) -> int:
        return int(self.arrays["draws"].sum())


class Drawn(NamedTuple):
    """A round with its outcomes; `tokens` were decoded for it."""

    plan: Plan
    successes: Ints
    truncations: Ints
    tokens: int

    @property
    def outcomes(self) -> Outcomes:
        """As stage 3 reads them."""
        return Outcomes.of({**self.plan.arrays, "successes": self.successes})


def plan_round(
    ground: Ground, nodes: Ints, inclusion: Floats, branching: Branching, draws: int, round_: int = 0
) -> Plan:
    """Branches and draws of chosen nodes.

    Args:
        nodes: increasing positions, [N].
        inclusion: the probabilities with which this round drew them, [N].
        draws: of each node.
        round_: which round this is; each samples the tail anew.
    """
    planned: list[Branches] = []
    p_sq: list[float] = []
    for positions, p in ground.distributions(nodes):
        p_sq += leverage(p)[1].tolist()
        planned += split_head_and_tail(branching, draws, p, ground.tail_uniforms(positions, branching.tail, round_))
    return Plan(
        {
            "node": nodes.astype(np.int64),
            "round": np.full(len(nodes), round_, dtype=np.int32),
            "inclusion": inclusion,
            "p_sq": np.array(p_sq, dtype=np.float64),
            "tail_prob": np.array([b.tail_prob for b in planned], dtype=np.float64),
            "branch_offsets": np.cumsum([0, *(len(b.token) for b in planned)]).astype(np.int64),
            "branch_token": concatenated([b.token for b in planned], np.int32),
            "branch_prob": concatenated([b.prob for b in planned], np.float64),
            "branch_tail": concatenated([b.tail for b in planned], np.bool_),
            "draws": concatenated([b.draws for b in planned], np.int32),
        }
    )


def assembled(ground: Ground, drawn: Sequence[Drawn]) -> dict[str, AnyArray]:
    """The arrays of a tree from all its rounds: a row for each node of each round, by position and then by round."""
    counting = max(1, sum(not d.plan.focused for d in drawn))
    rows: dict[str, AnyArray] = {
        name: np.concatenate([d.plan.arrays[name] for d in drawn])
        for name in ("node", "round", "inclusion", "p_sq", "tail_prob")
    }
    rows["share"] = np.concatenate(
        [np.full(len(d.plan.arrays["node"]), (not d.plan.focused) / counting) for d in drawn]
    )
    order = np.lexsort((rows["round"], rows["node"]))
    sizes = np.concatenate([np.diff(d.plan.arrays["branch_offsets"]) for d in drawn])
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes[order])]).astype(np.int64)
    branch = np.repeat(first[order] - offsets[:-1], sizes[order]) + np.arange(int(offsets[-1]))
    branches = {
        name: np.concatenate([d.plan.arrays[name] for d in drawn])[branch]
        for name in ("branch_token", "branch_prob", "branch_tail", "draws")
    }
    for name in ("successes", "truncations"):
        branches[name] = np.concatenate([getattr(d, name) for d in drawn])[branch].astype(np.int32)
    return {
        **ground.by_position,
        **{name: values[order] for name, values in rows.items()},
        "branch_offsets": offsets,
        **branches,
    }


def locate(offsets: Ints, position: int) -> tuple[int, int]:
    """Rollout and place within it, of an index into T."""
    rollout = int(np.searchsorted(offsets, position, side="right")) - 1
    return rollout, position - int(offsets[rollout])


def concatenated(parts: Sequence[AnyArray], dtype: npt.DTypeLike) -> AnyArray:
    """The parts in one array of this dtype, empty where there are none."""
    return np.asarray(np.concatenate([np.empty(0), *parts]), dtype=dtype)
