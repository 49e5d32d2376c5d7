"""Numbers as people and models write them."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.verifiers.characters import NO_SIGN_AFTER, plain_characters

_THOUSANDS = r"(?:,|\{,\}|,?\\[,!; ]|[\u00a0\u2007\u2009\u202f])"
_DIGITS = rf"(?:[0-9]{{1,3}}(?:{_THOUSANDS}[0-9]{{3}})+(?![0-9])|[0-9]+)"
_PLAIN = rf"(?:{_DIGITS}(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
_PART = rf"(?:\{{\s*-?{_PLAIN}\s*\}}|[0-9])"
_NUMBER = re.compile(
    rf"""
    (?<!\^)(?<!\^\{{)  # not the exponent of something else
    (?:{NO_SIGN_AFTER}(?P<sign>[-+])(?:\\?[$€£¥])?)?
    (?:
        (?:(?P<whole>[0-9]+)\ ?)?\\[dtc]?frac\s*(?P<over>{_PART})\s*(?P<under>{_PART})
      | (?P<count>[0-9]+)\ (?P<numerator>[0-9]+)/(?P<denominator>[0-9]+)
      | (?P<dividend>{_PLAIN})\ ?/\ ?(?P<divisor>{_PLAIN})
      | (?:(?P<factor>{_PLAIN})\s?(?:\\times|\\cdot|[×·*⋅xX])\s?)?
        (?P<base>{_PLAIN})\s?\^\s?(?P<power>\{{\s?[-+]?[0-9]+\s?\}}|-?[0-9]+)
      | (?P<plain>{_PLAIN}(?:[eE][-+]?[0-9]+)?)
    )
    (?P<percent>\s?(?:\\?%|percent\b))?
    """,
    re.VERBOSE,
)
_OTHER = re.compile(r"[^-+0-9.eE]")


@dataclass(frozen=True)
class Number:
    """A parsed number.

    Attributes:
        value: the number before a percent sign, if any.
        percent: whether a percent sign follows.
    """

    value: float
    percent: bool

    def equals(self, other: "Number", tolerance: float) -> bool:
        """Whether this equals the other, to which the tolerance is relative (absolute below 1).

        Where only one of the two is a percentage, it may mean its hundredth or the number before its sign: 50% equals
        both 0.5 and 50.
        """
        readings = {self.value}
        target = other.value
        if self.percent and not other.percent:
            readings.add(self.value / 100)
        if other.percent and not self.percent:
            readings.add(self.value * 100)
        return any(abs(value - target) <= tolerance * max(1.0, abs(target)) for value in readings)


def find_numbers(text: str) -> Iterator[tuple[str, int]]:
    """Each number in a text of plain characters, as written, and the index where it ends."""
    return ((match.group(), match.end()) for match in _NUMBER.finditer(text))


def parse_number(text: str) -> Number:
    """The value of a number in any supported notation.

    These are 1,234.5, 1{,}234, .5, -5 with any minus sign, 1e5, 2 \\times 10^{3}, 2^{10}, 3/4, 1 3/4, \\frac{3}{4} and
    full-width digits, with a currency sign before and a percent sign after them, or between dollar signs.

    Raises:
        ValueError: not a finite number.
    """
    plain = plain_characters(text).strip().removesuffix(".")
    if len(plain) > 2 and plain.startswith("$") and plain.endswith("$"):
        plain = plain[1:-1].strip()
    match = _NUMBER.fullmatch(re.sub(r"^\\?[$€£¥]\s?", "", plain))
    if match is None:
        raise ValueError(f"{text!r} is not a number")
    try:
        value = _magnitude(match)
    except (OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{text!r} is not a finite number") from error
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return Number(-value if match["sign"] == "-" else value, match["percent"] is not None)


def _magnitude(match: re.Match[str]) -> float:
    """The value without sign and percent sign."""

    def part(name: str, otherwise: str = "0") -> str:
        return _OTHER.sub("", match[name] or otherwise)

    if match["over"]:
        return float(part("whole")) + float(part("over")) / float(part("under"))
    if match["count"]:
        return float(part("count")) + float(part("numerator")) / float(part("denominator"))
    if match["dividend"]:
        return float(part("dividend")) / float(part("divisor"))
    if match["base"] == "10":
        return float(f"{part('factor', '1')}e{part('power')}")
    if match["base"]:
        return float(part("factor", "1")) * math.pow(float(part("base")), float(part("power")))
    return float(part("plain"))
