"""Verifiers that look at the text alone.

Each takes a completion, the reference answer and whether the completion was cut by the length limit; a cut
completion passes only where something after its answer shows that the answer was complete.
"""

import re
from collections.abc import Callable

from schemas.config import ChoiceVerifier, ExactVerifier, NumericVerifier

Check = Callable[[str, str, bool], bool]

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?%?")


def after_marker(text: str, marker: str | None) -> str | None:
    """What follows the last occurrence of the marker; the whole text without a marker, None where it is missing."""
    if marker is None:
        return text
    _, found, rest = text.rpartition(marker)
    return rest if found else None


def exact(settings: ExactVerifier) -> Check:
    """Equal texts, up to white space and, if asked, case."""

    def check(completion: str, answer: str, cut: bool) -> bool:
        found = after_marker(completion, settings.marker)
        if found is None or cut:
            return False
        a, b = " ".join(found.split()), " ".join(answer.split())
        return a.casefold() == b.casefold() if settings.ignore_case else a == b

    return check


def parse_number(text: str) -> float:
    """The value of a number as people write it: 1,234.5, 3/4, 12%.

    Raises:
        ValueError: not a number.
    """
    plain = text.replace(",", "").replace(" ", "")
    scale = 0.01 if plain.endswith("%") else 1.0
    numerator, _, denominator = plain.rstrip("%").partition("/")
    if denominator and float(denominator) == 0:
        raise ValueError(f"{text!r} divides by zero")
    return scale * float(numerator) / (float(denominator) if denominator else 1.0)


def numeric(settings: NumericVerifier) -> Check:
    """The last number equals the answer, within the relative tolerance."""

    def check(completion: str, answer: str, cut: bool) -> bool:
        found = after_marker(completion, settings.marker)
        numbers = list(_NUMBER.finditer(found)) if found is not None else []
        if found is None or not numbers or (cut and numbers[-1].end() == len(found)):
            return False
        if cut and settings.marker is None:
            return False
        try:
            value = parse_number(numbers[-1].group())
        except ValueError:
            return False
        target = parse_number(answer)
        return abs(value - target) <= settings.tolerance * max(1.0, abs(target))

    return check


def choice(settings: ChoiceVerifier) -> Check:
    """The last stand-alone label equals the answer."""
    labels = "|".join(re.escape(label) for label in sorted(settings.labels, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{labels})(?!\w)")

    def check(completion: str, answer: str, cut: bool) -> bool:
        found = after_marker(completion, settings.marker)
        matches = list(pattern.finditer(found)) if found is not None else []
        if found is None or not matches or (cut and (settings.marker is None or matches[-1].end() == len(found))):
            return False
        return matches[-1].group() == answer.strip()

    return check
