"""Texts that come from outside: how they are shown in one line, and which of them can be names or ids."""

import re
import unicodedata
from collections.abc import Iterable
from reprlib import Repr

from schemas.limits import MOST_ID, MOST_NAME

BETWEEN = " / "
"""Stands between the names of teacher and context where they are shown as one."""

_SHOWN = 80
_REASON = 200
_LINE = 400
_USER = re.compile(r"(?<=://)[^\s'\"]*@")
_WHOLE_USER = re.compile(r"://.*@", re.DOTALL)
_QUERY = re.compile(r"(://[^\s'\"?#]*[?#])[^\s'\"]*")
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


class _Short(Repr):
    """A `repr` of bounded length and depth."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _SHOWN
        self.maxlevel = 4

    def repr_str(self, x: str, level: int) -> str:
        """A text, its URL's user and query left out before it is cut."""
        return super().repr_str(_WHOLE_USER.sub("://...@", without_user(x)), level)


_short = _Short()


def quoted(value: object) -> str:
    """A value for a message: as Python writes it, at most 80 characters, URLs without user and query."""
    try:
        text = _short.repr(value)
    except ValueError:  # Python does not write whole numbers of more than 4,300 digits
        text = f"a {type(value).__name__} with thousands of digits"
    return _cut(visible(without_user(text)), _SHOWN)


def line(message: str) -> str:
    """A message within bounds: at most 400 characters, in one line, URLs without user and query."""
    return _cut(visible(without_user(message)), _LINE)


def reason(error: BaseException | str) -> str:
    """The first line of what an error says, at most 200 characters, URLs without user and query."""
    lines = without_user(str(error)).strip().splitlines()
    if not lines:
        return type(error).__name__
    return _cut(visible(lines[0]), _REASON)


def listed(names: Iterable[object]) -> str:
    """Names, by commas, at most 200 characters."""
    return _cut(visible(", ".join(str(name) for name in names)), _REASON)


def visible(text: str) -> str:
    """The text with control characters, invisible ones and lone surrogates written as escapes."""
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _INVISIBLE else c for c in text)


def without_user(text: str) -> str:
    """The text, its URLs without user, password and query."""
    return _QUERY.sub(r"\1...", _USER.sub("...@", text)) if "://" in text else text


def name_problem(name: str) -> str | None:
    """Why a text cannot be a name in tables and charts; None where it can."""
    if not name.strip():
        return "is empty; give a name"
    if name != name.strip():
        return "begins or ends with a space; leave that out"
    if not name.isprintable():
        return "holds a character that cannot be printed; use letters, digits, signs and single spaces"
    if BETWEEN in name:
        return f"holds {BETWEEN!r}, which stands between teacher and context in reports; leave out the spaces"
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
        return "holds a control character, a line break or half of a character; ids are text in one line"
    return None


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
