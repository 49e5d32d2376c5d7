"""A round of forced branches: nodes, tokens and numbers of draws; and the tree assembled from its outcomes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.arrays import NO_DRAWS, AnyArray
from schemas.config import Branching
from tasks.stages.protocol import Unit, joined
from tasks.stages.trees.branches import Branches, split_head_and_tail
from tasks.stages.trees.frame import SamplingFrame
from tasks.stages.trees.planner import CompletedRound, Launches
from tasks.statistics.csr import Floats, Ints, offsets_of, owners, rows_of
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
    """A tree of all its rounds without its draws: one row per node and round, ordered by position, then by round."""
    designs = [c.design for c in completed]
    unfocused = max(1, sum(not d.focused for d in designs))
    rows = {name: _of_all(designs, name) for name in ("node", "round", "inclusion", "p_sq", "tail_prob")}
    rows["share"] = np.concatenate([np.full(len(d.arrays["node"]), (not d.focused) / unfocused) for d in designs])
    order = _row_order(designs)
    branch, offsets = _branch_order(designs, order)
    branches = {
        name: _of_all(designs, name)[branch] for name in ("branch_token", "branch_prob", "branch_tail", "draws")
    }
    for name in ("successes", "truncations"):
        branches[name] = np.concatenate([getattr(c, name) for c in completed])[branch].astype(np.int32)
    return {
        **frame.by_position,
        **{name: values[order] for name, values in rows.items()},
        "branch_offsets": offsets,
        **branches,
    }


def tree_of(frame: SamplingFrame, completed: Sequence[Completed]) -> dict[str, AnyArray]:
    """The tree of all rounds, with the tokens of its draws, if they have any."""
    tree, designs = assemble(frame, completed), [c.design for c in completed]
    if any("tokens" not in c.outcome for c in completed):
        return {**tree, **NO_DRAWS}
    outcome = joined([c.outcome for c in completed], "continuations")
    branch, _ = _branch_order(designs, _row_order(designs))
    draw = rows_of(offsets_of(_of_all(designs, "draws")), branch)
    return {
        **tree,
        "draw_success": outcome["success"][draw],
        "draw_tokens": outcome["tokens"][rows_of(outcome["offsets"], draw)],
        "draw_offsets": offsets_of(np.diff(outcome["offsets"])[draw]),
    }


def _of_all(designs: Sequence[RoundDesign], name: str) -> AnyArray:
    return np.concatenate([design.arrays[name] for design in designs])


def _row_order(designs: Sequence[RoundDesign]) -> Ints:
    """The rows of all rounds by position, then by round, [N]."""
    return np.asarray(np.lexsort((_of_all(designs, "round"), _of_all(designs, "node"))))


def _branch_order(designs: Sequence[RoundDesign], rows: Ints) -> tuple[Ints, Ints]:
    """The branches of all rounds in this order of their rows, [B], with their offsets, [N+1]."""
    sizes = np.concatenate([np.diff(design.arrays["branch_offsets"]) for design in designs])
    return rows_of(offsets_of(sizes), rows), offsets_of(sizes[rows])


def concatenated(parts: Sequence[AnyArray], dtype: npt.DTypeLike) -> AnyArray:
    """The parts concatenated into one array of this dtype, empty if there are none."""
    return np.asarray(np.concatenate([np.empty(0), *parts]), dtype=dtype)
