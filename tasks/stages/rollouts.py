"""Stage 1: completions of each question, sampled by the student and verified."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from schemas.arrays import AnyArray
from schemas.config import Sampling
from tasks.engines.protocol import Continuation, Draw, Sampler, Trunk
from tasks.inputs.questions import Question
from tasks.run.session import Job
from tasks.statistics.streams import stream_seed
from tasks.store.checkpoints import Unit, decoded_round, equal_units
from tasks.store.store import Artefact
from tasks.verifiers.verifier import Attempt

COMPLETIONS = "completions"
"""What progress calls them."""


def sample_rollouts(
    sampler: Sampler, prompt: Sequence[int], sampling: Sampling, seed: int, question_id: str, unit: Unit | None = None
) -> list[Continuation]:
    """R completions of one prompt, or some of them."""
    first, last = unit or (0, sampling.rollouts)
    draws = [
        Draw(0, 0, None, sampling.max_tokens, stream_seed(seed, question_id, "rollout", r)) for r in range(first, last)
    ]
    return sampler.continue_prefixes([Trunk(tuple(prompt))], draws, sampling.temperature)


def make_rollouts(job: Job, question: Question) -> dict[str, AnyArray]:
    """The arrays of one question's rollouts; what is committed of them is not decoded again."""
    if job.recorded:
        return job.recorded[question.id].rollouts
    config, key = job.config, job.keys[question.id].rollouts
    prompt = job.prompt_ids(question)

    def decode(unit: Unit) -> dict[str, AnyArray]:
        ends = sample_rollouts(job.sampler, prompt, config.sampling, config.seed, question.id, unit)
        return continuations(job, question, [()] * len(ends), ends)

    units = equal_units(config.sampling.rollouts, config.execution.round_draws)
    rollouts = decoded_round(job, key, 0, units, decode, "continuations", shown=COMPLETIONS, kept=False)
    return {
        "prompt": np.array(prompt, dtype=np.int32),
        "tokens": rollouts["tokens"],
        "offsets": rollouts["offsets"],
        "correct": rollouts["success"],
        "truncated": rollouts["truncated"],
    }


def outcomes(
    job: Job, question: Question, begun: Sequence[Sequence[int]], ends: Sequence[Continuation]
) -> dict[str, AnyArray]:
    """What became of continuations, as the layout "rounds" has it; `begun` is what stands before each."""
    return {
        "success": verified(job, question, begun, ends),
        "truncated": np.array([end.cut for end in ends], dtype=bool),
        "length": np.array([len(end.tokens) for end in ends], dtype=np.int32),
    }


def continuations(
    job: Job, question: Question, begun: Sequence[Sequence[int]], ends: Sequence[Continuation]
) -> dict[str, AnyArray]:
    """The same with their tokens, as the layout "continuations" has it."""
    of_each = outcomes(job, question, begun, ends)
    return {
        "success": of_each["success"],
        "truncated": of_each["truncated"],
        "tokens": np.concatenate([np.empty(0, dtype=np.int32), *(end.tokens for end in ends)]).astype(np.int32),
        "offsets": np.cumsum([0, *of_each["length"]]).astype(np.int64),
    }


def trunks(rollouts: Artefact) -> list[Trunk]:
    """Rollouts as paths that draws branch off, in order."""
    prompt, tokens = tuple(rollouts["prompt"].tolist()), rollouts["tokens"]
    return [Trunk(prompt, tuple(tokens[a:b].tolist())) for a, b in pairwise(rollouts["offsets"])]


def verified(
    job: Job, question: Question, begun: Sequence[Sequence[int]], ends: Sequence[Continuation]
) -> npt.NDArray[np.bool_]:
    """Verdicts on completions: what stands before each continuation, and the continuation."""
    completions = [(*start, *end.tokens.tolist()) for start, end in zip(begun, ends, strict=True)]
    distinct = list(dict.fromkeys(completions))
    texts = dict(zip(distinct, job.tokenizer.batch_decode(distinct, skip_special_tokens=True), strict=True))
    attempts = [Attempt(texts[c], question.answer, end.cut) for c, end in zip(completions, ends, strict=True)]
    return np.array(job.verifier.check_all(attempts), dtype=bool)


def failure(arrays: dict[str, AnyArray]) -> str | None:
    """Why a question cannot be diagnosed from its rollouts; None where it can."""
    truncated = arrays["truncated"]
    if bool(truncated.all()):
        return f"all {len(truncated)} rollouts hit the length limit; raise sampling.max_tokens"
    return None
