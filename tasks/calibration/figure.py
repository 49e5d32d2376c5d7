"""One figure of a calibration, what it must be, and whether it is."""

from typing import Literal, NamedTuple

HONEST = ("adaptive", "forced", "uniform")
"""Planners whose scores claim to be unbiased."""


Verdict = Literal["pass", "fail", "inconclusive"]


class Range(NamedTuple):
    """What a figure must be: within these bounds, in words."""

    low: float
    high: float
    words: str


WITHIN_01 = Range(-0.01, 0.01, "within .01")


COVERS = Range(0.93, 0.97, "93-97 %")


class Figure(NamedTuple):
    """One figure: its value with its standard error, what it is of, and what it must be, if anything."""

    name: str
    value: float | None
    error: float | None
    n: int
    wanted: Range | None = None

    @property
    def verdict(self) -> Verdict | None:
        """Whether the figure is what it must be, as far as its own error lets that be told; None where it must nothing.

        It passes where it lies inside by its standard error or more, and fails where it lies outside by more than two:
        a night in which nothing has changed is then seldom called a failure.
        """
        if self.value is None or self.wanted is None:
            return None
        inside = min(self.value - self.wanted.low, self.wanted.high - self.value)
        error = self.error or 0.0
        return "pass" if inside >= error else "fail" if inside < -2 * error else "inconclusive"

    @property
    def must_be(self) -> str:
        """What it must be, in words."""
        return "" if self.wanted is None else self.wanted.words

    @property
    def row(self) -> dict[str, str | float | int | None]:
        """As a row of a table."""
        shown = {"figure": self.name, "value": self.value, "error": self.error, "of": self.n}
        return {**shown, "must be": self.must_be, "verdict": self.verdict}
