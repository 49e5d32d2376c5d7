"""Rows of data sets as rows of questions: what a data set has in another form than prompts and verifiers need."""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from schemas.text import quoted

Row = Mapping[str, Any]

_LETTERS = "ABCDEFGHIJ"


def boolq(row: Row) -> dict[str, Any]:
    """BoolQ: the answer is true or false."""
    answer = row.get("answer")
    if str(answer).lower() not in ("true", "false"):
        raise ValueError(f"answer is {quoted(answer)}, neither true nor false")
    return {**row, "answer": "yes" if str(answer).lower() == "true" else "no"}


def mmlu(row: Row) -> dict[str, Any]:
    """MMLU: a list of choices, and the place of the right one."""
    choices, answer = row.get("choices"), row.get("answer")
    if isinstance(choices, str):
        with suppress(ValueError, RecursionError):
            choices = json.loads(choices)
    texts = choices if isinstance(choices, list) and all(isinstance(c, str | int | float) for c in choices) else []
    if not 2 <= len(texts) <= len(_LETTERS):
        raise ValueError(f"choices is {quoted(choices)}, not a list of 2 to {len(_LETTERS)} texts")
    if not re.fullmatch("[0-9]", str(answer)) or int(str(answer)) >= len(texts):
        raise ValueError(f"answer is {quoted(answer)}, not the place of a choice, counted from 0")
    lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, texts, strict=False)]
    return {**row, "choices": "\n".join(lines), "answer": _LETTERS[int(str(answer))]}


def gsm8k(row: Row) -> dict[str, Any]:
    """GSM8K: a solution, then #### and the number."""
    text = row.get("answer")
    solution, marker, answer = str(text).rpartition("####")
    if not marker:
        raise ValueError(f"answer is {quoted(text)}, which has no ####")
    return {**row, "solution": solution.strip(), "answer": answer.strip()}


LAYOUTS: dict[str, Callable[[Row], dict[str, Any]]] = {"plain": dict, "boolq": boolq, "mmlu": mmlu, "gsm8k": gsm8k}
"""By the names that `questions.layout` has for them."""
