"""Texts from outside: what is shown of them is one bounded line without secrets or control characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.limits import MOST_ID, MOST_NAME
from schemas.text import BETWEEN, id_problem, line, listed, name_problem, quoted, reason, visible, without_user

ANYTHING = st.text(st.characters(exclude_categories=()))  # lone surrogates too
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANYTHING | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(ANYTHING, inner),
)


@given(NESTED)
def test_a_value_is_shown_in_one_printable_line_of_bounded_length(value: object) -> None:
    text = quoted(value)
    assert len(text) <= 80 and visible(text) == text and "\n" not in text


@given(ANYTHING)
def test_lines_and_reasons_are_bounded_and_can_be_written(text: str) -> None:
    assert len(line(text)) <= 400 and len(reason(text)) <= 200 and len(listed([text] * 3)) <= 200
    for told in (line(text), reason(text), listed([text])):
        assert told.isascii() or told.encode()  # no half of a character
        assert "\n" not in told and "\x1b" not in told


@given(ANYTHING)
def test_what_is_visible_stays_as_it_is(text: str) -> None:
    assert visible(visible(text)) == visible(text)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\u202eb", "a\\u202eb"),  # writes what follows from right to left
        ("a\u2028b", "a\\u2028b"),
        ("a\ud800b", "a\\ud800b"),
        ("a\tb\r\n", "a\\tb\\r\\n"),
        ("سؤال שאלה é 😀", "سؤال שאלה é 😀"),
        ("a\u00a0b", "a\u00a0b"),
    ],
)
def test_what_would_change_a_terminal_is_escaped(text: str, escaped: str) -> None:
    assert visible(text) == escaped


SECRET = st.text(st.characters(categories=("L", "N"), exclude_characters="x"), min_size=6, max_size=200)


@given(SECRET, SECRET, st.sampled_from(["s3://{}:{}@host/a", "https://{}{}@host", "http://h/a?token={}&b={}"]))
def test_no_secret_of_a_url_is_shown(one: str, two: str, form: str) -> None:
    url = form.format(one, two)
    for told in (
        quoted(url),
        quoted([url]),
        quoted({"store": url}),
        line(f"at {url}"),
        reason(f"at {url}"),
        reason(url),
    ):
        assert one not in told and two not in told


def test_a_password_that_is_cut_does_not_show_in_part() -> None:
    assert quoted("s3://user:" + "p" * 500 + "@host/x") == "'s3://...@host/x'"
    assert "p" * 5 not in quoted("s3://us er:" + "p" * 30 + "@" + "h" * 300)


def test_text_without_urls_keeps_its_signs() -> None:
    assert without_user("a@b.c, what? # 1") == "a@b.c, what? # 1"
    assert without_user("see http://h/a?b=c and http://h/d") == "see http://h/a?... and http://h/d"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError(""), "ValueError"),
        (ValueError("  \n  "), "ValueError"),
        (OSError("first\nsecond"), "first"),
        ("\n\nlast", "last"),
        (ValueError("x" * 300), "x" * 197 + "..."),
    ],
)
def test_the_reason_is_the_first_line_that_says_something(error: BaseException | str, told: str) -> None:
    assert reason(error) == told


def test_a_number_of_thousands_of_digits_can_be_shown() -> None:
    assert quoted(10**5000) == "a int with thousands of digits"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        ("a ", "starts or ends with a space"),
        ("\u00a0a", "starts or ends with a space"),
        ("a\nb", "contains an unprintable character"),
        ("a\u200bb", "contains an unprintable character"),
        ("a\u202eb", "contains an unprintable character"),
        ("a\ud800", "contains an unprintable character"),
        (f"a{BETWEEN}b", "separates teacher and context"),
        ("x" * (MOST_NAME + 1), "101 characters long"),
    ],
)
def test_what_is_no_name(name: str, problem: str) -> None:
    assert problem in str(name_problem(name))


@pytest.mark.parametrize("name", ["a", "معلّم", "מורה", "大きい", "a/b", "x" * MOST_NAME, "😀"])
def test_what_is_a_name(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("a\nb", "control character"),
        ("a\u2029b", "control character"),
        ("a\ud800b", "control character"),
        ("a\x1fb", "control character"),
        ("a\u202eb", "contains \\u202e, which changes the direction"),
        ("a\u2066b", "changes the direction"),
        ("x" * (MOST_ID + 1), "501 characters long"),
    ],
)
def test_what_is_no_id(text: str, problem: str) -> None:
    assert problem in str(id_problem(text))


@pytest.mark.parametrize("text", ["0", "a b", "می\u200cخواهم", "👩\u200d🔬", "x" * MOST_ID, " a"])
def test_what_is_an_id(text: str) -> None:
    """Joiners stand within words of some scripts."""
    assert id_problem(text) is None
