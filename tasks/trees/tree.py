"""Stage 2: scores the rollouts, chooses nodes and branches, decodes and verifies the draws in rounds."""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from schemas.arrays import AnyArray
from schemas.config import RunConfig
from tasks.engines.protocol import Draw, Engine
from tasks.engines.scoring import View, score_blocks
from tasks.engines.streams import stream_seed, uniforms
from tasks.job import Job
from tasks.progress import report
from tasks.questions import Question
from tasks.ragged import Ints, owners
from tasks.store.artefact import Artefact
from tasks.trees.forced import Branches, split_head_and_tail
from tasks.trees.nodes import inclusion_probabilities, leverage, systematic_sample
from tasks.verifiers.verifier import Attempt


class Plan(NamedTuple):
    """Everything of a tree but its outcomes: arrays as declared in `schemas.arrays.TREES`."""

    arrays: dict[str, AnyArray]

    @property
    def branches(self) -> int:
        return len(self.arrays["branch_token"])


def plan_tree(engine: Engine, rollouts: Artefact, config: RunConfig, question_id: str) -> Plan:
    """Choose nodes, branches and draws of one question, from the student alone."""
    tokens, offsets, prompt = rollouts["tokens"], rollouts["offsets"], rollouts["prompt"].tolist()
    tree, temperature = config.tree, config.sampling.temperature
    view = View(engine, prompt)
    scoring = partial(score_blocks, block=config.engine.score_rows, group_tokens=config.engine.batch_tokens)

    scores: dict[str, list[npt.NDArray[np.float64]]] = {"token_prob": [], "entropy": [], "leverage": []}
    for positions, (log_probs,) in scoring([view], tokens, offsets):
        p = tempered(log_probs, temperature)
        picked = p[torch.arange(len(p)), torch.from_numpy(tokens[positions]).long().to(p.device)]
        scores["token_prob"].append(picked.double().cpu().numpy())
        scores["entropy"].append((-(p * p.log()).nan_to_num(0.0).sum(-1, dtype=torch.float64)).cpu().numpy())
        scores["leverage"].append(leverage(p)[0].cpu().numpy())
    by_position = {name: np.concatenate(parts) for name, parts in scores.items()}

    sizes = np.sqrt(by_position["leverage"]) if tree.node_choice == "leverage" else np.ones(len(tokens))
    inclusion = inclusion_probabilities(sizes, tree.nodes)
    start = float(uniforms(np.array([stream_seed(config.seed, question_id, "nodes")], dtype=np.uint64), 0)[0])
    nodes = systematic_sample(inclusion, start)

    planned: list[Branches] = []
    p_sq: list[float] = []
    for positions, (log_probs,) in scoring([view], tokens, offsets, rows=nodes):
        p = tempered(log_probs, temperature)
        p_sq += leverage(p)[1].tolist()
        seeds = [
            stream_seed(config.seed, question_id, "tail", f"{rollout}:{depth}")
            for rollout, depth in (locate(offsets, position) for position in positions.tolist())
        ]
        u = uniforms(np.array(seeds, dtype=np.uint64)[:, None], np.arange(tree.tail))
        planned += split_head_and_tail(tree, p, torch.from_numpy(u))
    return Plan(
        {
            **by_position,
            "node": nodes.astype(np.int64),
            "inclusion": inclusion[nodes],
            "p_sq": np.array(p_sq, dtype=np.float64),
            "tail_prob": np.array([b.tail_prob for b in planned], dtype=np.float64),
            "branch_offsets": np.cumsum([0, *(len(b.token) for b in planned)]).astype(np.int64),
            "branch_token": _concatenate([b.token for b in planned], np.int32),
            "branch_prob": _concatenate([b.prob for b in planned], np.float64),
            "branch_tail": _concatenate([b.tail for b in planned], np.bool_),
            "draws": _concatenate([b.draws for b in planned], np.int32),
        }
    )


def tempered(log_probs: torch.Tensor, temperature: float) -> torch.Tensor:
    """The policy that draws are made with: probabilities [n, V] at the temperature."""
    return log_probs.exp() if temperature == 1.0 else torch.softmax(log_probs / temperature, dim=-1)


def locate(offsets: Ints, position: int) -> tuple[int, int]:
    """Rollout and place within it, of an index into T."""
    rollout = int(np.searchsorted(offsets, position, side="right")) - 1
    return rollout, position - int(offsets[rollout])


def _concatenate(parts: Sequence[AnyArray], dtype: npt.DTypeLike) -> AnyArray:
    return np.asarray(np.concatenate([np.empty(0), *parts]), dtype=dtype)


class Unit(NamedTuple):
    """Draws that are decoded together: those of branches `first:last`, all of whole nodes."""

    first: int
    last: int


def units(plan: Plan, offsets: Ints, most: int) -> list[Unit]:
    """Cut a tree's draws into units of at most `most`: between rollouts where that can be, else between nodes."""
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


