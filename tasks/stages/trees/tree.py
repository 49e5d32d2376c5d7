"""Stage 2: scores the rollouts, plans where to branch, decodes and verifies the draws in rounds."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from schemas.arrays import AnyArray
from schemas.config import AdaptiveTree, ForcedTree, RunConfig, Tree, WindowsTree
from tasks.engines.protocol import Draw, Scorer
from tasks.engines.scoring import View, score_blocks, tempered
from tasks.inputs.questions import Question
from tasks.run.session import Job
from tasks.stages.rollouts import continuations, outcomes, trunks
from tasks.stages.trees.adaptive import adaptive_plan
from tasks.stages.trees.forced import forced_plan
from tasks.stages.trees.rounds import Drawn, Ground, Plan, assembled, locate
from tasks.stages.trees.windows import Window, count_visits, windows, windows_tree
from tasks.statistics.csr import Ints, owners
from tasks.statistics.design import leverage
from tasks.statistics.streams import stream_seed
from tasks.store.checkpoints import Unit, decoded_round
from tasks.store.store import Artefact

Done = Counter[tuple[int, int]]
"""Draws made so far of a token at a position."""


def survey(scorer: Scorer, rollouts: Artefact, config: RunConfig, question_id: str) -> Ground:
    """What the student alone tells of its rollouts: everything that a plan may look at."""
    tokens, offsets = rollouts["tokens"], rollouts["offsets"]
    view = View(scorer, rollouts["prompt"].tolist())
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
    return Ground(config.seed, question_id, offsets, rollouts["correct"], by_position, distributions)


def next_round(
    tree: ForcedTree | AdaptiveTree, ground: Ground, drawn: Sequence[Drawn], seconds: float = 0.0
) -> Plan | None:
    """The plan of the next round; None where the tree is finished."""
    if isinstance(tree, AdaptiveTree):
        return adaptive_plan(tree, ground, drawn, seconds)
    return None if drawn else forced_plan(tree, ground)


def most_draws(tree: Tree) -> int:
    """Draws of one question's tree, at most."""
    match tree:
        case ForcedTree():
            return tree.nodes * tree.draws
        case AdaptiveTree():  # a round is of whole nodes; the last one begins where a whole round still fits
            return tree.draws - tree.round + tree.round // tree.node_draws * tree.node_draws
        case WindowsTree():
            return tree.draws
        case _:
            return 0


def most_forwards(tree: Tree, rollouts: int) -> int:
    """Passes over a whole prompt and completion for one question's tree, at most.

    All rollouts are scored to choose nodes; then, in each round, those that hold a node of it.
    """
    match tree:
        case ForcedTree():
            return rollouts + min(rollouts, tree.nodes)
        case AdaptiveTree():
            return rollouts + most_draws(tree) // tree.node_draws
        case WindowsTree():
            return 2 * rollouts
        case _:
            return 0


def units(plan: Plan, offsets: Ints, most: int) -> list[Unit]:
    """Cut a round's draws into units of at most `most`: between rollouts where that can be, else between nodes."""
    starts = plan.arrays["branch_offsets"].tolist()
    draws = np.add.reduceat(plan.arrays["draws"], starts[:-1]).tolist() if len(starts) > 1 else []
    rollout = np.searchsorted(offsets, plan.arrays["node"], side="right").tolist()
    of_rollout: dict[int, int] = {}
    for r, n in zip(rollout, draws, strict=True):
        of_rollout[r] = of_rollout.get(r, 0) + n
    out: list[Unit] = []
    first = count = 0
    for node, n in enumerate(draws):
        begins = node == 0 or rollout[node] != rollout[node - 1]
        whole = of_rollout[rollout[node]] if begins else n
        if count and count + min(whole, most) > most:
            out.append(Unit(starts[first], starts[node]))
            first, count = node, 0
        count += n
    if draws:
        out.append(Unit(starts[first], starts[-1]))
    return out


