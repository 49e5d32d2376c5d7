"""One call of the sampler, as the loop of all calls works on it: its draws, trunk by trunk."""

from collections.abc import Sequence

from tasks.engines.protocol import Continuation, Draw, Trunk, ended
from tasks.engines.transformers.batches import KeysValues, Row

_SLACK = 16
"""Tokens by which a draw may be longer than the rest of its trunk without an extension of its buffer."""


class Call:
    """The draws of one call, in groups of trunks whose caches fit in memory together.

    Attributes:
        results: of the draws, where they are known.
        groups: the trunks of each group still to be decoded, with the length that is needed of each.
        temperature: of sampling.
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
        self.groups = self._grouped(group_tokens)

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

    def members(self) -> list[int]:
        """The draws of the next group."""
        return [i for i, draw in enumerate(self._draws) if self.results[i] is None and draw.trunk in self.groups[0]]

    def expected(self, i: int) -> int:
        """Expected length of a draw: that of the rest of its trunk, if known."""
        draw = self._draws[i]
        rest = len(self.trunks[draw.trunk].completion) - draw.depth
        return min(draw.limit, rest + _SLACK) if rest > 0 else draw.limit

    def row(self, i: int, cache: KeysValues) -> Row:
        """A draw as a row of a batch."""
        draw, visible = self._draws[i], self._visible[i]
        trunk = self.trunks[draw.trunk]
        token = (trunk.prompt + trunk.completion)[visible] if draw.token is None else draw.token
        return Row(draw, cache, visible, token, self.expected(i))

    def trunk(self, i: int) -> int:
        """The trunk of a draw."""
        return self._draws[i].trunk

    def finish(self, members: Sequence[int], ends: Sequence[Continuation]) -> None:
        """Take the results of the next group, which is then done."""
        for i, end in zip(members, ends, strict=True):
            self.results[i] = end
        self.groups.pop(0)
