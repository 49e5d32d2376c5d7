"""Outcomes of draws: verified continuations in the layouts of rounds."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from schemas.arrays import AnyArray, Arrays
from tasks.engines.protocol import Continuation, Trunk
from tasks.engines.turn import TURN
from tasks.stages.protocol import Models, Tokenizer
from tasks.statistics.csr import offsets_of
from tasks.verifiers.protocol import Attempt


def outcomes(
    models: Models,
    question: str,
    prefixes: Sequence[Sequence[int]],
    ends: Sequence[Continuation],
    tokenizer: Tokenizer | None = None,
) -> dict[str, AnyArray]:
    """Outcomes of continuations in the layout "rounds"; `prefixes` are the completion tokens before each."""
    return {
        "success": verified(models, question, prefixes, ends, tokenizer or models.tokenizer),
        "truncated": np.array([end.truncated for end in ends], dtype=bool),
        "length": np.array([len(end.tokens) for end in ends], dtype=np.int32),
    }


def continuations(
    models: Models,
    question: str,
    prefixes: Sequence[Sequence[int]],
    ends: Sequence[Continuation],
    tokenizer: Tokenizer | None = None,
) -> dict[str, AnyArray]:
    """Outcomes with their tokens, in the layout "continuations"; the tokenizer is the student's unless given."""
    verdicts = outcomes(models, question, prefixes, ends, tokenizer)
    return {
        "success": verdicts["success"],
        "truncated": verdicts["truncated"],
        "tokens": np.concatenate([np.empty(0, dtype=np.int32), *(end.tokens for end in ends)]).astype(np.int32),
        "offsets": offsets_of(verdicts["length"]),
    }


def trunks(rollouts: Arrays) -> list[Trunk]:
    """Rollouts as trunks that draws branch off, in order."""
    prompt, tokens = tuple(rollouts["prompt"].tolist()), rollouts["tokens"]
    return [Trunk(prompt, tuple(tokens[a:b].tolist())) for a, b in pairwise(rollouts["offsets"])]


def verified(
    models: Models,
    question: str,
    prefixes: Sequence[Sequence[int]],
    ends: Sequence[Continuation],
    tokenizer: Tokenizer,
) -> npt.NDArray[np.bool_]:
    """Verdicts on completions, each being a prefix and its continuation."""
    completions = [(*start, *end.tokens.tolist()) for start, end in zip(prefixes, ends, strict=True)]
    distinct = list(dict.fromkeys(completions))
    texts = dict(zip(distinct, tokenizer.batch_decode(distinct, skip_special_tokens=True), strict=True))
    answer = models.answer(question)
    attempts = [Attempt(texts[c], answer, end.truncated) for c, end in zip(completions, ends, strict=True)]
    verifier = models.verifier
    with TURN.released():
        verdicts = verifier.check_all(attempts)
    return np.array(verdicts, dtype=bool)
