"""Gains by signal from what a trainer holds: those of a ranking (`tasks.stages.ranking`) of the same rollouts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from pydantic import TypeAdapter, ValidationError

from schemas.arrays import RANKING, AnyArray
from schemas.config import NEED_DRAWS, Loss, PythonLoss, Scores, Settings, loss_name
from schemas.config.trainers import expanded
from schemas.tables import RANKS
from schemas.text import listed, quoted
from tasks.inputs.errors import InputError
from tasks.operations.user_code import check_allowed
from tasks.stages.aggregate.tables import frame
from tasks.stages.distillation.gradients import distill
from tasks.stages.distillation.stage import NO_NODES
from tasks.stages.held import Checked, Rollouts
from tasks.stages.ranking import RankedQuestion, rank

COLUMNS = {name: column for name, column in RANKS.items() if not name.startswith("update_")}
"""Columns of the table; update gains need the student's parameters."""
_BLOCK = 64
"""Rows of a vocabulary that are worked on at once."""
_LOSS: TypeAdapter[Settings] = TypeAdapter(Loss)


@torch.no_grad()
def score(
    questions: Iterable[Rollouts],
    losses: Sequence[str | Mapping[str, Any]] = ("reverse_kl",),
    *,
    temperature: float = 1.0,
    level: float = 0.95,
    bootstrap: int = 2000,
    seed: int = 0,
) -> pl.DataFrame:
    """First-order gain in reward per rollout of a unit step along each signal, with its interval; the best comes first.

    It needs whole distributions of the student: the sampled token's log-probabilities alone, which trainers of
    reinforcement learning keep, tell neither the mean of a direction nor its length.

    Args:
        questions: may be a generator; one question is in memory at a time. Those whose rewards are all alike tell
            nothing. With fewer than 5 that differ intervals are by rollout, and null with fewer than 5 such rollouts.
        losses: kinds, or settings as in a configuration: `{"kind": "jsd", "beta": 0.1}`.
        temperature: at which the rollouts were sampled.
        level: coverage of intervals.
        bootstrap: replicates.
        seed: of the bootstrap.

    Returns:
        the columns of `schemas.tables.RANKS` but update gains.

    Raises:
        InputError: names the argument, what it is and what would be right.
    """
    scores, by_name = _scores(level, bootstrap), _losses(losses)
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError("temperature", f"{temperature} given; give that of sampling, above 0")
    ranked: list[RankedQuestion] = []
    for number, given in enumerate(questions):
        question = Checked(given, f"questions[{number}]")
        known = {signal.source for signal in ranked[0].signals} if ranked else question.teachers.keys()
        if known != question.teachers.keys():
            raise InputError(
                f"{question.place}.teachers",
                f"{listed(map('/'.join, question.teachers))} given; give those of the first question",
            )
        ranked.append(_ranked(question, by_name, temperature))
    if not ranked:
        raise InputError("questions", "none given; give the rollouts of one at least")
    return frame(rank(ranked, temperature, scores, seed).rows, COLUMNS)


def _ranked(question: Checked, losses: Mapping[str, Settings], temperature: float) -> RankedQuestion:
    made = distill(
        question.student,
        question.teachers,
        question.tokens,
        question.offsets,
        NO_NODES,
        dict.fromkeys(question.teachers, losses),
        temperature=temperature,
        block=_BLOCK,
        group_tokens=1,  # one rollout at a time
    )
    rollouts: dict[str, AnyArray] = {
        "offsets": question.offsets,
        "reward": question.rewards,
        "correct": question.rewards > 0,
        "truncated": np.zeros(len(question.rewards), dtype=np.bool_),
    }
    return RankedQuestion(rollouts, {signal: {name: of[name] for name in RANKING} for signal, of in made.items()})


def _scores(level: float, bootstrap: int) -> Scores:
    try:
        return Scores(level=level, bootstrap=bootstrap)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(str(first["loc"][0]), f"{quoted(first['input'])} given; {first['msg']}") from error


def _losses(given: Sequence[str | Mapping[str, Any]]) -> dict[str, Settings]:
    """Losses by name."""
    if isinstance(given, str) or not given:
        raise InputError("losses", f"{quoted(given)} given; give a list of one at least")
    out: dict[str, Settings] = {}
    for i, one in enumerate(given):
        place = f"losses[{i}]"
        try:
            loss = _LOSS.validate_python(expanded({"kind": one} if isinstance(one, str) else dict(one)))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join([place, *(str(part) for part in first["loc"][1:])])
            raise InputError(field, f"{quoted(first['input'])} given; {first['msg']}") from error
        if isinstance(loss, NEED_DRAWS):
            raise InputError(
                place, f"{loss_name(loss)} needs several draws from one place, which only `opdscope run` has"
            )
        if isinstance(loss, PythonLoss):
            check_allowed(place, loss.function)
        if loss_name(loss) in out:
            raise InputError(place, f"{loss_name(loss)!r} is given twice; give each once, or a name")
        out[loss_name(loss)] = loss
    return out
