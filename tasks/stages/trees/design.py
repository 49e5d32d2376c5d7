"""A round of forced branches: nodes, tokens and numbers of draws; and the tree assembled from its outcomes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.arrays import AnyArray
from schemas.config import Branching
from tasks.stages.protocol import Unit
from tasks.stages.trees.branches import Branches, split_head_and_tail
from tasks.stages.trees.frame import SamplingFrame
from tasks.stages.trees.planner import CompletedRound, Launches
from tasks.statistics.csr import Floats, Ints, owners
from tasks.statistics.design import leverage
from tasks.statistics.estimators import Outcomes


@dataclass(frozen=True)
class RoundDesign:
    """A round without its outcomes.

    Attributes:
        arrays: of nodes and branches, as declared in `schemas.arrays.TREES`.
        focused: the round serves single tokens only: its nodes were chosen, not sampled, and have no weight in pooled
            scores.
    """

    arrays: dict[str, AnyArray]
    focused: bool = False

    def launches(self, offsets: Ints) -> Launches:
        """One launch per branch."""
        position = self.arrays["node"][owners(self.arrays["branch_offsets"])]
        rollout = np.searchsorted(offsets, position, side="right") - 1
        return Launches(rollout, position - offsets[rollout], self.arrays["branch_token"], self.arrays["draws"])

    def units(self, offsets: Ints, most: int) -> list[Unit]:
        """Its draws split between rollouts where possible, else between nodes."""
        starts = self.arrays["branch_offsets"].tolist()
        draws = np.add.reduceat(self.arrays["draws"], starts[:-1]).tolist() if len(starts) > 1 else []
        rollout = np.searchsorted(offsets, self.arrays["node"], side="right").tolist()
        of_rollout: dict[int, int] = {}
        for r, n in zip(rollout, draws, strict=True):
            of_rollout[r] = of_rollout.get(r, 0) + n
        out: list[Unit] = []
        first = count = 0
        for node, n in enumerate(draws):
            starts_rollout = node == 0 or rollout[node] != rollout[node - 1]
            whole = of_rollout[rollout[node]] if starts_rollout else n
            if count and count + min(whole, most) > most:
                out.append(Unit(starts[first], starts[node]))
                first, count = node, 0
            count += n
        if draws:
            out.append(Unit(starts[first], starts[-1]))
        return out


Completed = CompletedRound[RoundDesign]


def observed(completed: Completed) -> Outcomes:
    """Outcomes of a round's draws, as stage 3 reads them."""
    return Outcomes.of({**completed.design.arrays, "successes": completed.successes})


def design_round(
    frame: SamplingFrame, nodes: Ints, inclusion: Floats, branching: Branching, draws: int, round_: int = 0
) -> RoundDesign:
    """Branches and draws of chosen nodes.

    Args:
        nodes: increasing positions, [N].
        inclusion: their inclusion probabilities in this round, [N].
        draws: per node.
        round_: index of this round; each samples the tail anew.
    """
    planned: list[Branches] = []
    p_sq: list[float] = []
    for positions, p in frame.distributions(nodes):
        p_sq += leverage(p)[1].tolist()
        planned += split_head_and_tail(branching, draws, p, frame.tail_uniforms(positions, branching.tail, round_))
    return RoundDesign(
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


def assemble(frame: SamplingFrame, completed: Sequence[Completed]) -> dict[str, AnyArray]:
    """The arrays of a tree from all its rounds: one row per node and round, ordered by position, then by round."""
    designs = [c.design for c in completed]
    unfocused = max(1, sum(not d.focused for d in designs))
    rows: dict[str, AnyArray] = {
        name: np.concatenate([d.arrays[name] for d in designs])
        for name in ("node", "round", "inclusion", "p_sq", "tail_prob")
    }
    rows["share"] = np.concatenate([np.full(len(d.arrays["node"]), (not d.focused) / unfocused) for d in designs])
    order = np.lexsort((rows["round"], rows["node"]))
    sizes = np.concatenate([np.diff(d.arrays["branch_offsets"]) for d in designs])
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes[order])]).astype(np.int64)
    branch = np.repeat(first[order] - offsets[:-1], sizes[order]) + np.arange(int(offsets[-1]))
    branches = {
        name: np.concatenate([d.arrays[name] for d in designs])[branch]
        for name in ("branch_token", "branch_prob", "branch_tail", "draws")
    }
    for name in ("successes", "truncations"):
        branches[name] = np.concatenate([getattr(c, name) for c in completed])[branch].astype(np.int32)
    return {
        **frame.by_position,
        **{name: values[order] for name, values in rows.items()},
        "branch_offsets": offsets,
        **branches,
    }


def concatenated(parts: Sequence[AnyArray], dtype: npt.DTypeLike) -> AnyArray:
    """The parts concatenated into one array of this dtype, empty if there are none."""
    return np.asarray(np.concatenate([np.empty(0), *parts]), dtype=dtype)
