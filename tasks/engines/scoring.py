"""Streams vocabulary rows at completion positions, for one or several views in lockstep; never all rows at once."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tasks.engines.protocol import Completed, EngineError, Scorer
from tasks.engines.stopping import check_stopped

DOUBLE_UP_TO = 4096
"""Largest vocabulary for which rows are double; float32 above, with sums in double."""


class Scored(Protocol):
    """A model with its prompts, as a source of rows over the student's vocabulary at the student's positions."""

    @property
    def partial(self) -> bool:
        """True where rows are -inf for tokens that the model does not tell the probability of."""
        ...

    @property
    def vocabulary(self) -> int:
        """V, the number of token ids that rows range over."""
        ...

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        ...

    def hidden(self, rollouts: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """States from which rows are computed, [T_i, ...] for each completion."""
        ...

    def rows(self, hidden: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """Log-probabilities over the first `vocabulary` tokens, [n, ...] -> [n, vocabulary].

        Partial ones have a column more: the log-probability of all tokens that they do not tell.
        """
        ...


class View(NamedTuple):
    """A model that scores completions after its own prompt, or, where these differ, after one for each rollout."""

    scorer: Scorer
    prompt: Sequence[int]
    by_rollout: Sequence[Sequence[int]] = ()

    @property
    def partial(self) -> bool:
        """Whole distributions are known."""
        return False

    def prompt_of(self, rollout: int) -> Sequence[int]:
        """The prompt after which a rollout is scored."""
        return self.by_rollout[rollout] if self.by_rollout else self.prompt

    def hidden(self, rollouts: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Final hidden states of completions of some rollouts, [T_i, H] each; those with one prompt go together."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, rollout in enumerate(rollouts):
            places.setdefault(tuple(int(t) for t in self.prompt_of(rollout)), []).append(place)
        states: dict[int, torch.Tensor] = {}
        for prompt, at in places.items():
            states |= zip(at, self.scorer.hidden(prompt, [completions[i] for i in at]), strict=True)
        return [states[i] for i in range(len(completions))]

    @property
    def vocabulary(self) -> int:
        """That of the model."""
        return self.scorer.vocabulary

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.by_rollout or [self.prompt]))

    def rows(self, hidden: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """Log-probabilities, renormalised where the model has more tokens."""
        log_probs = self.scorer.log_probs(hidden)
        if log_probs.shape[-1] == vocabulary:
            return log_probs
        return torch.log_softmax(wide(log_probs, vocabulary)[..., :vocabulary], dim=-1)


def score_blocks(
    views: Sequence[Scored],
    tokens: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    *,
    rows: npt.NDArray[np.int64] | None = None,
    block: int = 64,
    group_tokens: int = 65536,
) -> Iterator[tuple[npt.NDArray[np.int64], list[torch.Tensor]]]:
    """Next-token log-probabilities at all completion positions, or at selected ones.

    Args:
        views: models with their prompts; equal views are computed once.
        tokens: completions, [T], CSR with offsets [R+1].
        rows: increasing positions (indices into T); None for all.
        block: most vocabulary rows in memory at once.
        group_tokens: most tokens in one forward pass.

    Yields:
        positions [n <= block] and, for each view, their log-probabilities [n, V], or [n, V + 1] where it is partial; V
            is the smallest vocabulary.
    """
    wanted = np.arange(len(tokens), dtype=np.int64) if rows is None else rows
    vocabulary = min(view.vocabulary for view in views)
    distinct = [views.index(view) for view in views]
    owner = np.searchsorted(offsets, wanted, side="right") - 1
    needed = np.unique(owner)
    longest = max(view.longest for view in views)
    for places in grouped(np.diff(offsets)[needed], group_tokens - longest):
        group = needed[places].tolist()
        positions = wanted[np.searchsorted(owner, group[0]) : np.searchsorted(owner, group[-1], side="right")]
        of_each = np.searchsorted(positions, offsets[[group, [r + 1 for r in group]]]).T.tolist()
        states: dict[int, torch.Tensor] = {}
        for i in set(distinct):
            completions = [tokens[offsets[r] : offsets[r + 1]].tolist() for r in group]
            hidden = views[i].hidden(group, completions)
            picked = [
                h[torch.from_numpy(positions[first:last] - offsets[r])]
                for h, r, (first, last) in zip(hidden, group, of_each, strict=True)
            ]
            states[i] = torch.cat(picked)
            del hidden
        for start in range(0, len(positions), block):
            check_stopped()
            part = slice(start, start + block)
            scored = {i: _checked(views[i].rows(h[part], vocabulary), vocabulary) for i, h in states.items()}
            yield positions[part], [scored[i] for i in distinct]


def tempered(log_probs: torch.Tensor, temperature: float) -> torch.Tensor:
    """The sampling policy: probabilities [n, V] at the temperature."""
    return log_probs.exp() if temperature == 1.0 else torch.softmax(log_probs / temperature, dim=-1)


def _checked(log_probs: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Log-probabilities in double where that is cheap.

    Raises:
        EngineError: a value is NaN or +infinity.
    """
    if not bool((log_probs < torch.inf).all()):
        raise EngineError("the model returns log-probabilities that are not numbers; try dtype float32 or bfloat16")
    return wide(log_probs, vocabulary)


def wide(log_probs: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Log-probabilities in double where that is cheap."""
    return log_probs.double() if vocabulary <= DOUBLE_UP_TO else log_probs


def padded_groups(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Places of consecutive sequences with at most `limit` tokens together, padding included; at least one a group."""
    groups: list[list[int]] = []
    longest = 0
    for place, length in enumerate(lengths):
        longest = max(longest, length)
        if not groups or longest * (len(groups[-1]) + 1) > limit:
            groups.append([])
            longest = length
        groups[-1].append(place)
    return groups


def grouped(lengths: npt.NDArray[np.int64], limit: int) -> Iterator[list[int]]:
    """Places of consecutive sequences with at most `limit` tokens together; at least one per group."""
    group: list[int] = []
    total = 0
    for place, length in enumerate(lengths.tolist()):
        if group and total + length > limit:
            yield group
            group, total = [], 0
        group.append(place)
        total += length
    if group:
        yield group


def hidden_each(
    views: Sequence[Scored], rollouts: Sequence[int], completions: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """States of one completion by each view, [T_i, ...] each; those of one model in this process go together."""
    out: dict[int, torch.Tensor] = {}
    of_model: dict[int, list[int]] = {}
    for place, view in enumerate(views):
        if isinstance(view, View):
            of_model.setdefault(id(view.scorer), []).append(place)
        else:
            (out[place],) = view.hidden([rollouts[place]], [completions[place]])
    for places in of_model.values():
        together = [view for view in (views[place] for place in places) if isinstance(view, View)]
        prompts = [view.prompt_of(rollouts[p]) for view, p in zip(together, places, strict=True)]
        sequences = [Completed(prompt, completions[p]) for prompt, p in zip(prompts, places, strict=True)]
        out |= zip(places, together[0].scorer.hidden_each(sequences), strict=True)
    return [out[place] for place in range(len(views))]
