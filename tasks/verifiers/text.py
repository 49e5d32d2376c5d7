"""Verifiers that only compare text.

Each takes a completion, the reference answer and whether the length limit truncated it; a truncated
completion passes only where text after its answer shows that the answer was complete.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import regex

from schemas.config import ChoiceVerifier, ExactVerifier, NumericVerifier, RegexVerifier, YesNoVerifier
from tasks.verifiers.characters import UNSPACED, plain_characters
from tasks.verifiers.numbers import find_numbers, parse_number
from tasks.verifiers.protocol import Attempt, Reading


@dataclass(frozen=True)
class Check:
    """How one kind judges: what it reads in a completion, and whether that agrees with the answer.

    Attributes:
        read: of a completion, and whether it was truncated: what is its answer; None where it has none.
        agrees: of what was read, and the reference answer.
    """

    read: Callable[[str, bool], Reading | None]
    agrees: Callable[[str, str], bool]

    def __call__(self, completion: str, answer: str, truncated: bool) -> bool:
        """The verdict."""
        found = self.read(completion, truncated)
        return found is not None and self.agrees(found.text, answer)


_WORD = rf"(?![{UNSPACED}_])\w"  # a letter or digit that forms a word with the letter beside it
_MAY_CONTINUE = re.compile(r"[ \t.,/^\\]*")


def after_marker(text: str, marker: str | None) -> Reading | None:
    """The text after the last occurrence of the marker; all text without a marker, None where it is missing."""
    if marker is None:
        return Reading(text, 0)
    before, found, rest = text.rpartition(marker)
    return Reading(rest, len(before) + len(found)) if found else None


def exact(settings: ExactVerifier) -> Check:
    """Equal texts, ignoring white space, the composition of accents (Unicode NFC) and, optionally, case."""

    def read(completion: str, truncated: bool) -> Reading | None:
        return None if truncated else after_marker(completion, settings.marker)

    return Check(read, partial(_same_text, ignore_case=settings.ignore_case))


def _same_text(one: str, other: str, *, ignore_case: bool) -> bool:
    a, b = (" ".join(unicodedata.normalize("NFC", text).split()) for text in (one, other))
    return a.casefold() == b.casefold() if ignore_case else a == b


def numeric(settings: NumericVerifier) -> Check:
    """The last number equals the answer, within the relative tolerance; see `Number.equals` for percentages.

    A last number that is not finite, such as 1/0 or 1e999, is wrong.
    """

    def read(completion: str, truncated: bool) -> Reading | None:
        found = after_marker(completion, settings.marker)
        if found is None or (truncated and settings.marker is None):
            return None
        text = plain_characters(found.text)  # of the same length
        numbers = list(find_numbers(text))
        if not numbers or (truncated and _MAY_CONTINUE.fullmatch(text, numbers[-1][1])):
            return None
        number, end = numbers[-1]
        return Reading(number, found.start + end - len(number))

    def agrees(found: str, answer: str) -> bool:
        try:
            value = parse_number(found)
        except ValueError:
            return False
        return value.equals(parse_number(answer), settings.tolerance)

    return Check(read, agrees)


def _words(words: Iterable[str], *, ignore_case: bool) -> re.Pattern[str]:
    """Matches some words where they stand alone.

    Letters written without spaces between words, such as Chinese ones, and markup do not join a word to another.
    """
    any_of = "|".join(map(re.escape, words))
    return re.compile(rf"(?<!{_WORD})(?:{any_of})(?!{_WORD})", re.IGNORECASE if ignore_case else 0)


def _last_word(pattern: re.Pattern[str], marker: str | None, completion: str, truncated: bool) -> Reading | None:
    """The last match after the marker; None without one, or where a truncated completion may go on."""
    found = after_marker(completion, marker)
    if found is None or (truncated and marker is None):
        return None
    text = plain_characters(found.text)
    matches = list(pattern.finditer(text))
    if not matches or (truncated and matches[-1].end() == len(text)):
        return None
    return Reading(matches[-1].group(), found.start + matches[-1].start())


def choice(settings: ChoiceVerifier) -> Check:
    """The last stand-alone label equals the answer.

    A label that is also a word, such as the article A, is a label wherever it occurs.
    """
    longest_first = sorted(settings.labels, key=len, reverse=True)
    pattern = _words(map(plain_characters, longest_first), ignore_case=settings.ignore_case)

    def agrees(found: str, answer: str) -> bool:
        label = plain_characters(label_of(settings, answer) or answer)
        return found.casefold() == label.casefold() if settings.ignore_case else found == label

    return Check(partial(_last_word, pattern, settings.marker), agrees)


_YES_NO = {"yes": True, "true": True, "no": False, "false": False}
_YES_NO_WORDS = _words(_YES_NO, ignore_case=True)


def yes_or_no(text: str) -> bool | None:
    """What a text alone says: yes, no, true or false, whatever the case; None where it says something else."""
    return _YES_NO.get(text.strip().casefold())


def yes_no(settings: YesNoVerifier) -> Check:
    """The last yes, no, true or false means the same as the answer."""

    return Check(
        partial(_last_word, _YES_NO_WORDS, settings.marker), lambda word, answer: yes_or_no(word) == yes_or_no(answer)
    )


_MOST_SECONDS = 0.2
"""Of looking for one pattern in one completion."""


def matching(settings: RegexVerifier) -> Check:
    """The last match's first group, or the last match, equals the answer; a search that is too long finds nothing."""
    pattern = regex.compile(settings.pattern)

    def read(completion: str, truncated: bool) -> Reading | None:
        last = None
        try:
            for match in pattern.finditer(completion, timeout=_MOST_SECONDS):
                last = match
        except TimeoutError:
            return None
        if last is None or (truncated and last.end() == len(completion)):
            return None
        group = 1 if pattern.groups and last.group(1) is not None else 0
        return Reading(last.group(1 if pattern.groups else 0) or "", last.start(group))

    return Check(read, partial(_same_text, ignore_case=settings.ignore_case))


