"""YAML within limits: what was written comes back, and what is refused is refused at its line."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.command.guarded_yaml import RefusedError, parse, parse_value
from schemas.limits import MOST_CONFIGURATION_BYTES, MOST_CONFIGURATION_VALUES, MOST_DIGITS, MOST_NESTING

# three ends of lines of YAML, which its own writer folds
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"), max_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | TEXT
    | st.sampled_from(["yes", "No", "on", "~", "null", "1:30", "0x10", "2026-11-30", "=", "<<", "1e3", ".inf", "007"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=15,
)


class Quoting(yaml.SafeDumper):
    """Texts in quotes: YAML 1.1, which this writes, takes 1e5 for one."""


Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


@given(VALUES, st.booleans())
@settings(deadline=None)
def test_what_yaml_writes_is_read_as_it_was(value: Any, flow: bool) -> None:
    text = yaml.dump(value, Dumper=Quoting, allow_unicode=True, default_flow_style=flow)
    assert parse(text) == value and parse(("\ufeff" + text).encode()) == value


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=15,
)


@given(JSON_VALUES, st.booleans())
@settings(deadline=None)
def test_what_json_writes_keeps_its_types(value: Any, ascii_: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_)
    if all(c.isprintable() or c == " " for c in text):  # YAML has other control characters than JSON
        found = parse(text)
        assert found == value and json.dumps(found) == json.dumps(value)


def lists(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("within", "beyond", "told"),
    [
        ("x" * MOST_CONFIGURATION_BYTES, "x" * (MOST_CONFIGURATION_BYTES + 1), "is longer than 200,000 bytes"),
        (lists(MOST_NESTING), lists(MOST_NESTING + 1), "line 1: lists and mappings are nested more than 50 levels"),
        ("1" * MOST_DIGITS, "1" * (MOST_DIGITS + 1), "has more than 40 digits"),
        (
            f"[{'1,' * (MOST_CONFIGURATION_VALUES - 1)}]",
            f"[{'1,' * MOST_CONFIGURATION_VALUES}]",
            "line 1: more than 20,000 values",
        ),
    ],
    ids=["bytes", "levels", "digits", "values"],
)
def test_limits_are_what_they_say(within: str, beyond: str, told: str) -> None:
    assert parse(within) is not None
    with pytest.raises(RefusedError, match=f"cannot be used: .*{told}"):
        parse(beyond)


def test_aliases_count_as_what_they_stand_for() -> None:
    def document(repeats: int) -> str:
        return f"a: &a [{'1,' * 98}]\nb: [{'*a,' * repeats}]"  # 99 values each

    most = (MOST_CONFIGURATION_VALUES - 5 - 99) // 99
    assert len(parse(document(most))["b"]) == most
    with pytest.raises(RefusedError, match="line 2: more than 20,000 values, repeated ones counted"):
        parse(document(most + 2))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\n\nb: 2\na: 3\n", "line 4: 'a' appears twice, also in line 1"),
        ("a:\n  - b: 1\n    3: x\n", "line 3: key '3' is not text; put it in quotes"),
        ("a: 1\nb: 010\n", "line 2: '010' starts with 0"),
        (
            "a: 1\nb: !!python/name:os.system x\n",
            "line 2: tag 'tag:yaml.org,2002:python/name:os.system' is not supported",
        ),
        ("a: &a\n  b: *a\n", "line 2: alias 'a' refers to a value that contains it"),
        ('a: 1\nb: "\\ud800"\n', "line 2: '\\ud800' contains an unpaired surrogate"),
        ("a: 1\nb: \x07\n", "line 2: the character '\\x07' is not allowed in YAML"),
    ],
)
def test_what_is_in_doubt_is_refused_at_its_line_also_as_a_value(text: str, told: str) -> None:
    for read in (parse, parse_value):
        with pytest.raises(RefusedError) as error:
            read(text)
        assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["a: b: c", "[1, 2", "{", '"a', "@x", "%x", "`x`", "*x", "- a\nb", "s3://bucket: [x", "}"]
)
def test_a_value_that_is_no_yaml_is_the_text_itself(text: str) -> None:
    with pytest.raises(RefusedError, match=r"^is not YAML: "):
        parse(text)
    assert parse_value(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("3", 3),
        ("1e-3", 0.001),
        ("[a, 1]", ["a", 1]),
        ("{a: 1}", {"a": 1}),
        ("'3'", "3"),
        ("{{ prompt }} is", "{{ prompt }} is"),  # a template, which is no YAML
        ("سؤال", "سؤال"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
    ],
)
def test_values_of_assignments(text: str, value: Any) -> None:
    assert parse_value(text) == value and type(parse_value(text)) is type(value)
