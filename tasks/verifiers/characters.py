"""Characters that look like plain ones, as they stand in completions and answers."""

import re

_PLAIN: dict[int, int | str] = {0xFF01 + i: 0x21 + i for i in range(94)}  # full-width forms of ASCII
_PLAIN |= dict.fromkeys((0x2212, 0xFE63), "-")  # minus signs

_DASH = re.compile(r"(?<![\w)\]}])[\u2010-\u2013](?=[0-9.\\$])")


def plain_characters(text: str) -> str:
    """The text with full-width forms and minus signs in ASCII.

    Hyphens and en dashes are minus signs where a number follows at once and no word or closing bracket stands before.
    """
    return _DASH.sub("-", text.translate(_PLAIN))
