"""Look-alikes of plain characters, as they occur in completions and answers."""

import re

_PLAIN: dict[int, int | str] = {0xFF01 + i: 0x21 + i for i in range(94)}  # full-width forms of ASCII
_PLAIN |= dict.fromkeys((0x2212, 0xFE63), "-")  # minus signs

UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Letters written without spaces between words, such as Chinese ones, for a regular expression's character class."""

NO_SIGN_AFTER = rf"(?<!(?![{UNSPACED}])[\w)\]}}%])"
"""Matches where a minus is a sign: not after a word, a number or a closing bracket, where it joins or subtracts."""

_DASH = re.compile(NO_SIGN_AFTER + r"[\u2010-\u2013](?=[0-9.\\$])")


def plain_characters(text: str) -> str:
    """The text with full-width forms and minus signs in ASCII.

    Hyphens and en dashes become minus signs where a number follows directly and no word or closing bracket precedes.
    """
    return _DASH.sub("-", text.translate(_PLAIN))
