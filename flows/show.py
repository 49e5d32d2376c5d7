"""What student and teachers are shown for one question, and what they make of its first tokens."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from schemas.arrays import Arrays
from schemas.config import RunConfig
from schemas.signals import Source, sources, written_sources
from schemas.text import BETWEEN
from tasks.engines.protocol import EngineError, Scorer
from tasks.engines.scoring import Scored, View, score_blocks
from tasks.inputs.errors import InputError
from tasks.operations.progress import publish
from tasks.run.models import LoadedModels
from tasks.run.session import RunSession
from tasks.run.shells import run_stage
from tasks.stages.models import ModelProvider, teacher_view


class FirstTokens(NamedTuple):
    """The first tokens of a rollout.

    Attributes:
        tokens: their texts.
        student, teachers: probabilities of them, [n]; teachers in the order of the configuration. NaN: a teacher with a
            tokenizer of its own does not tell.
        own: largest difference of the student's log-probabilities, over the whole rollout, to those of the student as
            its own teacher: scored again, among other completions.
    """

    tokens: list[str]
    student: list[float]
    teachers: dict[Source, list[float]]
    own: float


def asked(session: RunSession, question: str | None) -> tuple[LoadedModels, str]:
    """The models, and the question that is shown: the first one unless it is named.

    Raises:
        InputError: there is no such question, or the run is recorded.
    """
    provider = session.provider
    if not isinstance(provider, ModelProvider) or not isinstance(provider.models, LoadedModels):
        raise InputError("tree.kind", "recorded outcomes have no prompts to show")
    known = session.keys.questions
    if question is not None and question not in known:
        raise InputError("--question", f"{question!r} is not among the {len(known)} questions, such as {known[0]!r}")
    return provider.models, question or known[0]


def rollouts_of(session: RunSession, questions: Sequence[str], *, make: bool) -> dict[str, Arrays]:
    """The rollouts of some questions that are in the store; the others, where wanted, made as by a run.

    Raises:
        EngineError: they cannot be made.
    """
    keys = {question: session.keys.key("rollouts", question) for question in questions}
    if make:
        publish("completions", 0, len(questions) * session.config.sampling.rollouts)
        summary = run_stage(session, "rollouts", questions)
        publish("completions", over=True)
        for question, why in summary.failed.items():
            raise EngineError(f"question {question!r} has no rollouts: {why}")
    found = {question: session.store.load("rollouts", key) for question, key in keys.items()}
    return {question: stored.arrays for question, stored in found.items() if stored is not None}


def texts_of(session: RunSession, question: str, *, make: bool) -> dict[Source, Arrays]:
    """The generated texts of a question's contexts that are in the store; the others, where wanted, made as by a run.

    Raises:
        EngineError: they cannot be made.
    """
    if make:
        summary = run_stage(session, "texts", [question])
        for why in summary.failed.values():
            raise EngineError(f"question {question!r} has no generated texts: {why}")
    keys = session.keys.of_stage("texts", question)
    found = {signal.source: session.store.load("texts", key) for signal, key in keys.items() if signal is not None}
    return {source: stored.arrays for source, stored in found.items() if stored is not None}


def prompts(
    config: RunConfig,
    models: LoadedModels,
    question: str,
    rollouts: Arrays | None,
    texts: Mapping[Source, Arrays],
) -> dict[str, str]:
    """The prompts of student, teachers and writers by name, as their tokenizers read them back, with special tokens.

    Where a prompt depends on the rollout, it is that for the first one; names stand for rollouts and generated texts
    that there are none of.
    """
    read: dict[str, str] = {"student": models.tokenizer.decode(models.prompt(question))}
    of_texts = written_sources(config)
    for source in sources(config):
        name, written = f"{source.teacher}{BETWEEN}{source.context}", source in of_texts
        if written:
            asked = models.prompts.writer(source, question, rollouts)[0]
            read[f"{name}{BETWEEN}writer"] = models.writer_tokenizer(source).decode(asked)
        if rollouts is None or (written and source not in texts):
            prompt = models.prompts.teacher(source, question)
        else:
            prompt = models.teacher_prompts(source, question, rollouts, texts.get(source))[0]
        read[name] = models.prompts.tokenizer(source).decode(prompt)
    return read


def scored(
    config: RunConfig,
    models: LoadedModels,
    question: str,
    rollouts: Arrays,
    texts: Mapping[Source, Arrays],
    most: int,
) -> FirstTokens:
    """The first `most` tokens of the first rollout."""
    prompt, tokens = models.prompt(question), np.asarray(rollouts["tokens"][: rollouts["offsets"][1]])
    wanted = sources(config)
    views: list[Scored] = [View(models.student, prompt)]
    views += [teacher_view(models, s, question, rollouts, texts.get(s)) for s in wanted]
    rows = np.arange(min(most, len(tokens)), dtype=np.int64)
    found: list[list[float]] = [[] for _ in views]
    for positions, log_probs in score_blocks(views, tokens, np.array([0, len(tokens)]), rows=rows):
        sampled = torch.from_numpy(tokens[positions]).long()[:, None]
        for probabilities, of_view in zip(found, log_probs, strict=True):
            given = of_view.gather(-1, sampled.to(of_view.device))[:, 0]
            probabilities += given.masked_fill(given == -torch.inf, torch.nan).exp().tolist()
    student, *teachers = found
    return FirstTokens(
        models.tokenizer.batch_decode([[int(t)] for t in tokens[rows]]),
        student,
        dict(zip(wanted, teachers, strict=True)),
        _own_difference(models.student, prompt, tokens.tolist()),
    )


def _own_difference(student: Scorer, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """Largest difference of a completion's log-probabilities, nat, when it is scored alone and among others."""
    others = [list(completion), list(completion[: max(1, len(completion) // 2)]), list(completion)]
    alone, among = student.hidden(prompt, others[:1])[0], student.hidden(prompt, others[1:])[1]
    at = torch.tensor(others[0])[:, None]
    one, other = (student.log_probs(h).gather(-1, at.to(h.device)) for h in (alone, among))
    return float((one - other).abs().max())


def by_name(scored: FirstTokens) -> dict[str, list[float]]:
    """The columns of the table of tokens: student first, then the teachers with their contexts."""
    teachers = {f"{source.teacher} / {source.context}": values for source, values in scored.teachers.items()}
    return {"student": scored.student, **teachers}
