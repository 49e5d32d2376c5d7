"""One call of the sampler, as the loop of all calls works on it: its draws, trunk by trunk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.engines.protocol import Continuation, Draw, Trunk, ended
from tasks.engines.transformers.batches import KeysValues, Row

_SLACK = 16
"""Tokens by which a draw may be longer than the rest of its trunk without an extension of its buffer."""


@dataclass(frozen=True)
class Group:
    """Draws of a call whose trunks fit in memory together.

    Attributes:
        trunks: the length that is needed of each trunk.
        members: the draws.
        expected: tokens that each of them is expected to need, the most first.
    """

    trunks: dict[int, int]
    members: list[int]
    expected: list[int]


class Call:
    """The draws of one call.

    Attributes:
        results: of the draws, where they are known.
        groups: still to be decoded, in order.
        temperature: of sampling.
        needed: tokens that an attempt at the first group has turned out to need.
    """

    def __init__(
        self,
        trunks: Sequence[Trunk],
        draws: Sequence[Draw],
        temperature: float,
        stop: frozenset[int],
        group_tokens: int,
    ) -> None:
        """Sort the draws; `group_tokens` are the most tokens in the caches of a group, unless one trunk has more."""
        self.trunks, self._draws, self.temperature = trunks, draws, temperature
        self.results: list[Continuation | None] = [ended(draw, stop) for draw in draws]
        # without a forced token, the first input of a draw is the last token of its prefix
        self._visible = [len(trunks[d.trunk].prompt) + d.depth - (d.token is None) for d in draws]
        self.groups = [self._group(trunks) for trunks in self._grouped(group_tokens)]
        self.needed = 0

    def _grouped(self, group_tokens: int) -> list[dict[int, int]]:
        needed: dict[int, int] = {}
        for draw, visible, result in zip(self._draws, self._visible, self.results, strict=True):
            if result is None:
                needed[draw.trunk] = max(visible, needed.get(draw.trunk, 0))
        groups: list[dict[int, int]] = []
        for trunk, length in needed.items():
            if not groups or sum(groups[-1].values()) + length > group_tokens:
                groups.append({})
            groups[-1][trunk] = length
        return groups

    def _group(self, trunks: dict[int, int]) -> Group:
        members = [i for i, draw in enumerate(self._draws) if self.results[i] is None and draw.trunk in trunks]
        return Group(trunks, members, sorted((self._expected(i) + 1 for i in members), reverse=True))

    def _expected(self, i: int) -> int:
        """Expected length of a draw: that of the rest of its trunk, if known."""
        draw = self._draws[i]
        rest = len(self.trunks[draw.trunk].completion) - draw.depth
        return min(draw.limit, rest + _SLACK) if rest > 0 else draw.limit

    def rows(self, caches: Mapping[int, KeysValues]) -> list[Row]:
        """The draws of the first group as rows of a batch; `caches` are those of its trunks."""
        return [self._row(i, caches[self._draws[i].trunk]) for i in self.groups[0].members]

    def _row(self, i: int, cache: KeysValues) -> Row:
        draw, visible = self._draws[i], self._visible[i]
        trunk = self.trunks[draw.trunk]
        token = (trunk.prompt + trunk.completion)[visible] if draw.token is None else draw.token
        return Row(draw, cache, visible, token, self._expected(i))

    def finish(self, ends: Sequence[Continuation]) -> None:
        """Take the results of the first group, which is then done."""
        for i, end in zip(self.groups.pop(0).members, ends, strict=True):
            self.results[i] = end
        self.needed = 0
