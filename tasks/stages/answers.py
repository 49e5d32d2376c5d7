"""Teachers' own answers to the questions, and the student's where it goes on from parts of them."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from schemas.arrays import AnyArray, Arrays
from schemas.config import RunConfig
from schemas.config.success import BEFORE_ANSWER
from schemas.signals import Source, written_sources
from tasks.engines.protocol import Draw, Trunk
from tasks.engines.turn import TURN
from tasks.stages.draws import continuations, outcomes
from tasks.stages.protocol import Made, Models, Tokenizer, Work
from tasks.statistics.streams import stream_seed
from tasks.verifiers.protocol import Attempt


def make(work: Work) -> Made:
    """The answers to one question of every requested teacher with its context."""
    rollouts, written = work.read("rollouts"), set(written_sources(work.config))
    texts = {s.source: work.read("texts", s) for s in work.signals if s.source in written}
    answered = work.provider.answers(work.question, [s.source for s in work.signals], rollouts, texts)
    return {source.every_loss: arrays for source, arrays in answered.items()}


def make_handover(work: Work) -> Made:
    """What the student makes of one question's answers of every requested teacher with its context."""
    rollouts = work.read("rollouts")
    given = {signal.source: work.read("answers", signal) for signal in work.signals}
    return {s.every_loss: arrays for s, arrays in work.provider.handover(work.question, rollouts, given).items()}


def sample_answers(
    models: Models,
    config: RunConfig,
    source: Source,
    question: str,
    prompts: Sequence[Sequence[int]],
    n: int,
    what: str,
) -> dict[str, AnyArray]:
    """`n` answers by a teacher, verified, in the layout "continuations".

    Args:
        prompts: after which it answers, in turn.
        what: identifies the random stream.
    """
    trunks = [Trunk(tuple(prompt)) for prompt in prompts]
    draws = [
        Draw(i % len(trunks), 0, None, config.sampling.max_tokens, stream_seed(config.seed, question, what, i))
        for i in range(n)
    ]
    ends = models.answerer(source).continue_prefixes(trunks, draws, config.sampling.temperature)
    return continuations(models, question, [()] * n, ends, models.answer_tokenizer(source))


def make_answers(
    models: Models, config: RunConfig, source: Source, question: str, rollouts: Arrays, texts: Arrays | None
) -> dict[str, AnyArray]:
    """The answers of one teacher with its context; where this differs by rollout, each is shown in turn."""
    prompt, by_rollout = models.teacher_prompts(source, question, rollouts, texts)
    return sample_answers(models, config, source, question, by_rollout or [prompt], config.success.rollouts, "answer")


def make_continuations(
    models: Models, config: RunConfig, source: Source, question: str, rollouts: Arrays, answers: Arrays
) -> dict[str, AnyArray]:
    """The student goes on from parts of each answer, without the context; where no token is left, that is a failure."""
    settings, limit = config.success, config.sampling.max_tokens
    tokenizer, prompt = models.answer_tokenizer(source), tuple(rollouts["prompt"].tolist())
    rows: list[tuple[int, float, int]] = []  # answer, part, place
    prefixes: list[list[int]] = []
    # without the token that ended it
    answered = [
        answers["tokens"][a : b if cut else b - 1].tolist()
        for (a, b), cut in zip(pairwise(answers["offsets"].tolist()), answers["truncated"], strict=True)
    ]
    ends = answer_places(models, question, answers, answered, tokenizer)
    for i, (tokens, end) in enumerate(zip(answered, ends, strict=True)):
        places = [(part, round(part * len(tokens))) for part in settings.parts]
        places += [] if end is None else [(BEFORE_ANSWER, end)]
        for part, place in places:
            rows.append((i, part, place))
            prefixes.append(models.as_students(source, tokens[:place]))
    trunks = [Trunk(prompt, tuple(prefix)) for prefix in prefixes]
    draws = [
        Draw(row, len(prefix), None, limit - len(prefix), _seed(config, question, rows[row], n))
        for row, prefix in enumerate(prefixes)
        if len(prefix) < limit
        for n in range(settings.continuations)
    ]
    successes = np.zeros(len(rows))
    if draws:
        sampled = models.sampler.continue_prefixes(trunks, draws, config.sampling.temperature)
        success = outcomes(models, question, [prefixes[d.trunk] for d in draws], sampled)["success"]
        successes = np.bincount([d.trunk for d in draws], success, len(rows)).astype(np.float64)
    columns = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return {
        "answer": columns[0].astype(np.int32),
        "part": columns[1],
        "place": columns[2].astype(np.int32),
        "draws": np.full(len(rows), settings.continuations, dtype=np.int32),
        "successes": successes.astype(np.int32),
    }


def _seed(config: RunConfig, question: str, row: tuple[int, float, int], index: int) -> int:
    """Of one continuation: the same for every teacher, so that they are compared with common random numbers."""
    answer, part, _ = row
    return stream_seed(config.seed, question, "handover", answer, str(part), index)


def answer_places(
    models: Models, question: str, answers: Arrays, answered: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> list[int | None]:
    """Tokens of each completion before what the verifier reads as its answer: all of them where it reads nothing.

    Args:
        answered: the completions, without the tokens that ended them.

    Returns:
        None where the verifier does not tell.
    """
    texts = tokenizer.batch_decode([list(tokens) for tokens in answered], skip_special_tokens=True)
    reference = models.answer(question)
    attempts = [Attempt(t, reference, bool(cut)) for t, cut in zip(texts, answers["truncated"], strict=True)]
    with TURN.released():
        places = models.verifier.places(attempts)
    return [
        None if place is None else tokens_before(tokens, tokenizer, place)
        for tokens, place in zip(answered, places, strict=True)
    ]


def tokens_before(tokens: Sequence[int], tokenizer: Tokenizer, place: int) -> int:
    """How many tokens have a text of at most `place` characters, special tokens not counted."""

    def length(n: int) -> int:
        return len(tokenizer.batch_decode([list(tokens[:n])], skip_special_tokens=True)[0]) if n else 0

    return bisect_right(range(len(tokens) + 1), place, key=length) - 1