def label_of(settings: ChoiceVerifier, answer: str) -> str | None:
    """The label that a reference answer means: the same text, else the only one equal except for case; None: none."""
    text = answer.strip()
    candidates = [label for label in settings.labels if label.casefold() == text.casefold()]
    if text in candidates:
        return text
    return candidates[0] if len(candidates) == 1 else None


class _TextVerifier:
    """A `tasks.verifiers.protocol.VerifierKind` with one check."""

    version: ClassVar[int] = 2
    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, check: Check) -> None:
        self._check = check

    def check_all(self, attempts: Sequence[Attempt]) -> list[bool]:
        """Verdicts, in order."""
        return [self._check(*attempt) for attempt in attempts]

    def read_all(self, attempts: Sequence[Attempt]) -> list[str | None]:
        """What it reads, in order."""
        found = (self._check.read(attempt.completion, attempt.truncated) for attempt in attempts)
        return [None if reading is None else reading.text for reading in found]

    def places(self, attempts: Sequence[Attempt]) -> list[int | None]:
        """Where what it reads begins, at the first of the mentions with no other reading between them."""
        return [self._place(attempt) for attempt in attempts]

    def _place(self, attempt: Attempt) -> int:
        reading = self._check.read(attempt.completion, attempt.truncated)
        if reading is None:
            return len(attempt.completion)
        start = reading.start
        while (before := self._check.read(attempt.completion[:start], False)) is not None:
            if before.start >= start or not self._same(before.text, reading.text):
                break
            start = before.start
        return start

    def _same(self, one: str, other: str) -> bool:
        try:
            return one == other or self._check.agrees(one, other)
        except ValueError:  # a reading need not be an answer, such as 1/0
            return False

    def problem(self, answers: Sequence[str]) -> tuple[int, str] | None:
        """The first reference answer that it could never accept, as index and reason."""
        for i, answer in enumerate(answers):
            error = self._refuse(answer) if answer.strip() else "is empty"
            if error is not None:
                return i, error
        return None

    def close(self) -> None:
        """Nothing to release."""

    def _refuse(self, answer: str) -> str | None:
        return None


class ExactText(_TextVerifier):
    """Equal texts."""

    def __init__(self, settings: ExactVerifier) -> None:
        super().__init__(exact(settings))


class LastNumber(_TextVerifier):
    """The last number."""

    def __init__(self, settings: NumericVerifier) -> None:
        super().__init__(numeric(settings))

    def _refuse(self, answer: str) -> str | None:
        try:
            parse_number(answer)
        except ValueError:
            return "is not a finite number; choose another verifier"
        return None


class LastYesOrNo(_TextVerifier):
    """The last yes or no."""

    def __init__(self, settings: YesNoVerifier) -> None:
        super().__init__(yes_no(settings))

    def _refuse(self, answer: str) -> str | None:
        return None if yes_or_no(answer) is not None else "is neither yes nor no, true nor false"


class LastMatch(_TextVerifier):
    """The last match of a pattern."""

    packages: ClassVar[tuple[str, ...]] = ("regex",)

    def __init__(self, settings: RegexVerifier) -> None:
        super().__init__(matching(settings))


class LastLabel(_TextVerifier):
    """The last label of a choice."""

    def __init__(self, settings: ChoiceVerifier) -> None:
        super().__init__(choice(settings))
        self._settings = settings

    def _refuse(self, answer: str) -> str | None:
        if label_of(self._settings, answer) is not None:
            return None
        return f"is not one of the labels {self._settings.labels}"
