"""Stage 1: completions of each question, sampled by the student and verified."""

from collections.abc import Sequence

import numpy as np

from schemas.arrays import AnyArray, Arrays
from schemas.config import RunConfig, Sampling
from tasks.engines.protocol import Continuation, Draw, Sampler, Trunk
from tasks.stages.draws import continuations
from tasks.stages.protocol import Checkpoints, Made, Models, Unit, Work, equal_units
from tasks.statistics.streams import stream_seed


def make(work: Work) -> Made:
    """The rollouts of one question."""
    return {None: work.provider.rollouts(work.question)}


def sample_rollouts(
    sampler: Sampler, prompt: Sequence[int], sampling: Sampling, seed: int, question: str, unit: Unit | None = None
) -> list[Continuation]:
    """R completions of one prompt, or a unit of them."""
    first, last = unit or (0, sampling.rollouts)
    draws = [
        Draw(0, 0, None, sampling.max_tokens, stream_seed(seed, question, "rollout", r)) for r in range(first, last)
    ]
    return sampler.continue_prefixes([Trunk(tuple(prompt))], draws, sampling.temperature)


def make_rollouts(models: Models, config: RunConfig, question: str, checkpoints: Checkpoints) -> dict[str, AnyArray]:
    """The arrays of one question's rollouts; saved units are not decoded again."""
    prompt = models.prompt(question)

    def decode(unit: Unit) -> dict[str, AnyArray]:
        ends = sample_rollouts(models.sampler, prompt, config.sampling, config.seed, question, unit)
        return continuations(models, question, [()] * len(ends), ends)

    units = equal_units(config.sampling.rollouts, checkpoints.most_draws)
    rollouts = checkpoints.decode_round("rollouts", question, 0, units, decode, "continuations")
    return {
        "prompt": np.array(prompt, dtype=np.int32),
        "tokens": rollouts["tokens"],
        "offsets": rollouts["offsets"],
        "correct": rollouts["success"],
        "truncated": rollouts["truncated"],
        "reward": rollouts["success"].astype(np.float64),
    }


def refusal(rollouts: Arrays) -> str | None:
    """Why a question cannot be diagnosed from its rollouts; None if it can."""
    truncated = rollouts["truncated"]
    if bool(truncated.all()):
        return f"all {len(truncated)} rollouts hit the length limit; raise sampling.max_tokens"
    return None
