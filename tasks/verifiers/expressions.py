"""Mathematical expressions in completions and reference answers, as math-verify parses them."""

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache

from tasks.verifiers.characters import UNSPACED, plain_characters
from tasks.verifiers.protocol import Reading

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile("[{}]")
_LISTED = re.compile(r"[\s$,;]*(?:(?:and|or|\\text\{\s*(?:and|or)\s*\})[\s$,;]*)?")
_DELIMITED = re.compile(r"(?<!\\)(?:\$\$.+?\$\$|\$.+?(?<!\\)\$|\\\(.+?\\\)|\\\[.+?\\\])", re.DOTALL)
_PRODUCT = re.compile(r"(?<!\S)-?[0-9.]+\\[A-Za-z](?:[^\s{}$]|\{[^{}$]*\})*(?=[.,;:]?(?:\s|$))")
_DELIMITED_OR_PRODUCT = re.compile(rf"{_DELIMITED.pattern}|(?P<product>{_PRODUCT.pattern})", re.DOTALL)
_DELIMITER = re.compile(r"(?<!\\)(?:\$+|\\[()\[\]])")
_AFTER_WORD = re.compile(rf"(?<=[{UNSPACED}])(?=-?[0-9.])")
_WORD = re.compile(r"(?!and\b|or\b)\b[A-Za-z]{2,}")
_THOUSANDS = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:(?:,?\\[,!; ]|[ \u00a0\u2007\u2009\u202f])[0-9]{3})+(?![0-9])")
_MIXED = re.compile(r"(?<![0-9.,/])([0-9]+) ([0-9]+)/([0-9]+)(?![0-9/])")
_SCIENTIFIC = re.compile(r"(?<![\w.])[0-9]+(?:\.[0-9]+)?[eE][-+]?[0-9]{1,2}(?!\w)")
_ROOT = re.compile(r"√\s*(?:([0-9]+|[A-Za-z])|\(([^()]*)\))")
_REPEATING = re.compile(r"(?<![0-9.])([0-9]{1,15})\.([0-9]{0,15})\\(?:overline|bar)\s*(?=[0-9{])\{?([0-9]{1,15})\}?")
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_FRACTIONS = re.compile("[¼½¾⅐-⅞]")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_NO_MEANING = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,!;: ]|\s")


def last_box(text: str) -> str | None:
    """Content of the last `\\boxed{}` and of boxes listed with it; empty where it is not closed; None without one."""
    found = place_of_box(text)
    return None if found is None else found.text


def place_of_box(text: str) -> Reading | None:
    """What `last_box` gives, and where the first of these boxes starts."""
    closed = _matching_braces(text)
    boxes = [(found.start(), found.end(), closed.get(found.end() - 1)) for found in _BOX.finditer(text)]
    if not boxes:
        return None
    contents: list[str] = []
    after = len(text)
    for start, inside, end in reversed(boxes):
        if end is None or (contents and not (end < after and _LISTED.fullmatch(text, end + 1, after))):
            break
        contents.append(text[inside:end])
        after = start
    return Reading(",".join(reversed(contents)), after if contents else boxes[-1][0])


def _matching_braces(text: str) -> dict[int, int]:
    """Index of each closing brace, by the index of its opening brace."""
    unclosed: list[int] = []
    pairs = {}
    for found in _BRACE.finditer(text):
        if found.group() == "{":
            unclosed.append(found.start())
        elif unclosed:
            pairs[unclosed.pop()] = found.start()
    return pairs


def read_completion(text: str) -> list[object]:
    """The final expression of a completion without a box, as math-verify finds it; empty where there is none."""
    from math_verify import parse

    plain = _AFTER_WORD.sub(" ", _in_latex(text))  # math-verify requires white space before a number
    return list(parse(_DELIMITED_OR_PRODUCT.sub(_kept_whole, plain), parsing_timeout=None))


@lru_cache(maxsize=256)
def read_answer(answer: str) -> tuple[object, ...]:
    """A reference answer: its box, the text after `####`, or all of it, parsed as LaTeX; empty where nothing is parsed.

    Never only a part of it: 3\\sqrt{2} is not 3. In a sentence with delimited expressions, those are parsed.
    """
    text = answer_text(answer)
    outside, delimited = _DELIMITED.subn(" ", text)
    if delimited and _WORD.search(outside):
        return tuple(_parse_latex(_in_latex(text)))
    return tuple(read_expression(text))


def answer_text(answer: str) -> str:
    """The part of a reference answer that is the answer: its box, else the text after the last `####`, else all."""
    box = last_box(answer)
    return (answer.rpartition("####")[2] if box is None else box).strip()


def read_expression(text: str) -> list[object]:
    """An expression as a whole, with or without delimiters, as math-verify parses it: its value, and its text."""
    plain = " ".join(_DELIMITER.sub("", _in_latex(text)).split())
    plain = re.sub(r"(?<!\\right)\.$", "", plain)
    return _parse_latex(f"${_in_mixed_form(plain)}$")


def same_text(text: str, other: str) -> bool:
    """Whether two expressions have the same text, ignoring spaces, fonts and, in words, case."""
    a, b = _normalized(text), _normalized(other)
    return bool(a) and (a == b or (len(a) > 1 and a.casefold() == b.casefold()))


def _parse_latex(text: str) -> list[object]:
    from math_verify import LatexExtractionConfig, parse

    return list(parse(text, [LatexExtractionConfig()], parsing_timeout=None))


def _normalized(text: str) -> str:
    plain = _DELIMITER.sub("", plain_characters(text))
    return _NO_MEANING.sub("", _TEXT.sub(r"\1", plain)).rstrip(".")


def _in_latex(text: str) -> str:
    """The text with characters and number formats that math-verify misreads converted to LaTeX or plain digits."""
    text = _FRACTIONS.sub(_fraction, plain_characters(text))
    text = _SUPERSCRIPTS.sub(lambda found: "^{" + plain_characters(unicodedata.normalize("NFKC", found[0])) + "}", text)
    text = _REPEATING.sub(_repeating, text).replace("°", r"^\circ")
    text = _ROOT.sub(lambda found: r"\sqrt{" + (found[1] or found[2]) + "}", text)
    text = _THOUSANDS.sub(lambda found: re.sub("[^0-9]", "", found[0]), text)
    return _SCIENTIFIC.sub(lambda found: format(Decimal(found[0]), "f"), text)


def _kept_whole(found: re.Match[str]) -> str:
    """An expression in a completion, from which no number may be extracted: a bare 3\\sqrt{2} gets delimiters."""
    if found["product"] is not None:
        return f"${found[0].rstrip('.,;:')}$"
    return _in_mixed_form(found[0])


def _in_mixed_form(text: str) -> str:
    return _MIXED.sub(r"\1\\frac{\2}{\3}", text)


def _repeating(found: re.Match[str]) -> str:
    """0.1\\overline{6} as a fraction."""
    before, after, repeated = found.groups()
    over = int(before + after + repeated) - int(before + after)
    return rf"\frac{{{over}}}{{{10 ** len(after) * (10 ** len(repeated) - 1)}}}"


def _fraction(found: re.Match[str]) -> str:
    over, _, under = unicodedata.normalize("NFKC", found[0]).partition("\u2044")
    return rf"\frac{{{over}}}{{{under}}}"
