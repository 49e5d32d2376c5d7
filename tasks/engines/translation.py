"""A model with another tokenizer scores the student's completions: which of its tokens and positions are the student's.

Two tokens are the same where their texts are. A position of the student's is covered where a token of the other model
starts there too, in the other tokenizer's own encoding of the whole text; there the other model's probability of a
token is that of writing its text in one token. What it gives to texts that are no token of the student's is known only
as a sum.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tasks.engines.protocol import Scorer
from tasks.engines.scoring import View

_BROKEN = "\ufffd"
"""What a part of a character is decoded to."""
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_STEP = 4096
_PROBE = "The answer is 42, as 6 times 7 is 42."


class Aligned(NamedTuple):
    """A completion in the other model's tokens.

    Attributes:
        tokens: of the other model, its end included where the student's is.
        rows: for each of the student's tokens, the place before which the other model's distribution is its own; -1
            where it is not covered; [T].
    """

    tokens: list[int]
    rows: npt.NDArray[np.int64]


class Translation:
    """Between the tokenizers of student and teacher.

    Attributes:
        student, teacher: ids of the tokens that both have, [n] each, every one once.
    """

    def __init__(self, student: Any, teacher: Any, ends: frozenset[int] = frozenset()) -> None:
        """Compare the texts of all tokens.

        Args:
            student, teacher: tokenizers.
            ends: the student's tokens that end a completion, besides its tokenizer's.

        Raises:
            ValueError: the teacher's tokenizer is the student's; or one has no end, or texts that its tokens do not add
                up to.
        """
        if teacher.eos_token_id is None or student.eos_token_id is None:
            raise ValueError("its tokenizer, or the student's, has no end-of-sequence token")
        if student.get_vocab() == teacher.get_vocab():
            raise ValueError("its tokenizer is the student's; leave it out")
        for whose, tokenizer in (("the student's", student), ("its", teacher)):
            ids = [int(token) for token in tokenizer(_PROBE, add_special_tokens=False)["input_ids"]]
            parts = decoded_after(tokenizer, [[token] for token in ids])
            if "".join(parts) != decoded_after(tokenizer, [ids])[0]:
                raise ValueError(f"{whose} tokenizer does not give a text as that of its tokens one after another")
        self._student, self._teacher = student, teacher
        self._ends = ends | {int(student.eos_token_id)}
        self._texts, self._teacher_texts = token_texts(student), token_texts(teacher)
        own, others = (
            _by_text(tokenizer, texts) for tokenizer, texts in ((student, self._texts), (teacher, self._teacher_texts))
        )
        pairs = {int(student.eos_token_id): int(teacher.eos_token_id)}
        pairs |= {token: others[text] for text, token in own.items() if text in others and token not in pairs}
        self.student = torch.tensor(list(pairs), dtype=torch.long)
        self.teacher = torch.tensor(list(pairs.values()), dtype=torch.long)

    def align(self, completion: Sequence[int]) -> Aligned:
        """A completion of the student's in the other model's tokens."""
        ended = bool(len(completion)) and int(completion[-1]) in self._ends
        body = [int(token) for token in (completion[:-1] if ended else completion)]
        own = _pieces(self._student, self._texts, body)
        tokens = [int(token) for token in self._teacher(own.text, add_special_tokens=False)["input_ids"]]
        other = _pieces(self._teacher, self._teacher_texts, tokens)
        added = len(other.text) - len(own.text)  # some tokenizers add a space before the first word
        rows: dict[int, int] = {}
        if other.text == f"{' ' * added}{own.text}" and added in (0, 1):
            for place, start in enumerate(other.starts):
                if start >= 0:
                    rows.setdefault(max(0, start - added), place)
        starts = own.starts
        if ended:
            tokens.append(int(self._teacher.eos_token_id))
            rows.setdefault(len(own.text), len(tokens) - 1)
            starts = [*starts, -1 if own.broken else len(own.text)]
        return Aligned(tokens, np.array([rows.get(start, -1) for start in starts], dtype=np.int64))


class _Pieces(NamedTuple):
    """A text as that of tokens one after another.

    Attributes:
        starts: where each token starts; -1 within a character.
        broken: whether it ends within a character.
    """

    starts: list[int]
    text: str
    broken: bool


def _pieces(tokenizer: Any, texts: Mapping[int, str], tokens: Sequence[int]) -> _Pieces:
    """The pieces of some tokens; `texts` are those of tokens by themselves."""
    starts, parts, length = list[int](), list[str](), 0
    waiting: list[int] = []
    for token in tokens:
        starts.append(-1 if waiting else length)
        waiting.append(token)
        text = texts.get(token) if len(waiting) == 1 else None
        if text is None:
            text = decoded_after(tokenizer, [waiting])[0]
        if _BROKEN in text and len(waiting) < _LONGEST_CHARACTER:
            continue
        parts.append(text)
        length += len(text)
        waiting = []
    return _Pieces(starts, "".join(parts), bool(waiting))


_LONGEST_CHARACTER = 4
"""Most tokens of one character, a byte each."""


class TranslatedView:
    """A teacher with a tokenizer of its own, as a view of the student's completions.

    Its rows are over the student's vocabulary and one more, all that the teacher gives to other texts: -inf for tokens
    that it does not have, and everywhere where a position is not covered.
    """

    partial = True

    def __init__(
        self,
        scorer: Scorer,
        prompt: Sequence[int],
        by_rollout: Sequence[Sequence[int]],
        translation: Translation,
        vocabulary: int,
    ) -> None:
        self._own = View(scorer, prompt, by_rollout)
        self.vocabulary, self._translation = vocabulary, translation

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return self._own.longest

    def hidden(self, rollouts: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Final hidden states with a column more, 1 where the position is covered, else 0: [T_i, H + 1] each."""
        aligned = [
            self._fitting(self._translation.align(completion), rollout)
            for rollout, completion in zip(rollouts, completions, strict=True)
        ]
        out = []
        for states, of_one in zip(self._own.hidden(rollouts, [a.tokens or [0] for a in aligned]), aligned, strict=True):
            rows = torch.from_numpy(of_one.rows).to(states.device)
            covered = (rows >= 0).to(states.dtype)[:, None]
            out.append(torch.cat([states[rows.clamp(min=0)], covered], dim=1))
        return out

    def _fitting(self, aligned: Aligned, rollout: int) -> Aligned:
        """As much of a completion as the teacher can take after its prompt; no later position is covered."""
        prompt, longest = self._own.prompt_of(rollout), self._own.scorer.longest
        if longest is None or len(prompt) + len(aligned.tokens) <= longest:
            return aligned
        room = max(1, longest - len(prompt))
        return Aligned(aligned.tokens[:room], np.where(aligned.rows < room, aligned.rows, -1))

    def rows(self, hidden: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """Log-probabilities, and in the last column that of all other tokens: [n, H + 1] -> [n, vocabulary + 1]."""
        log_t = self._own.scorer.log_probs(hidden[:, :-1])
        student, teacher = (ids.to(log_t.device) for ids in (self._translation.student, self._translation.teacher))
        within = (student < vocabulary) & (teacher < log_t.shape[-1])
        out = log_t.new_full((len(log_t), vocabulary + 1), -torch.inf)
        out[:, student[within]] = log_t[:, teacher[within]]
        others = torch.ones(log_t.shape[-1], dtype=torch.bool, device=log_t.device)
        others[teacher[within]] = False
        out[:, -1] = log_t[:, others].logsumexp(-1)
        return out.masked_fill(hidden[:, -1:] == 0, -torch.inf)


def _by_text(tokenizer: Any, texts: Mapping[int, str]) -> dict[str, int]:
    """The token of each text; of several, one that is not a byte, which stands for characters without a token."""
    names = tokenizer.convert_ids_to_tokens(list(texts))
    ordered = sorted(zip(texts.items(), names, strict=True), key=lambda each: bool(_BYTE.fullmatch(str(each[1]))))
    out: dict[str, int] = {}
    for (token, text), _ in ordered:
        out.setdefault(text, token)
    return out


def token_texts(tokenizer: Any) -> dict[int, str]:
    """The text of every token that is one by itself: no special token, and no part of a character."""
    special = set(tokenizer.all_special_ids)
    ids = [i for i in sorted(tokenizer.get_vocab().values()) if i not in special]
    out: dict[int, str] = {}
    for start in range(0, len(ids), _STEP):
        part = ids[start : start + _STEP]
        out |= zip(part, decoded_after(tokenizer, [[i] for i in part]), strict=True)
    return {token: text for token, text in out.items() if text and _BROKEN not in text}


def decoded_after(tokenizer: Any, tokens: Sequence[Sequence[int]]) -> list[str]:
    """Texts of tokens in the middle of a text, where a decoder does not leave out a leading space."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    (before,) = tokenizer.batch_decode([anchor], **options)
    texts = tokenizer.batch_decode([[*anchor, *row] for row in tokens], **options)
    return [text[len(before) :] for text in texts]
