"""One figure of a calibration: the range required of it, and whether it lies there."""

from typing import Literal, NamedTuple

HONEST = ("adaptive", "forced", "uniform")
"""Planners whose scores claim to be unbiased."""

Verdict = Literal["pass", "fail", "inconclusive"]


class Range(NamedTuple):
    """The required range of a figure, also in words."""

    low: float
    high: float
    words: str


WITHIN_01 = Range(-0.01, 0.01, "within .01")
COVERS = Range(0.93, 0.97, "93-97 %")


class Figure(NamedTuple):
    """One figure: its value, standard error and sample size, and its required range if there is one."""

    name: str
    value: float | None
    error: float | None
    n: int
    wanted: Range | None = None

    @property
    def verdict(self) -> Verdict | None:
        """Whether the figure lies in its required range, given its standard error; None if nothing is required.

        It passes if it lies inside by at least its standard error, and fails if it lies outside by more than two:
        a night in which nothing has changed is then rarely reported as a failure.
        """
        if self.value is None or self.wanted is None:
            return None
        inside = min(self.value - self.wanted.low, self.wanted.high - self.value)
        error = self.error or 0.0
        return "pass" if inside >= error else "fail" if inside < -2 * error else "inconclusive"

    @property
    def must_be(self) -> str:
        """The required range, in words."""
        return "" if self.wanted is None else self.wanted.words

    @property
    def row(self) -> dict[str, str | float | int | None]:
        """As a row of a table."""
        measured = {"figure": self.name, "value": self.value, "error": self.error, "of": self.n}
        return {**measured, "must be": self.must_be, "verdict": self.verdict}
