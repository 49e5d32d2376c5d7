"""Parses answers of a vLLM server; any violation of its contract is a one-line error."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from tasks.engines.vllm.bounds import NoAnswerError
from tasks.engines.vllm.connection import Answer

_LONGEST_SEQUENCE = 2**31 - 1
_LARGEST = 1e5
"""Largest magnitude of a log-probability; vLLM writes -9999 for minus infinity."""
_ABORTED = ("abort", "error")


def version(answer: Answer) -> str:
    """The vLLM version, from `/version`; it becomes part of keys.

    Raises:
        EngineError: the answer contains none.
    """
    found = _field(answer.value, "version")
    if not isinstance(found, str) or not re.fullmatch(r"[0-9A-Za-z.+_!-]{1,100}", found):
        raise answer.wrong("gives no version of vLLM", answer.value)
    return found


def model(answer: Answer, wanted: str | None) -> tuple[str, int]:
    """Name and longest sequence of a model from `/v1/models`: the wanted one, or the only one.

    Raises:
        EngineError: the model is not served, or the answer is not a list of models.
    """
    listed = _field(answer.value, "data")
    if not isinstance(listed, list) or not listed:
        raise answer.wrong("lists no models", answer.value)
    lengths: dict[str, object] = {}
    for entry in listed:
        name = _field(entry, "id")
        if not isinstance(name, str) or not name:
            raise answer.wrong("lists a model without a name", entry)
        lengths[name] = _field(entry, "max_model_len")
    if wanted is None and len(lengths) > 1:
        raise answer.wrong("serves several models; set engine.model to one of them", sorted(lengths))
    name = next(iter(lengths)) if wanted is None else wanted
    if name not in lengths:
        raise answer.wrong(f"serves other models than engine.model {wanted!r}", sorted(lengths))
    length = lengths[name]
    if type(length) is not int or not 0 < length <= _LONGEST_SEQUENCE:
        raise answer.wrong("gives no max_model_len from 1 to 2147483647", {name: length})
    return name, length


def token_ids(answer: Answer, prompt: Sequence[int]) -> list[int]:
    """The token ids of a sampled completion.

    Raises:
        EngineError: there is no completion, it has no ids, or it continues another prompt (e.g. a truncated one).
        NoAnswerError: the server aborted the draw.
    """
    choice = _choice(answer)
    if choice.get("finish_reason") in _ABORTED:
        raise NoAnswerError(f"{answer.url} aborted a draw ({choice['finish_reason']})")
    continued = choice.get("prompt_token_ids")
    if continued is not None and continued != list(prompt):
        raise answer.wrong(f"continued a prompt other than the one of {len(prompt)} tokens", continued)
    found = choice.get("token_ids")
    if found is None:
        raise answer.wrong("returns no token ids (vLLM 0.10.2 or newer is needed)", choice)
    if not isinstance(found, list):
        raise answer.wrong("returns token_ids that are not a list", found)
    ids = [token for token in found if type(token) is int]
    if len(ids) < len(found):
        raise answer.wrong("sampled something that is not a token id", next(t for t in found if type(t) is not int))
    return ids


def prompt_log_probs(answer: Answer, prompt: Sequence[int]) -> list[float]:
    """Log-probabilities of a prompt's tokens except the first.

    Raises:
        EngineError: one is missing or is not a number.
    """
    steps = _choice(answer).get("prompt_logprobs")
    if not isinstance(steps, list) or len(steps) != len(prompt):
        raise answer.wrong(f"gives no prompt_logprobs of the probe's {len(prompt)} tokens", steps)
    return [_log_prob(answer, step, token) for token, step in zip(prompt[1:], steps[1:], strict=True)]


class Step(NamedTuple):
    """What a server tells of one position of a prompt.

    Attributes:
        log_probs: of its likeliest tokens and of the one that stands there, by id.
        texts: of these tokens, where it tells them.
    """

    log_probs: dict[int, float]
    texts: dict[int, str]


def prompt_steps(answer: Answer, prompt: Sequence[int]) -> list[Step]:
    """What a server tells of every position of a prompt; nothing of the first.

    Raises:
        EngineError: a position is missing, its own token is, or a number is none.
    """
    steps = _choice(answer).get("prompt_logprobs")
    if not isinstance(steps, list) or len(steps) != len(prompt):
        raise answer.wrong(f"gives no prompt_logprobs of the {len(prompt)} tokens", type(steps).__name__)
    out = [Step({}, {})]
    for token, step in zip(prompt[1:], steps[1:], strict=True):
        if not isinstance(step, dict) or str(token) not in step:
            raise answer.wrong(f"gives no log-probability of token {token}", step)
        log_probs, texts = dict[int, float](), dict[int, str]()
        for name, value in step.items():
            text = _field(value, "decoded_token")
            if not name.isdigit():
                raise answer.wrong("names a token that is no number", name)
            log_probs[int(name)] = min(_log_prob(answer, step, int(name)), 0.0)
            if isinstance(text, str):
                texts[int(name)] = text
        out.append(Step(log_probs, texts))
    return out


def _log_prob(answer: Answer, step: object, token: int) -> float:
    found = _field(_field(step, str(token)), "logprob")
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) <= _LARGEST:
        raise answer.wrong(f"gives no log-probability of the probe's token {token}", step)
    return float(found)


def _choice(answer: Answer) -> dict[str, object]:
    choices = _field(answer.value, "choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise answer.wrong("does not answer with one completion", answer.value)
    return choices[0]


def _field(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None