def draw_unit(job: Job, question: Question, rollouts: Artefact, plan: Plan, unit: Unit) -> dict[str, AnyArray]:
    """Decode and verify one unit: outcome of every draw, in order of branch and draw index."""
    arrays, offsets = plan.arrays, rollouts["offsets"]
    seed, limit = job.config.seed, job.config.sampling.max_tokens
    prompt = rollouts["prompt"].tolist()
    owner = owners(arrays["branch_offsets"])
    local: dict[int, int] = {}
    draws: list[Draw] = []
    begun: list[list[int]] = []
    seen: dict[tuple[int, int], int] = {}
    for b in range(unit.first, unit.last):
        position = int(arrays["node"][owner[b]])
        rollout, depth = locate(offsets, position)
        token = int(arrays["branch_token"][b])
        sequence = local.setdefault(rollout, len(local))
        prefix = rollouts["tokens"][offsets[rollout] : position].tolist()
        # a token sampled twice from the tail has draws 0, 1 and then 2, 3
        done = seen.get((position, token), 0)
        seen[position, token] = done + int(arrays["draws"][b])
        for index in range(done, seen[position, token]):
            identity = stream_seed(seed, question.id, "draw", rollout, depth, token, index)
            draws.append(Draw(sequence, len(prompt) + depth, token, limit - depth - 1, identity))
            begun.append([*prefix, token])
    sequences = [prompt + rollouts["tokens"][offsets[r] : offsets[r + 1]].tolist() for r in local]
    ends = job.student.continue_prefixes(sequences, draws, job.config.sampling.temperature)
    completions = [(*start, *end.tokens.tolist()) for start, end in zip(begun, ends, strict=True)]
    distinct = list(dict.fromkeys(completions))
    texts = dict(zip(distinct, job.tokenizer.batch_decode(distinct, skip_special_tokens=True), strict=True))
    cut = [end.cut for end in ends]
    success = job.verifier.check_all(
        [Attempt(texts[c], question.answer, was_cut) for c, was_cut in zip(completions, cut, strict=True)]
    )
    return {"success": np.array(success, dtype=bool), "truncated": np.array(cut, dtype=bool)}


def make_tree(job: Job, question: Question, rollouts: Artefact) -> dict[str, AnyArray]:
    """The arrays of one question's tree; rounds already committed by a killed run are not decoded again."""
    key = job.keys[question.id].trees
    plan = plan_tree(job.student, rollouts, job.config, question.id)
    todo = units(plan, rollouts["offsets"], job.config.execution.round_draws)
    outcomes: list[dict[str, AnyArray]] = []
    pending: list[dict[str, AnyArray]] = []
    held = _rounds(job, key, plan, todo)
    committed = time.monotonic()
    for i, unit in enumerate(todo):
        if unit in held:
            outcome = held[unit]
            pending = []  # a round holds neighbouring units only
        else:
            outcome = draw_unit(job, question, rollouts, plan, unit)
            pending.append(outcome)
            last = i + 1 == len(todo)
            if not last and time.monotonic() - committed >= job.config.execution.round_seconds:
                first = todo[i + 1 - len(pending)].first
                job.store.commit(
                    "trees",
                    key,
                    _joined(pending),
                    {"first": first, "last": unit.last},
                    name=f"round-{first:09d}.zarr.zip",
                    layout="rounds",
                )
                pending, committed = [], time.monotonic()
        outcomes.append(outcome)
        report("draws", len(outcome["success"]))
    return with_outcomes(plan, _joined(outcomes))


def with_outcomes(plan: Plan, outcome: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """The arrays of a tree, from its plan and the outcome of every draw, [D] in order of branch and draw."""
    branch = np.repeat(np.arange(plan.branches), plan.arrays["draws"])
    return {
        **plan.arrays,
        "successes": np.bincount(branch, outcome["success"], plan.branches).astype(np.int32),
        "truncations": np.bincount(branch, outcome["truncated"], plan.branches).astype(np.int32),
    }


def _joined(outcomes: Sequence[dict[str, AnyArray]]) -> dict[str, AnyArray]:
    return {
        name: np.concatenate([np.empty(0, dtype=bool), *(o[name] for o in outcomes)])
        for name in ("success", "truncated")
    }


def _rounds(job: Job, key: str, plan: Plan, todo: Sequence[Unit]) -> dict[Unit, dict[str, AnyArray]]:
    """Units whose draws lie in committed rounds."""
    ends = np.concatenate([[0], np.cumsum(plan.arrays["draws"])])
    found: dict[Unit, dict[str, AnyArray]] = {}
    for held in _committed(job, key):
        start = int(ends[held.meta["first"]])
        for unit in todo:
            if held.meta["first"] <= unit.first and unit.last <= held.meta["last"]:
                part = slice(int(ends[unit.first]) - start, int(ends[unit.last]) - start)
                found[unit] = {name: array[part] for name, array in held.arrays.items()}
    return found


def _committed(job: Job, key: str) -> Iterator[Artefact]:
    for name in _round_names(job, key):
        held = job.store.load("trees", key, name=name, layout="rounds")
        if held is not None:
            yield held


def clear_rounds(job: Job, key: str) -> None:
    """Remove the rounds of a finished tree."""
    for name in _round_names(job, key):
        job.store.remove("trees", key, name)


def _round_names(job: Job, key: str) -> list[str]:
    return [name for name in job.store.names("trees", key) if name.startswith("round-")]
