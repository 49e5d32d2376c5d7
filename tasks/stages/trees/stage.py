"""Stage 2: the planner of a tree's settings, and the draws that it requests, decoded and verified."""

from collections import Counter
from functools import partial
from typing import Any

from schemas.arrays import AnyArray, Arrays
from schemas.config import RunConfig, Tree
from tasks.engines.protocol import Draw
from tasks.operations.implementations import implementation
from tasks.stages.draws import continuations, trunks
from tasks.stages.protocol import Checkpoints, Made, Models, Unit, Work
from tasks.stages.trees.frame import survey
from tasks.stages.trees.planner import Design, Launches, Planner, grow_tree
from tasks.statistics.streams import stream_seed

DrawCounts = Counter[tuple[int, int, int]]
"""Number of draws so far by rollout, depth and token (-1: none)."""


def make(work: Work) -> Made:
    """The tree of one question."""
    return {None: work.provider.tree(work.question, work.read("rollouts"))}


def planner_of(tree: Tree) -> Planner[Any]:
    """The planner of a tree's settings.

    Raises:
        AttributeError: for a recorded tree, which needs no draws.
    """
    planner: Planner[Any] = implementation(tree.implementation)(tree)
    return planner


def make_tree(
    models: Models, config: RunConfig, question: str, rollouts: Arrays, checkpoints: Checkpoints
) -> dict[str, AnyArray]:
    """The arrays of one question's tree; saved rounds are not decoded again."""
    planner, made = planner_of(config.tree), DrawCounts()

    def draw(index: int, design: Design, launches: Launches) -> dict[str, AnyArray]:
        units = design.units(rollouts["offsets"], checkpoints.most_draws)
        decode = partial(draw_unit, models, config, question, rollouts, launches, made)
        outcome = checkpoints.decode_round("trees", question, index, units, decode, "continuations")
        count(launches, made)
        return outcome

    return grow_tree(planner, survey(models.student, config, question, rollouts), draw)


def count(launches: Launches, made: DrawCounts) -> None:
    """Add a round's draws to the counts so far."""
    for *place, n in zip(*(column.tolist() for column in launches), strict=True):
        made[tuple(place)] += n


def draw_unit(
    models: Models,
    config: RunConfig,
    question: str,
    rollouts: Arrays,
    launches: Launches,
    made: DrawCounts,
    unit: Unit,
) -> dict[str, AnyArray]:
    """Decode and verify one unit: outcome of every draw, in order of launch and draw.

    Args:
        made: draw counts of earlier rounds; indices of this round continue from there.
    """
    offsets, limit = rollouts["offsets"], config.sampling.max_tokens
    draws: list[Draw] = []
    prefixes: list[list[int]] = []
    seen = DrawCounts()
    for rollout, depth, token, n in zip(*(column[slice(*unit)].tolist() for column in launches), strict=True):
        start = int(offsets[rollout])
        prefix = rollouts["tokens"][start : start + depth].tolist()
        # a token sampled twice from the tail gets draws 0, 1 and then 2, 3
        first = made[rollout, depth, token] + seen[rollout, depth, token]
        seen[rollout, depth, token] += n
        for index in range(first, first + n):
            if token < 0:
                identity = stream_seed(config.seed, question, "window", rollout, depth, index)
                draws.append(Draw(rollout, depth, None, limit - depth, identity))
                prefixes.append(prefix)
            else:
                identity = stream_seed(config.seed, question, "draw", rollout, depth, token, index)
                draws.append(Draw(rollout, depth, token, limit - depth - 1, identity))
                prefixes.append([*prefix, token])
    ends = models.sampler.continue_prefixes(trunks(rollouts), draws, config.sampling.temperature)
    return continuations(models, question, prefixes, ends)
