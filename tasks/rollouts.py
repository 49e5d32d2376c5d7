"""Stage 1: completions of each question, sampled by the student and verified."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from schemas.arrays import AnyArray
from schemas.config import Sampling
from tasks.engines.protocol import Continuation, Draw, Sampler, Trunk
from tasks.engines.streams import stream_seed
from tasks.job import Job
from tasks.questions import Question
from tasks.store.artefact import Artefact
from tasks.verifiers.verifier import Attempt


def sample_rollouts(
    sampler: Sampler, prompt: Sequence[int], sampling: Sampling, seed: int, question_id: str
) -> list[Continuation]:
    """R completions of one prompt."""
    draws = [
        Draw(0, 0, None, sampling.max_tokens, stream_seed(seed, question_id, "rollout", r))
        for r in range(sampling.rollouts)
    ]
    return sampler.continue_prefixes([Trunk(tuple(prompt))], draws, sampling.temperature)


def make_rollouts(job: Job, question: Question) -> dict[str, AnyArray]:
    """The arrays of one question's rollouts."""
    if job.recorded:
        return job.recorded[question.id].rollouts
    config = job.config
    prompt = job.prompt_ids(question)
    rollouts = sample_rollouts(job.sampler, prompt, config.sampling, config.seed, question.id)
    texts = job.tokenizer.batch_decode([r.tokens for r in rollouts], skip_special_tokens=True)
    correct = job.verifier.check_all(
        [Attempt(text, question.answer, r.cut) for text, r in zip(texts, rollouts, strict=True)]
    )
    return {
        "prompt": np.array(prompt, dtype=np.int32),
        "tokens": np.concatenate([r.tokens for r in rollouts]),
        "offsets": np.cumsum([0, *(len(r.tokens) for r in rollouts)]).astype(np.int64),
        "correct": np.array(correct, dtype=bool),
        "truncated": np.array([r.cut for r in rollouts], dtype=bool),
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
        return f"all {len(truncated)} rollouts hit the length limit (sampling.max_tokens)"
    return None
