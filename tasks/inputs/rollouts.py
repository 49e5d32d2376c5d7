"""Rollouts of another system, read from its tables: which question each belongs to, its tokens and its reward."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from schemas.arrays import AnyArray
from schemas.config import RolloutTable
from schemas.limits import MOST_ROLLOUTS
from schemas.text import listed, quoted
from tasks.inputs.errors import InputError
from tasks.inputs.questions import read_rows

Row = Mapping[str, Any]

_FIELD = "rollouts.path"


class RolloutRow(NamedTuple):
    """A row.

    Attributes:
        question: its id; None where the prompt says which question it is.
        prompt, completion: text or token ids.
        truncated: stopped by a length limit; None where the table does not tell.
    """

    question: str | None
    prompt: str | tuple[int, ...] | None
    completion: str | tuple[int, ...]
    reward: float
    truncated: bool | None


class GivenRollout(NamedTuple):
    """A completion with its end, as token ids."""

    tokens: tuple[int, ...]
    reward: float
    truncated: bool


class GivenRollouts:
    """The rollouts of a table by question.

    Args:
        prompts: the student's prompt of each question, token ids.
        tokenizer: the student's.
        max_tokens: length limit of a completion.
        ends: tokens that end a completion.
        limited: whether there are fewer questions than in their file; then rollouts of others are left out.
    """

    def __init__(
        self,
        table: RolloutTable,
        prompts: Mapping[str, Sequence[int]],
        tokenizer: Any,
        max_tokens: int,
        *,
        ends: frozenset[int] = frozenset(),
        limited: bool = False,
    ) -> None:
        """Read and check every row.

        Raises:
            InputError: the message names row and column.
        """
        self._prompts, self._correct_from, self._ends = prompts, table.correct_from, ends
        self._tokenizer, self._most, self._vocabulary = tokenizer, max_tokens, len(tokenizer)
        by_prompt = self._forms(prompts)
        self.of_question: dict[str, list[GivenRollout]] = {}
        unknown: str | None = None
        for number, row in enumerate(read_rows(table.path, _FIELD), 1):
            try:
                read = FORMATS[table.format](row, table.reward)
                question = read.question
                if question is None:
                    form = _form(read.prompt)
                    question = by_prompt.get(form)
                    if question is None and form in by_prompt:
                        raise ValueError(
                            "its prompt is that of several questions; give format opdscope with question_id"
                        )
                if question not in prompts:
                    if not limited:
                        raise ValueError(_unknown(read, prompts))
                    unknown = unknown or f"row {number} of {quoted(table.path)}: {_unknown(read, prompts)}"
                    continue
                self.of_question.setdefault(str(question), []).append(self._rollout(read))
            except ValueError as error:
                raise InputError(_FIELD, f"row {number} of {quoted(table.path)}: {error}") from error
        if unknown is not None and not self.of_question:
            raise InputError(_FIELD, unknown)
        for question, rollouts in self.of_question.items():
            if len(rollouts) > MOST_ROLLOUTS:
                many = f"{len(rollouts):,} rollouts of question {quoted(question)}"
                raise InputError(_FIELD, f"{quoted(table.path)} has {many}; a question has at most {MOST_ROLLOUTS:,}")

    @property
    def of_success(self) -> bool:
        """True where every reward is 0 or 1."""
        return all(rollout.reward in (0, 1) for rollouts in self.of_question.values() for rollout in rollouts)

    def arrays(self, question: str) -> dict[str, AnyArray]:
        """The arrays of stage 1 of one question."""
        rollouts = self.of_question[question]
        reward = np.array([rollout.reward for rollout in rollouts], dtype=np.float64)
        return {
            "prompt": np.array(self._prompts[question], dtype=np.int32),
            "tokens": np.array([token for rollout in rollouts for token in rollout.tokens], dtype=np.int32),
            "offsets": np.cumsum([0, *(len(rollout.tokens) for rollout in rollouts)]).astype(np.int64),
            "correct": reward >= self._correct_from,
            "truncated": np.array([rollout.truncated for rollout in rollouts], dtype=bool),
            "reward": reward,
        }

    def _forms(self, prompts: Mapping[str, Sequence[int]]) -> dict[str | tuple[int, ...], str | None]:
        """Questions by their prompts, ids and text with and without special tokens; None where several have one."""
        found: dict[str | tuple[int, ...], str | None] = {}
        texts = [
            self._tokenizer.batch_decode([list(ids) for ids in prompts.values()], skip_special_tokens=skipped)
            for skipped in (False, True)
        ]
        for place, (question, ids) in enumerate(prompts.items()):
            for form in {tuple(ids), *(of_form[place].strip() for of_form in texts)}:
                found[form] = None if form in found else question
        return found

    def _rollout(self, row: RolloutRow) -> GivenRollout:
        if not math.isfinite(row.reward):
            raise ValueError(f"its reward is {row.reward}; give a finite number")
        end = self._tokenizer.eos_token_id
        tokens = self._encoded(row.completion) if isinstance(row.completion, str) else row.completion
        if wrong := [token for token in tokens if not 0 <= token < self._vocabulary]:
            raise ValueError(f"token {wrong[0]} is not among the student's {self._vocabulary:,}")
        ended = bool(tokens) and tokens[-1] in self._ends
        truncated = row.truncated if row.truncated is not None else not ended and len(tokens) >= self._most
        if isinstance(row.completion, str) and not truncated and not ended and end is not None:
            tokens = (*tokens, int(end))  # which text does not show
        if not tokens:
            raise ValueError("its completion is empty")
        if len(tokens) > self._most:
            raise ValueError(
                f"its completion has {len(tokens):,} tokens; raise sampling.max_tokens, now {self._most:,}"
            )
        return GivenRollout(tokens, row.reward, truncated)

    def _encoded(self, text: str) -> tuple[int, ...]:
        ids = tuple(int(i) for i in self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if self._tokenizer.decode(list(ids)) != text:
            raise ValueError(f"completion {quoted(text)} does not survive encoding and decoding; give its token ids")
        return ids


def _form(prompt: str | tuple[int, ...] | None) -> str | tuple[int, ...]:
    return prompt.strip() if isinstance(prompt, str) else prompt or ()


def _unknown(row: RolloutRow, prompts: Mapping[str, Sequence[int]]) -> str:
    if row.question is not None:
        return f"question_id {quoted(row.question)} is not among the {len(prompts)} questions"
    shown = quoted(row.prompt) if isinstance(row.prompt, str) else f"{len(row.prompt or ())} token ids"
    return (
        f"its prompt ({shown}) is that of none of the {len(prompts)} questions; opdscope show prints them as rendered"
    )


def _column(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise ValueError(f"it has no {quoted(name)}; its columns are {listed(row)}")
    return row[name]


def _number(row: Row, name: str) -> float:
    value = _column(row, name)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {quoted(value)}; give a number") from None


def _ids(row: Row, name: str) -> tuple[int, ...]:
    value = _column(row, name)
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        raise ValueError(f"{name} is {quoted(value)}; give a list of token ids")
    return tuple(value)


def _flag(row: Row, name: str) -> bool | None:
    value = row.get(name)
    if value is None or isinstance(value, bool):
        return value
    if str(value).lower() not in ("true", "false"):
        raise ValueError(f"{name} is {quoted(value)}; give true or false")
    return str(value).lower() == "true"


def _said(row: Row, name: str) -> str:
    """A text, or the last of a list of messages."""
    value = _column(row, name)
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if not isinstance(value, str):
        raise ValueError(f"{name} is {quoted(value)}; give text")
    return value


def _opdscope(row: Row, reward: str | None) -> RolloutRow:
    tokens = _ids(row, "tokens") if row.get("tokens") is not None else _said(row, "completion")
    question = str(_column(row, "question_id"))
    return RolloutRow(question, None, tokens, _number(row, reward or "reward"), _flag(row, "truncated"))


def _trl(row: Row, reward: str | None) -> RolloutRow:
    """TRL's logged completions: text as rendered, and a column for each reward function."""
    if reward is None:
        columns = [name for name in row if name.endswith("reward")]
        if len(columns) != 1:
            raise ValueError(f"rewards are {listed(columns) or 'missing'}; name one in rollouts.reward")
        reward = columns[0]
    return RolloutRow(None, _said(row, "prompt"), _said(row, "completion"), _number(row, reward), None)


def _verl(row: Row, reward: str | None) -> RolloutRow:
    """verl's dump of rollouts: texts without special tokens."""
    return RolloutRow(None, _said(row, "input"), _said(row, "output"), _number(row, reward or "score"), None)


def _prime_rl(row: Row, reward: str | None) -> RolloutRow:
    """prime-rl's tokens: those in the loss are the completion."""
    tokens, mask = _ids(row, "token_ids"), _column(row, "loss_mask")
    if not isinstance(mask, list) or len(mask) != len(tokens) or any(used not in (0, 1) for used in mask):
        raise ValueError(f"loss_mask is not a list of {len(tokens)} times true or false, as token_ids is of tokens")
    first = next((i for i, used in enumerate(mask) if used), len(mask))
    if not all(mask[first:]):
        raise ValueError("loss_mask has gaps: a completion of several turns is not one rollout")
    return RolloutRow(None, tokens[:first], tokens[first:], _number(row, reward or "reward"), None)


FORMATS: dict[str, Callable[[Row, str | None], RolloutRow]] = {
    "opdscope": _opdscope,
    "trl": _trl,
    "verl": _verl,
    "prime_rl": _prime_rl,
}
"""By the names that `rollouts.format` has for them."""
