"""Texts that contexts show and nobody has: written by a model, and screened."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from schemas.arrays import SCREEN, AnyArray, Arrays
from schemas.config import Generation, RunConfig
from schemas.signals import Source, model_sources
from schemas.text import after_thinking
from tasks.engines.protocol import Draw, Trunk
from tasks.stages.answers import sample_answers
from tasks.stages.protocol import Made, Models, Tokenizer, Work
from tasks.statistics.streams import stream_seed

KEPT, CUT, SHORT, ANSWER, NO_ANSWER, SCRIPT, NO_GAIN = range(len(SCREEN))

_IN_NUMBER = re.compile(r"(?<=\d),(?=\d{3})")
_MOSTLY = 0.5
"""Share of letters in the prompt's script from which on a text is in it."""


def make(work: Work) -> Made:
    """The texts of one question, for every requested teacher with its context."""
    written = work.provider.write(work.question, [signal.source for signal in work.signals], work.read("rollouts"))
    return {source.every_loss: arrays for source, arrays in written.items()}


def make_texts(
    models: Models, config: RunConfig, source: Source, question: str, rollouts: Arrays
) -> dict[str, AnyArray]:
    """The arrays of one source's texts: for the question, or for each rollout."""
    generation = model_sources(config)[source][1].generate
    if generation is None:
        raise ValueError(f"context {source.context} has no generated text")
    prompts = models.writer_prompts(source, question, rollouts)
    trunks = [Trunk(tuple(prompt)) for prompt in prompts]
    draws = [
        Draw(place, 0, None, generation.max_tokens, stream_seed(config.seed, question, "text", place, n))
        for place in range(len(prompts))
        for n in range(generation.tries)
    ]
    ends = models.writer(source).continue_prefixes(trunks, draws, generation.temperature)
    texts = [text_of(end.tokens.tolist(), models.writer_tokenizer(source)) for end in ends]
    asked = models.tokenizer.batch_decode([models.prompt(question)], skip_special_tokens=True)[0]
    verdicts = [
        screen(text, generation, asked, models.answer(question), truncated=end.truncated)
        for text, end in zip(texts, ends, strict=True)
    ]
    arrays: dict[str, AnyArray] = {
        "tokens": np.concatenate([np.empty(0, dtype=np.int32), *(end.tokens for end in ends)]).astype(np.int32),
        "offsets": np.cumsum([0, *(len(end.tokens) for end in ends)]).astype(np.int64),
        "place": np.array([draw.trunk for draw in draws], dtype=np.int32),
        "verdict": np.array(verdicts, dtype=np.int8),
    }
    if generation.success_draws:
        arrays["verdict"] = compared(models, config, source, question, rollouts, arrays, generation.success_draws)
    return arrays


def compared(
    models: Models, config: RunConfig, source: Source, question: str, rollouts: Arrays, texts: Arrays, draws: int
) -> AnyArray:
    """The verdicts, once the teacher has answered with each text that is kept so far, and as often without any.

    A text with which it is not right more often is not kept, unless it is right always. Where each rollout has a text
    of its own, a text is shown after the prompt of its rollout.
    """
    verdict, of_rollouts = np.array(texts["verdict"]), model_sources(config)[source][1].written_for_rollouts
    rates: dict[tuple[int, int], float] = {}

    def success(place: int, text: int | None) -> float:
        """Of the teacher, where only this text would be shown."""
        key = place, -1 if text is None else text
        if key not in rates:
            alone = np.full_like(verdict, NO_GAIN)
            if text is not None:
                alone[text] = KEPT
            prompt, by_rollout = models.teacher_prompts(source, question, rollouts, {**texts, "verdict": alone})
            asked = by_rollout[place : place + 1] if of_rollouts else by_rollout or [prompt]
            answered = sample_answers(models, config, source, question, asked, draws, f"compared at {place}")
            rates[key] = float(np.mean(answered["success"]))
        return rates[key]

    for text in np.flatnonzero(verdict == KEPT).tolist():
        place = int(texts["place"][text])
        if (with_text := success(place, text)) < 1 and with_text <= success(place, None):
            verdict[text] = NO_GAIN
    return verdict


def text_of(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """What a writer says after its thinking, without special tokens."""
    return after_thinking(tokenizer.batch_decode([list(tokens)], skip_special_tokens=True)[0]).strip()


def shown(texts: Arrays, tokenizer: Tokenizer) -> dict[int, str]:
    """The first text of each place that passes the screen; a place without one is left out."""
    out: dict[int, str] = {}
    spans = pairwise(np.asarray(texts["offsets"]).tolist())
    for (first, last), place, verdict in zip(spans, texts["place"].tolist(), texts["verdict"].tolist(), strict=True):
        if verdict == KEPT and place not in out:
            out[place] = text_of(texts["tokens"][first:last].tolist(), tokenizer)
    return out


def screen(text: str, generation: Generation, prompt: str, answer: str, *, truncated: bool) -> int:
    """Why a text is not shown, as an index into `SCREEN`; 0 where it is."""
    if truncated:
        return CUT
    if len(text.split()) < generation.shortest or not text:
        return SHORT
    stated = states(text, answer)
    if generation.answer == "absent" and stated:
        return ANSWER
    if generation.answer == "present" and not stated:
        return NO_ANSWER
    return KEPT if not generation.same_script or in_script_of(text, prompt) else SCRIPT


def states(text: str, answer: str) -> bool:
    """True where the reference answer stands in the text by itself, whatever case, spaces and commas in numbers."""
    wanted, found = (_IN_NUMBER.sub("", " ".join(t.casefold().split())) for t in (answer, text))
    return re.search(rf"(?<![\w./-]){re.escape(wanted)}(?![./]?\w)", found) is not None


def in_script_of(text: str, prompt: str) -> bool:
    """True where most letters of a text are of the script that most letters of the prompt are of."""
    found, wanted = scripts(text), scripts(prompt)
    if not found or not wanted:
        return True
    return found[wanted.most_common(1)[0][0]] >= _MOSTLY * found.total()


def scripts(text: str) -> Counter[str]:
    """Letters of a text by script: the first word of their Unicode names, such as LATIN or CJK."""
    return Counter(unicodedata.name(c, "?").split()[0].split("-")[0] for c in text if c.isalpha())


def told(written: Mapping[Source, Sequence[Arrays]]) -> list[str]:
    """A line for each teacher with a generated context: how many texts were kept, and why others were dropped.

    Args:
        written: texts of every question.
    """
    lines = []
    for source, of_questions in written.items():
        verdicts = Counter(verdict for texts in of_questions for verdict in texts["verdict"].tolist())
        places = sum(len(set(texts["place"].tolist())) for texts in of_questions)
        without = places - sum(len(kept_places(texts)) for texts in of_questions)
        dropped = ", ".join(f"{verdicts[i]} {SCREEN[i]}" for i in range(1, len(SCREEN)) if verdicts[i])
        line = f"{source.teacher} / {source.context}: {verdicts[KEPT]} of {verdicts.total()} generated texts are kept"
        line += f" ({dropped})" if dropped else ""
        line += f"; {without} of {places} prompts have none, and are as otherwise says" if without else ""
        lines.append(line)
    return lines


def kept_places(texts: Arrays) -> set[int]:
    """Places with a text that passes the screen."""
    return set(np.asarray(texts["place"])[np.asarray(texts["verdict"]) == KEPT].tolist())
