"""What a trainer holds of a question: rollouts with rewards, and log-probabilities of student and teachers; checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from schemas.config import Context
from schemas.signals import Source
from schemas.text import quoted
from tasks.engines.scoring import wide
from tasks.inputs.errors import InputError
from tasks.statistics.csr import Floats, Ints

_ROUNDING = 0.05
"""Largest distance from 0 of the logarithm of a distribution's sum: what bfloat16 makes of it."""
_ANY = 2**31 - 1
"""The vocabulary of a teacher that tells of some tokens only."""


class TopLogprobs(NamedTuple):
    """What a teacher tells of some tokens only, as inference servers do.

    Its probability of all the others is divided among them as the student's is.

    Attributes:
        ids: token ids, [T, k], each once in a row.
        logprobs: their log-probabilities, [T, k].
    """

    ids: Any
    logprobs: Any


@dataclass(frozen=True)
class Rollouts:
    """Rollouts of one question, sampled from the student.

    Log-probabilities are those after the prompt at each token of the completion, before any sampling temperature:
    `log_softmax(logits[P - 1 : -1, :len(tokenizer)])` of prompt and completion, P the length of the prompt; many models
    have more logits than tokens. They are tensors or arrays, asked for once, one rollout after the other: a sequence
    that computes them on demand keeps those of one in memory.

    Attributes:
        tokens: completions, with the token that ends them: R sequences of token ids.
        rewards: of each rollout, [R]; with 1 for a right answer and 0 for a wrong one gains are in success probability.
        student: the student's log-probabilities, [T_r, V] for each rollout.
        teachers: the same, or `TopLogprobs`, by the teacher's name, or by its name and that of its context.
    """

    tokens: Sequence[Any]
    rewards: Any
    student: Sequence[Any]
    teachers: Mapping[Any, Sequence[Any]]


class Checked:
    """A question's rollouts as arrays.

    Attributes:
        place: the question, for messages.
        tokens, offsets: completions, CSR.
        rewards: [R].
        teachers: by source.
        student: the student.
    """

    def __init__(self, given: Rollouts, place: str) -> None:
        """Check all but log-probabilities, which are checked as they are asked for.

        Raises:
            InputError: they are not what `Rollouts` says.
        """
        R = len(given.tokens)
        if R < 2:
            raise InputError(f"{place}.tokens", f"{R} given; give 2 or more, to compare them with each other")
        completions = [_completion(ids, f"{place}.tokens[{r}]") for r, ids in enumerate(given.tokens)]
        self.place = place
        self.tokens: npt.NDArray[np.int32] = np.concatenate(completions).astype(np.int32)
        self.offsets: Ints = np.cumsum([0, *map(len, completions)], dtype=np.int64)
        self.rewards: Floats = tensor(given.rewards, f"{place}.rewards").double().cpu().numpy()
        if self.rewards.shape != (R,) or not np.isfinite(self.rewards).all():
            raise InputError(
                f"{place}.rewards", f"{quoted(self.rewards.tolist())} given; give {R} finite numbers, one for a rollout"
            )
        if not given.teachers:
            raise InputError(f"{place}.teachers", "none given; give one at least")
        self.student = Given(given.student, completions, f"{place}.student", None)
        self.teachers = {
            _source(key, f"{place}.teachers"): Given(
                rows, completions, f"{place}.teachers[{key!r}]", self.student.first.device
            )
            for key, rows in given.teachers.items()
        }
        if len(self.teachers) < len(given.teachers):
            raise InputError(f"{place}.teachers", f"{quoted(list(given.teachers))} given; give each name once")
        vocabulary = min(view.vocabulary for view in (self.student, *self.teachers.values()))
        for r, ids in enumerate(completions):
            if ids.max() >= vocabulary:
                raise InputError(
                    f"{place}.tokens[{r}]",
                    f"has token {ids.max()}, but log-probabilities are those of {vocabulary} tokens, from 0 on",
                )