def draw_unit(
    job: Job, question: Question, rollouts: Artefact, plan: Plan, done: Done, unit: Unit
) -> dict[str, AnyArray]:
    """Decode and verify one unit: outcome of every draw, in order of branch and draw index.

    Args:
        done: draws of earlier rounds; those of this one go on from there.
    """
    arrays, offsets = plan.arrays, rollouts["offsets"]
    seed, limit = job.config.seed, job.config.sampling.max_tokens
    owner = owners(arrays["branch_offsets"])
    draws: list[Draw] = []
    begun: list[list[int]] = []
    seen: Done = Counter()
    for b in range(unit.first, unit.last):
        position = int(arrays["node"][owner[b]])
        rollout, depth = locate(offsets, position)
        token = int(arrays["branch_token"][b])
        prefix = rollouts["tokens"][offsets[rollout] : position].tolist()
        # a token sampled twice from the tail has draws 0, 1 and then 2, 3
        first = done[position, token] + seen[position, token]
        seen[position, token] += int(arrays["draws"][b])
        for index in range(first, first + int(arrays["draws"][b])):
            identity = stream_seed(seed, question.id, "draw", rollout, depth, token, index)
            draws.append(Draw(rollout, depth, token, limit - depth - 1, identity))
            begun.append([*prefix, token])
    ends = job.sampler.continue_prefixes(trunks(rollouts), draws, job.config.sampling.temperature)
    return outcomes(job, question, begun, ends)


def make_tree(job: Job, question: Question, rollouts: Artefact) -> dict[str, AnyArray]:
    """The arrays of one question's tree; what is committed of its rounds is not decoded again."""
    if job.recorded:
        return job.recorded[question.id].tree
    tree, key = job.config.tree, job.keys[question.id].rounds
    ground = survey(job.student, rollouts, job.config, question.id)
    if isinstance(tree, WindowsTree):
        return _make_windows(job, question, rollouts, tree, ground, key)
    if not isinstance(tree, ForcedTree | AdaptiveTree):
        raise TypeError(f"no draws are made for a tree of kind {tree.kind}")
    drawn: list[Drawn] = []
    done: Done = Counter()
    began = time.monotonic()
    while (plan := next_round(tree, ground, drawn, time.monotonic() - began)) is not None:
        todo = units(plan, ground.offsets, job.config.execution.round_draws)
        decode = partial(draw_unit, job, question, rollouts, plan, done)
        drawn.append(with_outcomes(plan, decoded_round(job, key, len(drawn), todo, decode)))
        count(plan, done)
    return assembled(ground, drawn)


def count(plan: Plan, done: Done) -> None:
    """Add a round's draws to those that are done."""
    where = plan.arrays["node"][owners(plan.arrays["branch_offsets"])]
    for position, token, n in zip(where, plan.arrays["branch_token"], plan.arrays["draws"], strict=True):
        done[int(position), int(token)] += int(n)


def with_outcomes(plan: Plan, outcome: dict[str, AnyArray]) -> Drawn:
    """A round, from its plan and the outcome of every draw, [D] in order of branch and draw."""
    branch = np.repeat(np.arange(plan.branches), plan.arrays["draws"])
    successes, truncations = (
        np.bincount(branch, outcome[name], plan.branches).astype(np.int64) for name in ("success", "truncated")
    )
    return Drawn(plan, successes, truncations, int(outcome["length"].sum()))


def _make_windows(
    job: Job, question: Question, rollouts: Artefact, tree: WindowsTree, ground: Ground, key: str
) -> dict[str, AnyArray]:
    launched = windows(tree, ground.offsets)
    upto = np.cumsum([w.draws for w in launched]) // max(1, job.config.execution.round_draws)
    edges = [0, *(np.flatnonzero(np.diff(upto)) + 1).tolist(), len(launched)]
    todo = [Unit(a, b) for a, b in pairwise(edges)]
    decode = partial(_draw_windows, job, question, rollouts, launched)
    outcome = decoded_round(job, key, 0, todo, decode, "continuations")
    each = [w for w in launched for _ in range(w.draws)]
    offsets, tokens = outcome["offsets"], outcome["tokens"]
    continued = [tokens[a:b] for a, b in pairwise(offsets)]
    visits = count_visits(rollouts["tokens"], ground.offsets, each, continued, outcome["success"], outcome["truncated"])
    return windows_tree(tree, ground, visits)


def _draw_windows(
    job: Job, question: Question, rollouts: Artefact, launched: Sequence[Window], unit: Unit
) -> dict[str, AnyArray]:
    offsets = rollouts["offsets"]
    part = launched[unit.first : unit.last]
    draws, begun = [], []
    for w in part:
        for index in range(w.draws):
            identity = stream_seed(job.config.seed, question.id, "window", w.rollout, w.depth, index)
            limit = job.config.sampling.max_tokens - w.depth
            draws.append(Draw(w.rollout, w.depth, None, limit, identity))
            begun.append(rollouts["tokens"][offsets[w.rollout] : offsets[w.rollout] + w.depth].tolist())
    ends = job.sampler.continue_prefixes(trunks(rollouts), draws, job.config.sampling.temperature)
    return continuations(job, question, begun, ends)
