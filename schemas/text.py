"""Text from outside: how it is quoted in one line, and which text can be a name or an id."""

import re
import unicodedata
from collections.abc import Iterable
from reprlib import Repr

from schemas.limits import MOST_ID, MOST_NAME

BETWEEN = " / "
"""Separates the names of teacher and context where they are displayed as one."""

_QUOTED = 80
_REASON = 200
_LINE = 400
_USER = re.compile(r"(?<=://)(?<!\bhf://)[^\s'\"]*@")  # the hub's URLs have a revision after it
_WHOLE_USER = re.compile(r"(?<!\bhf)://.*@", re.DOTALL)
_QUERY = re.compile(r"(://[^\s'\"?#]*[?#])[^\s'\"]*")
_TURNING = {chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


class _Short(Repr):
    """A `repr` of bounded length and depth."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _QUOTED
        self.maxlevel = 4

    def repr_str(self, x: str, level: int) -> str:
        """A text, truncated only after its URL's user and query are removed."""
        return super().repr_str(_WHOLE_USER.sub("://...@", without_user(x)), level)


_short = _Short()


def quoted(value: object) -> str:
    """A value for a message: its `repr`, at most 80 characters, URLs without user and query."""
    try:
        text = _short.repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        text = f"a {type(value).__name__} with thousands of digits"
    return _truncate(visible(without_user(text)), _QUOTED)


def line(message: str) -> str:
    """A message in one line of at most 400 characters, URLs without user and query."""
    return _truncate(visible(without_user(message)), _LINE)


def reason(error: BaseException | str) -> str:
    """The first line of an error's message, at most 200 characters, URLs without user and query."""
    lines = [line.strip() for line in without_user(str(error)).strip().splitlines()]
    if not lines:
        return type(error).__name__
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return _truncate(visible(first), _REASON)


def listed(names: Iterable[object]) -> str:
    """Names separated by commas, at most 200 characters."""
    return _truncate(visible(", ".join(str(name) for name in names)), _REASON)


def visible(text: str) -> str:
    """The text with control characters, invisible ones and lone surrogates escaped."""
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _INVISIBLE else c for c in text)


def after_thinking(text: str) -> str:
    """What a model writes after its thinking, where it marks that; else all of it."""
    return text.rpartition("</think>")[2]


def without_user(text: str) -> str:
    """The text with user, password and query removed from its URLs."""
    return _QUERY.sub(r"\1...", _USER.sub("...@", text)) if "://" in text else text


def name_problem(name: str) -> str | None:
    """Why a text cannot be a name in tables and charts; None where it can."""
    if not name.strip():
        return "is empty; give a name"
    if name != name.strip():
        return "starts or ends with a space; remove it"
    if not name.isprintable():
        return "contains an unprintable character; use letters, digits, punctuation and single spaces"
    if BETWEEN in name:
        return f"contains {BETWEEN!r}, which separates teacher and context in reports; remove the spaces"
    if len(name) > MOST_NAME:
        return f"is {len(name):,} characters long; a name has at most {MOST_NAME}"
    return None


def id_problem(text: str) -> str | None:
    """Why a text cannot be the id of a question; None where it can."""
    if not text.strip():
        return "is empty; every question needs an id"
    if len(text) > MOST_ID:
        return f"is {len(text):,} characters long; an id has at most {MOST_ID}"
    if not text.isprintable() and any(unicodedata.category(c) in _INVISIBLE - {"Cf"} for c in text):
        return "contains a control character, a line break or a lone surrogate; ids are text in one line"
    if turning := _TURNING & set(text):
        return f"contains {visible(min(turning))}, which changes the direction of the text after it; leave it out"
    return None


def _truncate(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