class Given:
    """Log-probabilities that are given, in place of a model (`tasks.engines.scoring.Scored`)."""

    longest = 0

    def __init__(
        self,
        by_rollout: Sequence[Any],
        completions: Sequence[Ints],
        place: str,
        device: torch.device | None,
    ) -> None:
        """Take those of the first rollout, for their shape.

        Args:
            device: that they are moved to; None leaves them where they are.

        Raises:
            InputError: they are not what `Rollouts` says.
        """
        if len(by_rollout) != len(completions):
            raise InputError(place, f"of {len(by_rollout)} rollouts; give those of the {len(completions)} in tokens")
        self._by_rollout, self._place, self._device = by_rollout, place, device
        self._lengths = [len(ids) for ids in completions]
        taken = by_rollout[0]
        self.partial, self.vocabulary = isinstance(taken, TopLogprobs), _ANY
        self.first = self._checked(taken, 0)
        if not self.partial:
            self.vocabulary = self.first.shape[1]
        self._kept: dict[int, torch.Tensor] = {0: self.first}

    def hidden(self, rollouts: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Rows of rollouts, [T_i, V] each; ids and log-probabilities, [T_i, k, 2], where only some are told."""
        out = []
        for r in rollouts:
            kept = self._kept.pop(r, None)
            out.append(self._checked(self._by_rollout[r], r) if kept is None else kept)
        return out

    def rows(self, hidden: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """See the protocol; renormalised where there are more tokens."""
        if self.partial:
            return self._spread(hidden, vocabulary)
        if hidden.shape[-1] == vocabulary:
            return hidden
        return torch.log_softmax(wide(hidden, vocabulary)[..., :vocabulary], dim=-1)

    def _spread(self, hidden: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """Some tokens' log-probabilities among -inf, and that of all others: [n, k, 2] -> [n, V + 1]."""
        ids, logprobs = hidden[..., 0].long(), hidden[..., 1]
        if int(ids.max()) >= vocabulary:
            raise InputError(self._place, f"has token {int(ids.max())}, but the student has {vocabulary}, from 0 on")
        out = logprobs.new_full((len(ids), vocabulary + 1), -torch.inf).scatter_(-1, ids, logprobs)
        out[:, -1] = torch.log1p(-logprobs.exp().sum(-1).clamp(max=1.0))
        return out

    def _checked(self, given: Any, r: int) -> torch.Tensor:
        place, T = f"{self._place}[{r}]", self._lengths[r]
        if self.partial != isinstance(given, TopLogprobs):
            raise InputError(place, f"a {type(given).__name__}, unlike that of the first rollout; give all alike")
        if isinstance(given, TopLogprobs):
            ids, logprobs = tensor(given.ids, place), _numbers(given.logprobs, place, T)
            if ids.is_floating_point() or ids.shape != logprobs.shape or bool((ids < 0).any()):
                raise InputError(place, f"ids {list(ids.shape)} of {ids.dtype}; give token ids, one a log-probability")
            ordered = ids.sort(-1).values
            if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
                raise InputError(place, "ids name a token twice in a row; give each once")
            total = logprobs.double().logsumexp(-1)
            if bool((total > _ROUNDING).any()):
                raise InputError(place, f"{_sum(total)}; give log-probabilities, which sum to 1 at most")
            return torch.stack([ids.to(logprobs.device).double(), logprobs.double()], dim=-1).to(device=self._device)
        rows = _numbers(given, place, T)
        if self.vocabulary not in (_ANY, rows.shape[1]):
            raise InputError(place, f"over {rows.shape[1]} tokens, but the first rollout over {self.vocabulary}")
        total = rows.logsumexp(-1).double()
        if bool((total.abs() > _ROUNDING).any()):
            raise InputError(place, f"{_sum(total)}; give log_softmax of the logits, over the whole vocabulary")
        return rows.to(device=self._device)


def tensor(given: Any, place: str) -> torch.Tensor:
    """Anything like an array as a tensor that nothing is differentiated by.

    Raises:
        InputError: it is no array of numbers.
    """
    if isinstance(given, torch.Tensor):
        return given.detach()
    array = np.asarray(given)
    if array.dtype.kind not in "biuf":
        raise InputError(place, f"a {type(given).__name__} of {array.dtype}; give a tensor or an array of numbers")
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.int64) if array.dtype.kind == "u" else array))


def _completion(given: Any, place: str) -> Ints:
    ids = tensor(given, place)
    if ids.ndim != 1 or ids.is_floating_point() or not len(ids) or bool((ids < 0).any()):
        raise InputError(place, f"{list(ids.shape)} of {ids.dtype}; give token ids in one dimension, one at least")
    return np.asarray(ids.cpu().numpy(), dtype=np.int64)


def _numbers(given: Any, place: str, T: int) -> torch.Tensor:
    """Log-probabilities, [T, V] or [T, k], in float32 or float64."""
    rows = tensor(given, place)
    if rows.ndim == 1:
        raise InputError(
            place,
            f"{list(rows.shape)}; give [{T}, vocabulary]: with the sampled token's log-probabilities alone neither the "
            "direction's length nor its mean is known, so no gain",
        )
    if rows.ndim != 2 or len(rows) != T or not rows.is_floating_point():
        raise InputError(
            place, f"{list(rows.shape)} of {rows.dtype}; give numbers [{T}, vocabulary], a row for a token"
        )
    if not bool((rows < torch.inf).all()):  # NaN is not
        raise InputError(place, "has values that are NaN or +inf; give log-probabilities")
    return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()


def _sum(total: torch.Tensor) -> str:
    """The row whose probabilities are farthest from a sum of 1."""
    row = int(total.abs().argmax())
    return f"probabilities at token {row} sum to {float(total[row].exp()):.3g}"


def _source(key: object, place: str) -> Source:
    if isinstance(key, str):
        return Source(key, Context().label)
    if isinstance(key, tuple) and len(key) == 2 and all(isinstance(part, str) for part in key):
        return Source(*key)
    raise InputError(place, f"{quoted(key)} given; give a teacher's name, or its name and that of its context")
