"""Hostile and broken inputs: each gives one clear line that names the field, or a right result, within seconds."""

import io
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as limited
from hypothesis import strategies as st
from pydantic import ValidationError

from flows.cli import numbers
from flows.command.configuration import ConfigurationError, checked, merged, parse_overrides, read_configuration
from flows.command.guarded_yaml import RefusedError, parse, parse_value
from schemas.config import CalibrateConfig, Context, Prompt, RunConfig
from schemas.config.templates import names_in, rendered
from schemas.limits import (
    INT32,
    MOST_CELL,
    MOST_CONFIGURATION_BYTES,
    MOST_CONFIGURATION_VALUES,
    MOST_FIELDS,
    MOST_ID,
    MOST_NAME,
    MOST_NESTING,
    MOST_POSITIONS,
    MOST_SETTING,
    MOST_TOKENS,
)
from schemas.pipeline import diagnosis_stages
from schemas.tables import RUN_TABLES
from schemas.text import id_problem, name_problem, quoted, reason, visible, without_user
from schemas.urls import url_problem
from tasks.inputs.errors import InputError
from tasks.inputs.files import NotAFileError, read_file
from tasks.inputs.prompts import PLAIN, prompt_text
from tasks.inputs.questions import Question, load_questions
from tasks.inputs.recorded import read_recorded
from tasks.inputs.tables import parse_table
from tasks.outputs.diagnosis import make_outputs
from tasks.outputs.tasks import aggregate_task
from tasks.run.session import close_sessions, start_session
from tasks.run.shells import run_stage
from tasks.statistics.streams import stream_seed
from tasks.store.references import reachable
from tasks.store.store import MARKER, Store, StoreError
from tests.helpers.places import ROOT

SECONDS = 5.0
"""Of the processor, that one input may take."""

quick = limited(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(action: Callable[[], object], *parts: str, most: int = 480) -> str:
    """The message of what is refused: one line, short, of printable characters, soon, and with these parts in it."""
    began = time.process_time()
    with pytest.raises((ConfigurationError, InputError, RefusedError)) as error:
        action()
    message = str(error.value)
    assert time.process_time() - began < SECONDS
    assert visible(message) == message and len(message) <= most, message
    for part in parts:
        assert part in message, message
    return message


BOMB = "\n".join(
    [
        "a: &a [x, x, x, x, x, x, x, x, x]",
        *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi")),
    ]
)

DOCUMENTS: list[tuple[str, str | bytes, str]] = [
    ("duplicate key", "name: a\nseed: 1\nname: b\n", "line 3: 'name' appears twice, also in line 1"),
    ("duplicate in flow", "{seed: 1, seed: 2}", "line 1: 'seed' appears twice"),
    ("duplicate in JSON", '{"tree": {"draws": 1, "draws": 2}}', "'draws' appears twice"),
    ("duplicate in a list", "teachers:\n- name: a\n  name: b\n", "line 3: 'name' appears twice, also in line 2"),
    ("duplicate, quoted", "name: a\n'name': b\n", "'name' appears twice"),
    ("bomb", BOMB, "more than 20,000 values"),
    (
        "merged bomb",
        "a: &a {x: 1, y: 2}\n" + "".join(f"k{i}: {{<<: [{','.join(['*a'] * 90)}]}}\n" for i in range(90)),
        "more than 20,000 values",
    ),
    ("alias of itself", "a: &a [*a]", "alias 'a' refers to a value that contains it"),
    ("alias of itself, mapping", "a: &a {b: *a}", "refers to a value that contains it"),
    ("unknown alias", "a: *b", "line 1: found undefined alias 'b'"),
    ("many values", "a: [" + "1," * (MOST_CONFIGURATION_VALUES + 1) + "]", "more than 20,000 values"),
    ("nested lists", "a: " + "[" * 2000, "nested more than 50 levels deep"),
    ("nested mappings", "a: " + "{a: " * 2000 + "1" + "}" * 2000, "nested more than 50 levels deep"),
    ("nested blocks", "\n".join(" " * i + "a:" for i in range(200)) + " 1", "nested more than 50 levels deep"),
    ("nested dashes", "- " * 5000 + "1", "nested more than 50 levels deep"),
    ("nested, just too much", "a: " + "[" * MOST_NESTING + "]" * MOST_NESTING, "nested more than 50 levels deep"),
    ("long", "a: " + "x" * MOST_CONFIGURATION_BYTES, "is longer than 200,000 bytes"),
    ("digits", "seed: " + "1" * 5000, "line 1: '1111111111"),
    ("digits, negative", "seed: -" + "1" * 5000, "has more than 40 digits"),
    ("digits, hexadecimal", "seed: 0x" + "f" * 5000, "has more than 40 digits"),
    ("digits, binary", "seed: 0b" + "1" * 5000, "has more than 40 digits"),
    ("base 60, tagged", "seed: !!int 1:30", "'1:30' is not a whole number"),
    ("base 60, tagged, with a point", "seed: !!float 1:30.5", "'1:30.5' is not a number"),
    ("base 8 or 10", "seed: 010", "line 1: '010' starts with 0"),
    ("base 8 or 10, negative", "seed: -0_7", "starts with 0"),
    ("digits, tagged", "seed: !!int " + "1" * 5000, "has more than 40 digits"),
    ("tagged number", "seed: !!int soon", "'soon' is not a whole number"),
    ("tagged, nothing", "seed: !!int ''", "is not a whole number"),
    ("tagged float", "seed: !!float soon", "'soon' is not a number"),
    ("tagged date", "name: !!timestamp 2026-11-31", "tag 'tag:yaml.org,2002:timestamp' is not supported"),
    ("tagged binary", "name: !!binary aGk=", "is not supported"),
    ("tagged set", "name: !!set {a, b}", "is not supported"),
    ("tagged Python", "name: !!python/object/apply:os.system ['true']", "is not supported"),
    ("own tag", "name: !mine x", "tag '!mine' is not supported"),
    ("whole key", "1: a", "line 1: key '1' is not text; put it in quotes"),
    ("true as key", "prompt: {chat_template_kwargs: {true: 1}}", "key 'true' is not text"),
    ("null as key", "~: a", "key '~' is not text"),
    ("empty key", "?\n: a", "key '' is not text"),
    ("date as key is text, duplicate", "2026-11-30: 1\n2026-11-30: 2", "appears twice"),
    ("list as key", "? [a, b]\n: 1", "key of kind sequence is not text"),
    ("mapping as key", "{a: 1}: 1", "key of kind mapping is not text"),
    ("tab", "name:\n\t- a", "line 2: found character '\\t' that cannot start any token"),
    ("NUL", "name: a\0b", "line 1: the character '\\x00' is not allowed in YAML"),
    ("control character", "name: a\nseed: \x1b[31m", "line 2: the character '\\x1b'"),
    ("half a character", 'name: "\\ud800"', "contains an unpaired surrogate"),
    ("half a character, other", 'name: "x\\udc00\\ud800y"', "contains an unpaired surrogate"),
    ("half a character in bytes", b"name: \xed\xa0\x80", "is not UTF-8 text"),
    ("half a character as key", '"\\ud800": 1', "contains an unpaired surrogate"),
    ("Latin-1", "name: é".encode("latin-1"), "is not UTF-8 text"),
    ("UTF-16", "name: a".encode("utf-16"), "is not UTF-8 text"),
    ("UTF-16 without a mark", "name: a".encode("utf-16-le"), "the character '\\x00'"),
    ("UTF-32", "name: a".encode("utf-32"), "is not UTF-8 text"),
    ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "is not UTF-8 text"),
    ("binary", bytes(range(256)), "is not UTF-8 text"),
    ("nothing", "", "contains None, not a mapping of fields"),
    ("a mark alone", "\ufeff", "contains None, not a mapping of fields"),
    ("comment", "# nothing", "contains None, not a mapping of fields"),
    ("list", "- a\n- b", "contains ['a', 'b'], not a mapping"),
    ("text", "x" * 5000, "not a mapping of fields"),
    ("number", "3", "contains 3, not a mapping"),
    ("two documents", "a: 1\n---\nb: 2", "line 2: but found another document"),
    ("unclosed", "a: [1, 2", "line 1: expected ',' or ']'"),
    ("unclosed quote", 'a: "b', "line 1: found unexpected end of stream"),
    ("two colons", "a: b: c", "line 1: mapping values are not allowed here"),
    ("percent", "%YAML 9.9\n--- a", "found incompatible YAML document"),
    ("at", "a: @b", "cannot start any token"),
    ("long key", "? " + "k" * 3000 + "\n: 1\n? " + "k" * 3000 + "\n: 2", "appears twice"),
]


@pytest.mark.parametrize(("text", "part"), [case[1:] for case in DOCUMENTS], ids=[case[0] for case in DOCUMENTS])
def test_odd_documents(text: str | bytes, part: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    refused(lambda: read_configuration(path), "configuration: ", part)


MEANT: list[tuple[str, str | bytes, Any]] = [
    ("date that is none", "name: 2026-11-31", {"name": "2026-11-31"}),
    ("date", "name: 2026-11-30", {"name": "2026-11-30"}),
    ("moment", "name: 2026-11-30 10:00:00", {"name": "2026-11-30 10:00:00"}),
    ("mark", b"\xef\xbb\xbfname: a", {"name": "a"}),
    ("line ends", "name: a\r\nseed: 1\r\n", {"name": "a", "seed": 1}),
    ("two halves", '{"name": "\\ud83d\\ude00"}', {"name": "\U0001f600"}),
    ("line separator", 'name: "a\\u2028b"', {"name": "a\u2028b"}),
    ("equals sign", "marker: =", {"marker": "="}),
    ("merge", "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}),
    ("alias", "a: &a [1]\nb: *a\nc: *a", {"a": [1], "b": [1], "c": [1]}),
    ("same key in each", "a: {x: 1}\nb: {x: 2}", {"a": {"x": 1}, "b": {"x": 2}}),
    ("numbers", "a: -3\nb: 0x10\nc: 1.5\nd: .inf", {"a": -3, "b": 16, "c": 1.5, "d": math.inf}),
    ("words", "a: [yes, No, on, OFF, y, n]", {"a": ["yes", "No", "on", "OFF", "y", "n"]}),
    ("word as key", "on: true", {"on": True}),
    ("true, false, null", "a: [true, True, FALSE, false, null, ~, ]", {"a": [True, True, False, False, None, None]}),
    ("times of day", "a: [1:30, 1:30.5, -1:00, 12:00:00]", {"a": ["1:30", "1:30.5", "-1:00", "12:00:00"]}),
    ("exponents", "a: [1e-3, 1E5, 1.5e+3, -2.e1, .5e1]", {"a": [1e-3, 1e5, 1500.0, -20.0, 5.0]}),
    ("whole numbers", "a: [0, -0, +1, 1_000, 0b11, 0x1F]", {"a": [0, 0, 1, 1000, 3, 31]}),
    ("points", "a: [1., 0.5, .5, 1_0.5, 00.5]", {"a": [1.0, 0.5, 0.5, 10.5, 0.5]}),
    (
        "almost numbers",
        "a: [., -, +, ., 1.2.3, 1e, e1, 0o17, 12ab, 1-2, _1]",
        {"a": [".", "-", "+", ".", "1.2.3", "1e", "e1", "0o17", "12ab", "1-2", "_1"]},
    ),
    ("a long whole number", "a: " + "9" * 40, {"a": int("9" * 40)}),
    ("nested as deep as may be", "a: " + "[" * 48 + "]" * 48, None),
]


@pytest.mark.parametrize(("text", "value"), [case[1:] for case in MEANT], ids=[case[0] for case in MEANT])
def test_documents_that_mean_something(text: str | bytes, value: Any) -> None:
    found = parse(text)
    assert value is None or found == value


def test_a_configuration_of_the_longest_allowed_kind_is_read_in_seconds() -> None:
    line = "- {kind: recorded, name: teacher, path: teachers/long-name.jsonl}\n"
    text = "teachers:\n" + line * (MOST_CONFIGURATION_VALUES // 8)
    began = time.process_time()
    assert len(parse(text[:MOST_CONFIGURATION_BYTES].rpartition("\n")[0])["teachers"]) > 2000
    assert time.process_time() - began < 4 * SECONDS


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    refused(lambda: read_configuration(tmp_path), "configuration: ", "cannot be read: [Errno 21] Is a directory")
    refused(lambda: read_configuration(tmp_path / "none.yaml"), "does not exist")
    refused(lambda: read_configuration(tmp_path / "a\0b"), "cannot be read", "a\\x00b")
    refused(lambda: read_configuration(tmp_path / ("x" * 5000)), "cannot be read")
    for endless in ("/dev/zero", "/dev/tty", "/dev/random", "/dev/null"):
        refused(partial(read_configuration, Path(endless)), "cannot be read", "is a pipe, a device or a socket")
    refused(lambda: read_configuration(waiting(tmp_path / "config.yaml")), "is a pipe, a device or a socket")


def waiting(path: Path) -> Path:
    """A pipe that nobody writes to."""
    os.mkfifo(path)
    return path


def test_files_that_make_readers_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.inputs.files.check_file", lambda path: None)  # as it was when it was looked at
    with pytest.raises(NotAFileError):
        read_file(waiting(tmp_path / "come since"))


@pytest.mark.parametrize(
    "url", ["{}.jsonl", "file://{}.jsonl", "simplecache::file://{}.jsonl", "zip://a.jsonl::{}.jsonl"]
)
def test_tables_that_are_pipes(settings: dict[str, Any], tmp_path: Path, url: str) -> None:
    waiting(tmp_path / "q.jsonl")
    config = checked(merged(settings, {"questions": {"path": url.format(tmp_path / "q")}}))
    refused(lambda: load_questions(config), "questions.path: ", "is a pipe, a device or a socket")


def test_objects_of_a_store_that_are_pipes(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for run, name in (("small", "references-y.json"), ("small", "run.json")):
        (tmp_path / "runs" / run).mkdir(parents=True, exist_ok=True)
        waiting(tmp_path / "runs" / run / name)
        with pytest.raises(StoreError, match=rf"runs/{run}/{name} .* is a pipe, a device or a socket.* not known"):
            reachable(store)
        (tmp_path / "runs" / run / name).unlink()
    waiting(tmp_path / MARKER)
    with pytest.raises(NotAFileError):
        store.format()


def test_a_table_whose_server_is_away_is_not_called_missing(settings: dict[str, Any]) -> None:
    config = checked(merged(settings, {"questions": {"path": "http://127.0.0.1:9/q.jsonl"}}))
    message = refused(lambda: load_questions(config), "questions.path: ", "cannot be opened: ", "127.0.0.1:9")
    assert "is not there" not in message


OVERRIDES = [
    ("a={x: 1, x: 2}", "appears twice"),
    ("a=" + "1" * 5000, "has more than 40 digits"),
    ("a=" + "[" * 5000, "nested more than 50 levels deep"),
    ("a=" + "x" * 300_000, "is longer than 200,000 bytes"),
    ('a="\\ud800"', "contains an unpaired surrogate"),
    ("a=\udcff", "is not allowed in YAML"),
    ("a=\x07", "is not allowed in YAML"),
    ("a={1: 2}", "is not text"),
    ("a=!!timestamp 2026-11-31", "is not supported"),
    ("a=!!int soon", "is not a whole number"),
    (".".join("a" * 100) + "=1", "is not of the form"),
    ("x" * 5000, "is not of the form"),
    ("=", "is not of the form"),
    ("a.=1", "is not of the form"),
    ("\x1b[31m", "is not of the form"),
]


@pytest.mark.parametrize(("assignment", "part"), OVERRIDES, ids=range(len(OVERRIDES)))
def test_odd_assignments(assignment: str, part: str) -> None:
    refused(lambda: parse_overrides([assignment]), "--set: ", part)


@pytest.mark.parametrize("value", ["yes", "true", "on", "1:30", '"4"', "4.5", "null", "[4]", "{}", "2026-11-30", "4,5"])
def test_what_is_no_number_is_none(value: str, settings: dict[str, Any]) -> None:
    refused(lambda: checked(merged(settings, parse_overrides([f"sampling.rollouts={value}"]))), "sampling.rollouts: ")


@pytest.mark.parametrize("value", ["4", "4.0", "0x4", "+4", "4e0", "0.4e1"])
def test_whole_numbers_are_numbers_however_they_are_written(value: str, settings: dict[str, Any]) -> None:
    assert checked(merged(settings, parse_overrides([f"sampling.rollouts={value}"]))).sampling.rollouts == 4


def test_numbers_of_forms_are_taken(settings: dict[str, Any]) -> None:
    """Which send JSON, where 4.0 and 4 are one."""
    sent = json.dumps(merged(settings, {"sampling": {"rollouts": 4.0, "temperature": 1}, "questions": {"limit": 2.0}}))
    for config in (checked(json.loads(sent)), RunConfig.model_validate_json(sent), checked(parse(sent))):
        assert (config.sampling.rollouts, config.sampling.temperature, config.asked.limit) == (4, 1.0, 2)
    lengths = {"lengths": [64, 256.0]}
    assert CalibrateConfig.model_validate(lengths).lengths == [64, 256]
    for odd in (["64"], [64, True], "64,256", [[64]]):
        with pytest.raises(ValidationError):
            CalibrateConfig.model_validate({"lengths": odd})


def test_lengths_of_a_calibration_on_the_command_line() -> None:
    assert numbers("64,256, 1024") == [64, 256, 1024]
    assert numbers("64,x,1:30,") == [64, "x", "1:30", ""]
    assert numbers("9" * 5000) == ["9" * 5000]


def test_assignments_that_mean_something() -> None:
    assert parse_overrides(["name=2026-11-31"]) == {"name": "2026-11-31"}
    for template in ("{{ question }}", "{{ a }} ;", "Question: {{ a }} # 1", "- {{ a }}", "{% if a %}x{% endif %}"):
        assert parse_value(template) == template  # no YAML, so it is the text
    assert parse_value(json.dumps("s3://b/\U0001f600")) == "s3://b/\U0001f600"


SECRET = "hunter2"  # noqa: S105 - what must never be shown
SECRETS = [
    f"s3://me:{SECRET}@bucket/x",
    f"ftp://me:{SECRET}@host/x.jsonl",
    f"sftp://me:{SECRET}@host:22/x.jsonl",
    f"simplecache::ftp://u:{SECRET}@h/x.jsonl",
    f"filecache::sftp://u:{SECRET}@h/x.jsonl",
    f"zip://a.csv::ftp://u:{SECRET}@h/x.zip",
    f"zip://a.csv::simplecache::https://u:{SECRET}@h/x.zip",
    f"ftp://u:{SECRET}/x@host/x.jsonl",
    f"ftp://u:{SECRET}#x@host/x.jsonl",
    f"ftp://u:{SECRET}?x@host/x.jsonl",
    f"ftp://u:{SECRET}@x@host/x.jsonl",
    f"ftp://u:a::{SECRET}@host/x.jsonl",
    f"ftp://:{SECRET}@host/x.jsonl",
    f"FTP://u:{SECRET}@host/x.jsonl",
    f"gist://:{SECRET}@abc/x.jsonl",
    f"https://{SECRET}@host/x.jsonl",
    f"http://u:{SECRET}@127.0.0.1:9000/x.jsonl",
    f"https://h/x.jsonl?X-Amz-Signature={SECRET}",
    f"https://h/x.jsonl?a=1&X-Amz-Security-Token={SECRET}",
    f"https://h/x.jsonl?X-Amz-Credential={SECRET}&x=.jsonl",
    f"https://h/x.jsonl?X-Goog-Signature={SECRET}",
    f"https://h/x.jsonl?AWSAccessKeyId=a&Signature={SECRET}",
    f"https://h/x.jsonl?sv=2024&sig={SECRET}",
    f"https://h/x.jsonl?token={SECRET}",
    f"https://h/x.jsonl?access_token={SECRET}",
    f"https://h/x.jsonl?api_key={SECRET}",
    f"https://h/x.jsonl?apikey={SECRET}",
    f"https://h/x.jsonl?password={SECRET}",
    f"https://h/x.jsonl?key={SECRET}",
    f"https://h/x.jsonl#access_token={SECRET}",
    f"simplecache::https://h/x.jsonl?sig={SECRET}",
    f"zip://a.jsonl::https://h/x.zip?client_secret={SECRET}",
]
PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "store": lambda url: {"store": url},
    "questions.path": lambda url: {"questions": {"path": url}},
    "student.path": lambda url: {"student": {"path": url}},
    "teachers.0.model.path": lambda url: {"teachers": {"0": {"model": {"path": url}}}},
    "execution.ray_address": lambda url: {"execution": {"ray_address": url}},
}


@pytest.mark.parametrize("url", SECRETS)
def test_no_url_with_a_secret_is_taken_or_shown(url: str, settings: dict[str, Any]) -> None:
    for field, place in PLACES.items():
        message = refused(partial(checked, merged(settings, place(url))), f"{field}: the URL ")
        assert SECRET not in message
    assert SECRET not in refused(lambda: checked({**settings, "stor": url}), "stor: unknown field")
    assert SECRET not in refused(lambda: checked({**settings, "tree": {"kind": "forced", "nodes": [url]}}))
    assert SECRET not in refused(lambda: checked(merged(settings, {"seed": {"x": url}})))
    server = {"engine": {"kind": "vllm-server", "urls": [url]}}
    assert SECRET not in refused(lambda: checked(merged(settings, server)), "engine.urls")


def test_recorded_tables_have_no_secrets_either() -> None:
    for url in SECRETS:
        for tree, teacher, field in ((url, "t.csv", "tree.path"), ("t.csv", url, "teachers.0.path")):
            teachers = [{"kind": "recorded", "name": "a", "path": teacher}]
            data = {"tree": {"kind": "recorded", "path": tree}, "teachers": teachers}
            assert SECRET not in refused(partial(checked, data), f"{field}: the URL ")


@pytest.mark.parametrize(
    "url",
    [
        "questions.jsonl",
        "/data/a b/é.jsonl",
        "~/q.jsonl",
        "a@b:c/q.jsonl",
        "s3://bucket/a/b.jsonl",
        "s3://bucket/me:you@there.jsonl",
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/x/key.jsonl",
        "https://host:8443/x@y.jsonl?download=true",
        "ftp://me@host/x.jsonl",
        "github://org:repository@main/x.jsonl",
        "zip://a.csv::simplecache::s3://bucket/v1@2.zip",
        "memory://x.jsonl",
        "http://127.0.0.1:9000/b?versionId=3",
        "hf://datasets/a/b@main/x.parquet",
    ],
)
def test_ordinary_places_are_taken(url: str) -> None:
    assert url_problem(url) is None


def test_no_message_is_longer_than_a_few_lines_whoever_wrote_it() -> None:
    message = str(InputError("field", f"x\n\x1b{'y' * 5000} ftp://u:{SECRET}@h"))
    assert len(message) < 450 and visible(message) == message
    assert SECRET not in str(InputError("field", f"'ftp://u:{SECRET}@h' is odd"))


def test_shown_urls_lose_user_and_query() -> None:
    assert without_user("at ftp://me@host/x?y=1 and s3://b/k") == "at ftp://...@host/x?... and s3://b/k"
    assert SECRET not in quoted(f"ftp://u:{SECRET} with spaces@host/x") and SECRET not in quoted({"a": [SECRETS[0]]})
    assert SECRET not in quoted({"a": f"ftp://u:{SECRET}{'x' * 500}@host/x"})
    assert SECRET not in reason(OSError(f"cannot open ftp://u:{SECRET}@h/x, https://h/x?sig={SECRET}"))


NAMES = [
    "",
    " ",
    "a ",
    " a",
    "a\nb",
    "a\tb",
    "a\x00b",
    "a\x01b",
    "a\x1bb",
    "a\x7fb",
    "a\x85b",
    "a\u2028b",
    "a\u202eb",
    "\ufeffa",
    "\u200b",
    "a\xadb",
    "\ue000",
    "\U000e0001",
    "\u00a0",
    "a\u00a0b",
    "a / b",
    "x" * (MOST_NAME + 1),
    "x" * 30_000,
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_odd_names(name: str, settings: dict[str, Any]) -> None:
    refused(lambda: checked(merged(settings, {"teachers": {"0": {"name": name}}})), "teachers.0.name: ")
    context = {"kind": "custom", "template": "{{ prompt }}", "name": name}
    refused(
        lambda: checked(merged(settings, {"teachers": {"0": {"contexts": [context]}}})), "teachers.0.contexts.0.name: "
    )
    for change in ({"student": {"revision": name}}, {"execution": {"gpu_limit": name}}, {"engine": {"device": name}}):
        refused(partial(checked, merged(settings, change)))


TEMPLATES = [
    ("{{ question.__class__.__mro__ }}", "asks for .__"),
    ("{{ question.x }}", "asks for .x of a text"),
    ("{{ ''.__class__ }}", "asks for .__class__"),
    ("{{ question() }}", "has a call"),
    ("{{ question[0] }}", "has an index"),
    ("{{ question * 999999999 }}", "has a product"),
    ("{{ question ~ question }}", "has texts joined by ~"),
    ("{{ [question] }}", "has a list"),
    ("{{ question < 5 }}", "compare by ==, !=, in or not in"),
    ("{{ question == 5 }}", "has 5 in it, but all values are texts"),
    ("{% if 1 in question %}x{% endif %}", "has 1 in it"),
    ("{{ none }}", "has None in it"),
    ("{{ question|length }}", "the filter length"),
    ("{{ question" + "|upper" * 3000 + " }}", "is nested too deeply"),
    ("{% if 'a' %}" * 120 + "{{ question|trim }}" + "{% endif %}" * 120, "is nested too deeply"),
    ("{% for x in a %}{{ x }}{% endfor %}", "inserts x, which is no text"),
    ("{% for x in a %}{% endfor %}{{ a }}", "inserts a, which is no text"),
    ("{% for x in a %}{% endfor %}{{ x.id }}", "asks for .id of a text"),
    ("{{ question|replace('a', 'b') }}", "the filter"),
    ("{{ question|attr('__class__') }}", "the filter"),
    ("{{ question|trim('a') }}", "the filter trim"),
    ("{% for x in range(10**9) %}{% endfor %}", "a loop over something else"),
    ("{% for x in question|list %}{% endfor %}", "a loop over something else"),
    ("{% for x in a %}{% for y in b %}{% endfor %}{% endfor %}", "a loop over something else"),
    ("{% for x in a recursive %}{{ loop(x) }}{% endfor %}", "has a call"),
    ("{% set x = question %}", "has an assignment (set)"),
    ("{% include '/etc/passwd' %}", "has an Include"),
    ("{% import 'x' as x %}", "has an Import"),
    ("{% extends 'x' %}", "has an Extends"),
    ("{% macro f() %}{% endmacro %}", "has a Macro"),
    ("{% filter upper %}{% endfilter %}", "has a FilterBlock"),
    ("{% for x in questions %}{{ x.id }}{% endfor %}", "a loop over"),
    ("{{", "is not a template"),
    ("{{ question", "is not a template"),
    ("{{}}", "is not a template"),
    ("{{ a-b }}", "has a difference"),
    ("{% if %}", "is not a template"),
    ("{{ " + "(" * 3000 + "a" + ")" * 3000 + " }}", "is nested too deeply"),
    ("{{ question }}" * (MOST_FIELDS + 1), "a template has at most 100"),
    ("x" * (MOST_SETTING + 1), "at most 100000 characters"),
    ("\ud800", "unicode"),
]


@pytest.mark.parametrize(("template", "part"), TEMPLATES, ids=range(len(TEMPLATES)))
def test_odd_templates(template: str, part: str, settings: dict[str, Any]) -> None:
    refused(lambda: checked(merged(settings, {"prompt": {"template": template}})), "prompt.template: ", part)
    context = {"kind": "custom", "name": "c", "template": "{{ prompt }}" + template}
    contexts = {"teachers": {"1": {"contexts": [context]}}}
    refused(lambda: checked(merged(settings, contexts)), "teachers.1.contexts.0.template: ", part)


@pytest.mark.parametrize(
    "path", ["x" * 5000, "a/b/../c", "a//b", "a b/c", "-/-", "a/b?x", "https://h/m", "x/" + "y" * 99]
)
def test_odd_models(path: str, settings: dict[str, Any]) -> None:
    """The hub is not asked (HF_HUB_OFFLINE), or would refuse the name."""
    refused(lambda: start_session(checked(merged(settings, {"student": {"path": path}}))), "student.path: ")


def test_a_folder_that_holds_no_model_is_not_read(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "anything").mkdir()
    (tmp_path / "anything" / "large").write_bytes(b"x")
    student = settings["student"]["path"]
    monkeypatch.setattr(
        "tasks.store.keys.folder_fingerprint",
        lambda folder: "read" if str(folder) == student else pytest.fail(f"{folder} is read"),
    )
    for path in ("/", "/usr", str(tmp_path / "anything")):
        refused(
            partial(start_session, checked(merged(settings, {"student": {"path": path}}))),
            "student.path: ",
            "config.json",
        )
        change = {"teachers": {"0": {"model": {"path": path}}}}
        refused(partial(start_session, checked(merged(settings, change))), "teachers[0].model.path: ", "config.json")


def test_a_model_folder_that_cannot_be_read(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Path) -> str:
        raise PermissionError(13, "Permission denied", "/m/weights")

    monkeypatch.setattr("tasks.store.keys._file_digest", fails)
    refused(lambda: start_session(checked(settings)), "student.path: ", "cannot be read: [Errno 13] Permission denied")


def test_a_prompt_does_not_grow_without_bounds() -> None:
    question = Question("q", "1", {"question": "x" * MOST_CELL, "answer": "1"})
    many = Prompt(template="{{ question }}" * MOST_FIELDS)
    refused(lambda: prompt_text(many, PLAIN, question), "prompt.template: ", "more than 4,000,000 characters")
    often = Context(kind="custom", name="c", template="{{ prompt }}" * MOST_FIELDS)
    refused(lambda: prompt_text(Prompt(), often, question), "context c: ", "more than 4,000,000 characters")


VALUES: list[tuple[dict[str, Any], str]] = [
    ({"sampling": {"rollouts": 1e9}}, "sampling.rollouts: input should be less than or equal to 100000"),
    ({"sampling": {"rollouts": 10**30}}, "sampling.rollouts"),
    ({"sampling": {"rollouts": "9" * 3000}}, "sampling.rollouts"),
    ({"sampling": {"rollouts": 10**5000}}, "sampling.rollouts"),
    ({"sampling": {"rollouts": math.nan}}, "sampling.rollouts"),
    ({"sampling": {"rollouts": math.inf}}, "sampling.rollouts"),
    ({"sampling": {"rollouts": True}}, "sampling.rollouts: input should be a valid integer, given True"),
    ({"sampling": {"rollouts": "4"}}, "sampling.rollouts: input should be a valid integer, given '4'"),
    ({"sampling": {"rollouts": 4.5}}, "sampling.rollouts"),
    ({"questions": {"limit": True}}, "questions.limit: input should be a valid integer, given True"),
    ({"questions": {"limit": "4"}}, "questions.limit: input should be a valid integer, given '4'"),
    ({"scores": {"level": "0.9"}}, "scores.level: input should be a valid number, given '0.9'"),
    ({"sampling": {"temperature": True}}, "sampling.temperature: input should be a valid number, given True"),
    ({"tree": {"kind": "adaptive", "seconds": True}}, "tree.seconds: input should be a valid number, given True"),
    ({"scores": {"groupings": [{"by": "entropy", "bins": True}]}}, "scores.groupings.0.bins: input should be a valid"),
    ({"prompt": {"chat_template_kwargs": {"enable_thinking": "off"}}}, "write true or false"),
    ({"sampling": {"max_tokens": 1e12}}, "sampling.max_tokens"),
    ({"sampling": {"temperature": 1e-320}}, "sampling.temperature"),
    ({"sampling": {"temperature": math.nan}}, "sampling.temperature"),
    ({"sampling": {"temperature": math.inf}}, "sampling.temperature"),
    ({"scores": {"bootstrap": 1e12}}, "scores.bootstrap: input should be less than or equal to 100000"),
    ({"scores": {"posterior": 10**9}}, "scores.posterior: input should be less than or equal to 20000"),
    ({"scores": {"level": 1}}, "scores.level"),
    ({"scores": {"groupings": [{"by": "entropy", "bins": 10**9}]}}, "scores.groupings.0.bins"),
    ({"tree": {"draws": 10**12}}, "tree.draws"),
    ({"tree": {"nodes": 10**12}}, "tree.nodes"),
    ({"tree": {"head": 10**12}}, "tree.head"),
    ({"tree": {"tail": 10**12}}, "tree.tail"),
    ({"tree": {"kind": "adaptive", "draws": 10**12}}, "tree.draws"),
    ({"tree": {"kind": "adaptive", "tokens": 10**13}}, "tree.tokens"),
    ({"tree": {"kind": "adaptive", "seconds": 1e300}}, "tree.seconds"),
    ({"tree": {"kind": "adaptive", "round": 10**9, "draws": 10**8}}, "tree.round"),
    ({"tree": {"kind": "adaptive", "node_draws": 10**9}}, "tree.node_draws"),
    ({"tree": {"kind": "windows", "draws": 10**12}}, "tree.draws"),
    ({"tree": {"kind": "windows", "min_visits": 10**12}}, "tree.min_visits"),
    ({"seed": 2**63}, "seed"),
    ({"seed": -1}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"seed": None}, "seed"),
    ({"seed": {"x" * 5000: 1}}, "seed"),
    ({"questions": {"limit": 10**12}}, "questions.limit"),
    ({"questions": {"path": ""}}, "questions.path: '' is empty"),
    ({"questions": {"path": "a\0b.jsonl"}}, "questions.path: 'a\\x00b.jsonl' contains a control character"),
    ({"questions": {"path": "a\nb.jsonl"}}, "questions.path"),
    (
        {"questions": {"path": "~no-such-user-here/q.jsonl"}},
        "questions.path: '~no-such-user-here/q.jsonl' is in the home",
    ),
    ({"questions": {"path": "x" * (MOST_SETTING + 1)}}, "questions.path: string should have at most"),
    ({"student": {"path": "~no-such-user-here/m"}}, "student.path"),
    ({"student": {"path": "a\0b"}}, "student.path"),
    ({"store": "~no-such-user-here/s"}, "store"),
    ({"store": "\x1b[31m"}, "store: '\\x1b[31m' contains a control character"),
    ({"name": "2026\n"}, "name"),
    ({"name": "x" * 101}, "name"),
    ({"name": "é"}, "name"),
    ({"ranking": {"draws": 10**9}}, "ranking.draws"),
    ({"ranking": {"segments": 10**9}}, "ranking.segments"),
    ({"losses": [{"kind": "top_k", "k": 10**12}]}, "losses.0.k"),
    ({"losses": ["x" * 5000]}, "losses.0: kind 'xxx"),
    ({"losses": ["\x1b[31m"]}, "losses.0: kind '\\x1b[31m' is not known"),
    ({"losses": [{"kind": ["a"]}]}, "losses.0"),
    ({"losses": {"a": 1}}, "losses: "),
    ({"losses": [["jsd"]]}, "losses.0"),
    ({"losses": ["reverse_kl"] * 1001}, "losses: list should have at most 1000 items"),
    ({"teachers": [{"name": str(i)} for i in range(1001)]}, "teachers: list should have at most 1000 items"),
    ({"teachers": "x" * 5000}, "teachers: "),
    ({"execution": {"retries": 2000}}, "execution.retries"),
    ({"execution": {"retry_seconds": 1e300}}, "execution.retry_seconds"),
    ({"execution": {"lease": 1e300}}, "execution.lease"),
    ({"execution": {"round_draws": 10**12}}, "execution.round_draws"),
    ({"execution": {"questions_per_task": 10**12}}, "execution.questions_per_task"),
    ({"engine": {"batch_tokens": 10**12}}, "engine.batch_tokens"),
    ({"engine": {"threads": 10**9}}, "engine.threads"),
    ({"engine": {"rows": 10**12}}, "engine.rows"),
    ({"engine": {"memory": 1e300}}, "engine.memory"),
    ({"engine": {"kind": "vllm", "tensor_parallel": 10**9}}, "engine.tensor_parallel"),
    ({"engine": {"kind": "vllm-server", "urls": ["http://h"], "timeout": 1e300}}, "engine.timeout"),
    ({"engine": {"kind": "vllm-server", "urls": ["http://[h"]}}, "engine.urls"),
    ({"engine": {"kind": "x" * 5000}}, "engine: kind 'xxx"),
    ({"prompt": {"chat_template_kwargs": {str(i): 1 for i in range(200)}}}, "prompt.chat_template_kwargs"),
    ({"prompt": {"system": "x" * (MOST_SETTING + 1)}}, "prompt.system"),
    ({"prompt": {"system": "x" * 5000, "chat": False}}, "prompt.system: 'xxx"),
    ({"x" * 5000: 1}, "xxx...: unknown field"),
    ({"a\x1b[31m": 1}, "a\\x1b[31m: unknown field"),
    ({"nested": [[[[[[[[[["x" * 500] * 500]]]]]]]]]}, "nested: unknown field"),
]


@pytest.mark.parametrize(("override", "part"), VALUES, ids=range(len(VALUES)))
def test_odd_values(override: dict[str, Any], part: str, settings: dict[str, Any]) -> None:
    data = merged(settings, override)
    if not part:  # taken as what it equals
        checked(data)
        return
    refused(lambda: checked(data), part)


def test_many_wrong_fields_are_told_of_in_part(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as error:
        checked({**settings, **{f"field{i}": 1 for i in range(5000)}})
    lines = str(error.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "and 4,980 more wrong fields"


@pytest.mark.parametrize("index", ["²", "9" * 5000, "-1", "x", "٣"])
def test_odd_indices_of_lists(index: str, settings: dict[str, Any]) -> None:
    past = index.isascii() and index.isdigit()
    expected = "--set: teachers has 2 entries, from 0 to 1, but no entry 9" if past else "teachers: "
    refused(lambda: checked(merged(settings, {"teachers": {index: {"name": "a"}}})), expected)


GOOD = '{"id": "a", "question": "start 3", "answer": "3"}'
QUESTIONS: list[tuple[str, str, str | bytes, str]] = [
    ("duplicate key", "jsonl", GOOD + '\n{"id": "b", "id": "c", "answer": "3"}', "line 2: 'id' appears twice"),
    ("duplicate key within", "jsonl", '{"id": "b", "answer": "3", "x": {"y": 1, "y": 2}}', "line 1: 'y' appears"),
    ("not JSON", "jsonl", GOOD + "\n\n{'id': 1}", "line 3 is not JSON"),
    ("cut", "jsonl", GOOD[:-1], "line 1 is not JSON"),
    ("two on a line", "jsonl", GOOD + GOOD, "line 1 is not JSON: Extra data"),
    ("over two lines", "jsonl", GOOD.replace(", ", ",\n"), "line 1 is not JSON"),
    ("list", "jsonl", "[1]", "line 1 is [1], not an object"),
    ("null", "jsonl", "null", "line 1 is None"),
    ("long text", "jsonl", json.dumps("x" * 5000), "line 1 is 'xxx"),
    ("nested", "jsonl", '{"id": ' + "[" * 100_000, "line 1 is nested more than 50 levels deep"),
    ("nested, whole", "jsonl", '{"id": "a", "answer": "3", "x": ' + "[" * 200 + "]" * 200 + "}", "column 'x': nested"),
    ("digits", "jsonl", '{"id": ' + "1" * 5000 + ', "answer": "3"}', "line 1: Exceeds the limit"),
    (
        "half a character in an id",
        "jsonl",
        '{"id": "\\ud800", "answer": "3"}',
        "line 1, column 'id': '\\ud800' contains a lone",
    ),
    (
        "half a character in a text",
        "jsonl",
        '{"id": "a", "answer": "3", "q": "\\udfff"}',
        "column 'q': '\\udfff' contains a lone",
    ),
    ("half a character in a list", "jsonl", '{"id": "a", "answer": "3", "q": [["\\udfff"]]}', "column 'q'"),
    ("half a character in a column", "jsonl", '{"id": "a", "answer": "3", "\\ud800": 1}', "contains a lone surrogate"),
    ("control character", "jsonl", '{"id": "a\x01"}', "line 1 is not JSON: Invalid control character"),
    ("long cell", "jsonl", json.dumps({"id": "a", "answer": "3", "q": "x" * 10_000_000}), "a text of 10,000,000 char"),
    ("long cell within", "jsonl", json.dumps({"id": "a", "answer": "3", "q": ["x" * 2_000_000]}), "a cell has at most"),
    ("not UTF-8", "jsonl", GOOD.encode() + b'\n{"id": "\xff"}', "line 2 is not UTF-8 text"),
    ("UTF-16", "jsonl", GOOD.encode("utf-16"), "line 1 is not UTF-8 text"),
    ("nothing", "jsonl", "", "is empty; it needs at least one row"),
    ("spaces", "jsonl", " \n \n", "is empty"),
    ("a mark", "jsonl", b"\xef\xbb\xbf", "has no rows"),
    ("binary", "jsonl", bytes(range(256)), "is not a readable .jsonl file"),
    ("empty id", "jsonl", '{"id": "", "answer": "3"}', "questions.id: '' in row 1"),
    ("id of spaces", "jsonl", '{"id": " \u3000", "answer": "3"}', "is empty; every question needs an id"),
    ("control character in an id", "jsonl", '{"id": "a\\u001fb", "answer": "3"}', "questions.id: 'a\\x1fb' in row 1"),
    ("escape in an id", "jsonl", '{"id": "\\u001b[2J", "answer": "3"}', "contains a control character"),
    ("line break in an id", "jsonl", '{"id": "a\\nb", "answer": "3"}', "contains a control character"),
    ("line separator in an id", "jsonl", '{"id": "a\\u2028b", "answer": "3"}', "contains a control character"),
    ("long id", "jsonl", json.dumps({"id": "x" * (MOST_ID + 1), "answer": "3"}), "an id has at most 500"),
    ("id twice", "jsonl", GOOD + "\n" + GOOD, "'a' appears twice"),
    ("ids that are one as text", "jsonl", '{"id": 1, "answer": "3"}\n{"id": "1", "answer": "3"}', "'1' appears twice"),
    ("null id", "jsonl", GOOD + '\n{"id": null, "answer": "3"}', "row 2 of"),
    ("no id", "jsonl", '{"answer": "3"}', "questions.id: 'id' is not a column"),
    ("columns with control characters", "jsonl", '{"\\u001b[31m": "3"}', "it has \\x1b[31m"),
    ("many columns", "jsonl", json.dumps({f"column{i}": 1 for i in range(5000)}), "'id' is not a column"),
    ("long answer", "jsonl", json.dumps({"id": "a", "answer": "x" * 5000}), "questions.answer: 'xxx"),
    ("column twice", "csv", "id,answer,id\na,3,b\n", "column 'id' appears twice"),
    ("ragged", "csv", "id,answer\na,3,4,5\n", "is not a readable .csv file"),
    ("empty id", "csv", "id,answer,question\n  ,3,start 3\n", "is empty; every question needs an id"),
    ("no id", "csv", "id,answer,question\n,3,start 3\n", "row 1 of"),
    ("not UTF-8", "csv", b"id,answer\n\xff,3\n", "line 2 is not UTF-8 text"),
    ("UTF-16", "csv", "id,answer\na,3\n".encode("utf-16"), "is not UTF-8 text"),
    ("control character in an id", "csv", "id,answer,question\na\x1fb,3,start\n", "contains a control character"),
    ("NUL", "csv", "id,answer\n\0,3\n", "questions.id"),
    ("long cell", "csv", "id,answer\na," + "x" * 2_000_000 + "\n", "row 1, column 'answer': a text of 2,000,000"),
    ("header alone", "csv", "id,answer\n", "has no rows"),
    ("one long line", "csv", "x" * 200_000 + "\n1\n", "is not a column"),
    ("open quote", "csv", 'id,answer\n"a,3\n', "questions."),
    ("not parquet", "parquet", "id,answer\na,3\n", "is not a readable .parquet file"),
    ("cut", "parquet", b"PAR1" + bytes(50) + b"PAR1", "is not a readable .parquet file"),
    ("marks alone", "parquet", b"PAR1PAR1", "is not a readable .parquet file"),
    ("odd length", "parquet", b"PAR1" + b"\xff" * 8 + b"PAR1", "is not a readable .parquet file"),
]


@pytest.mark.parametrize(
    ("kind", "content", "part"), [case[1:] for case in QUESTIONS], ids=[f"{case[1]}: {case[0]}" for case in QUESTIONS]
)
def test_odd_questions(kind: str, content: str | bytes, part: str, settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / f"q.{kind}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    refused(lambda: load_questions(checked(merged(settings, {"questions": {"path": str(path)}}))), "questions.", part)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("none.jsonl", "does not exist"),
        ("none.txt", "has none of the endings .jsonl, .parquet, .csv"),
        ("x" * 5000 + ".jsonl", "cannot be opened"),
        ("nope://x.jsonl", "cannot be opened: Protocol not known: nope"),
        ("http://127.0.0.1:9/x.jsonl", "cannot be opened: Cannot connect"),
        ("zip://a.jsonl::none.zip", "does not exist"),
        ("simplecache::none.jsonl", "does not exist"),
        ("::::.jsonl", "questions.path: "),
        ("://.jsonl", "questions.path: "),
        ("memory://.jsonl", "questions.path: "),
    ],
)
def test_questions_that_are_not_there(
    path: str, part: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: load_questions(checked(merged(settings, {"questions": {"path": path}}))), "questions.path: ", part)


ODD_TEXTS = ["a\u2028b", "a\u2029b", "a\x85b", "\x0b\x0c", "\u0000", "\U0001f600", "\u202e", "\ufeff", "a\tb"]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_characters_of_texts_come_through(text: str, mark: bytes, settings: dict[str, Any], tmp_path: Path) -> None:
    """Raw line separators are legal in JSON, and so is a byte order mark before it."""
    path = tmp_path / "q.jsonl"
    config = checked(merged(settings, {"questions": {"path": str(path)}}))
    rows = [{"id": i, "answer": "3", "question": text} for i in "ab"]
    lines = [json.dumps(row, ensure_ascii=any(c < " " for c in text)) for row in rows]
    for end in ("\n", "\r\n"):
        path.write_bytes(mark + end.join(lines).encode())
        assert [(q.id, q.fields["question"]) for q in load_questions(config)] == [("a", text), ("b", text)]


def test_parquet_with_halves_of_texts_and_deep_lists(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    config = checked(merged(settings, {"questions": {"path": str(path)}}))
    pl.DataFrame({"id": ["a"], "answer": ["3"], "question": ["x" * (MOST_CELL + 1)]}).write_parquet(path)
    refused(lambda: load_questions(config), "row 1, column 'question': a text of 1,000,001 characters")
    pl.DataFrame({"id": ["a\x1f"], "answer": ["3"], "question": ["x"]}).write_parquet(path)
    refused(lambda: load_questions(config), "questions.id: ")
    pl.DataFrame({"id": [b"\xff"], "answer": [3.0], "question": [[{"a": 1}]]}).write_parquet(path)
    assert load_questions(config)[0].fields["question"] == '[{"a": 1}]'


OUTCOME = {
    "question_id": "q", "rollout_id": 0, "position": 0, "token_id": 5, "student_prob": 0.5, "successes": 1, "draws": 4,
    "correct": True,
}  # fmt: skip
RECORDED: list[tuple[dict[str, Any], str]] = [
    ({"token_id": 2**31}, "row 1, column 'token_id': 2147483648 is too large; the maximum is 2,147,483,647"),
    ({"token_id": 10**30}, "column 'token_id'"),
    ({"token_id": 1e300}, "column 'token_id'"),
    ({"token_id": -1}, "column 'token_id': -1 is negative"),
    ({"token_id": -(10**30)}, "column 'token_id'"),
    ({"token_id": 1.5}, "column 'token_id': 1.5 is not an integer"),
    ({"token_id": True}, "column 'token_id': True is not an integer"),
    ({"token_id": "x" * 5000}, "column 'token_id': 'xxx"),
    ({"position": 10**9}, f"column 'position': 1000000000 is too large; the maximum is {MOST_TOKENS:,}"),
    ({"position": 2**31}, "column 'position'"),
    ({"position": math.inf}, "column 'position'"),
    ({"rollout_id": 2**31 - 1}, "column 'rollout_id': question 'q' has rollout 2147483647 but no rollout 0"),
    ({"rollout_id": 2**31}, "column 'rollout_id': 2147483648 is too large"),
    ({"rollout_id": math.nan}, "column 'rollout_id'"),
    ({"draws": 2**31}, "column 'draws': 2147483648 is too large"),
    ({"draws": 10**40}, "column 'draws'"),
    ({"successes": 2**31, "draws": 2**31}, "is too large"),
    ({"successes": -1}, "column 'successes': -1 is negative"),
    ({"student_prob": math.nan}, "column 'student_prob': nan is not a probability above 0"),
    ({"student_prob": math.inf}, "column 'student_prob': inf is not a probability"),
    ({"student_prob": -math.inf}, "column 'student_prob': -inf is not"),
    ({"student_prob": 10**400}, "column 'student_prob'"),
    ({"student_prob": -0.0}, "column 'student_prob'"),
    ({"student_prob": "0.5"}, "column 'student_prob': '0.5' is not a number"),
    ({"inclusion": 0}, "column 'inclusion': 0.0 is not a probability of 1e-09 or more"),
    ({"inclusion": 1e-300}, "column 'inclusion': 1e-300 is not a probability of 1e-09 or more"),
    ({"inclusion": math.nan}, "column 'inclusion'"),
    ({"entropy": math.nan}, "column 'entropy': nan is not an entropy"),
    ({"entropy": math.inf}, "column 'entropy': inf"),
    ({"entropy": -1}, "column 'entropy': -1.0"),
    ({"correct": "true"}, "column 'correct': 'true' is not true or false"),
    ({"correct": 1}, "column 'correct': 1 is not true or false"),
    ({"token": 5.5}, "column 'token': 5.5 is not text"),
    ({"token": ["x" * 500] * 500}, "column 'token'"),
    ({"sampled": "x" * 5000}, "column 'sampled'"),
    ({"question_id": ""}, "column 'question_id': '' is empty"),
    ({"question_id": " "}, "column 'question_id'"),
    ({"question_id": "a\x1fb"}, "column 'question_id': 'a\\x1fb' contains a control character"),
    ({"question_id": "x" * 5000}, "column 'question_id'"),
    ({"question_id": ["q"]}, "column 'question_id': ['q'] is not text"),
    ({"question_id": {"a": 1}}, "column 'question_id'"),
    ({"question_id": True}, "column 'question_id': True is not text"),
    ({"question_id": None}, "column 'question_id': missing"),
]  # fmt: skip


def recorded(tmp_path: Path, rows: list[dict[str, Any]], kind: str = "jsonl") -> dict[str, Any]:
    """A configuration whose teacher agrees with the rows."""
    columns = ("question_id", "rollout_id", "position", "token_id")
    teacher = [{**{c: row.get(c) for c in columns}, "teacher_prob": row.get("student_prob")} for row in rows]
    for name, table in (("outcomes", rows), ("teacher", teacher)):
        path = tmp_path / f"{name}.{kind}"
        if kind == "jsonl":
            path.write_text("\n".join(json.dumps(row) for row in table))
        else:
            pl.DataFrame(table, infer_schema_length=None).write_csv(path)
    return {
        "store": str(tmp_path / "store"),
        "tree": {"kind": "recorded", "path": str(tmp_path / f"outcomes.{kind}")},
        "teachers": [{"kind": "recorded", "name": "t", "path": str(tmp_path / f"teacher.{kind}")}],
        "scores": {"bootstrap": 200, "posterior": 100},
    }


@pytest.mark.parametrize(("change", "part"), RECORDED, ids=range(len(RECORDED)))
def test_odd_recorded_outcomes(change: dict[str, Any], part: str, tmp_path: Path) -> None:
    data = recorded(tmp_path, [{**OUTCOME, **change}, OUTCOME] if "missing" in part else [{**OUTCOME, **change}])
    refused(lambda: start_session(checked(data)), "tree.path: ", part)


def test_recorded_rollouts_that_are_too_long_all_together(tmp_path: Path) -> None:
    rows = [{**OUTCOME, "question_id": f"q{i}", "position": MOST_TOKENS} for i in range(11)]
    message = refused(lambda: start_session(checked(recorded(tmp_path, rows))), "row 10, column 'position'")
    rows = [{**OUTCOME, "token_id": token, "student_prob": 0.1, "draws": INT32 // 2} for token in range(3)]
    refused(
        lambda: start_session(checked(recorded(tmp_path, rows))), "row 3, column 'draws': this node's branches have"
    )
    assert f"the maximum is {MOST_POSITIONS:,}" in message


def test_csv_columns_of_texts_stay_texts(tmp_path: Path) -> None:
    rows = [{**OUTCOME, "question_id": i, "token": "true"} for i in ("007", "7", "1e5")]
    config = checked(recorded(tmp_path, rows, "csv"))
    found = read_recorded(config.tree, config.recorded_teachers)  # type: ignore[arg-type]
    assert list(found) == ["007", "7", "1e5"] and found["7"].texts == {5: "true"}


def test_tables_are_kept_where_the_report_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**OUTCOME, "question_id": f"q{q}", "token_id": t, "student_prob": 0.4} for q in range(5) for t in range(2)]
    config = checked(recorded(tmp_path, rows))
    job = start_session(config)
    for stage in diagnosis_stages():
        run_stage(job, stage, job.keys.questions)

    def fails(*_: object) -> str:
        raise RuntimeError("no report")

    monkeypatch.setattr("tasks.outputs.diagnosis.render", fails)
    with pytest.raises(RuntimeError, match="no report"):
        aggregate_task.fn(config, job.keys.questions, {}, [])
    close_sessions()
    written = {path.name for path in (tmp_path / "store" / "runs" / "run").iterdir()}
    assert written == {f"{name}.parquet" for name in RUN_TABLES}


def test_the_ends_of_what_recorded_tables_may_hold_are_scored(tmp_path: Path) -> None:
    tiny = math.ulp(0.0)
    rows = [
        {**OUTCOME, "question_id": f"q{q}", "token_id": token, "student_prob": p, "draws": INT32 // 3, "successes": won,
         "inclusion": 1e-9, "position": 3, "sampled": token == INT32, "correct": bool(q % 2)}
        for q in range(6)
        for token, p, won in ((INT32, 1.0, INT32 // 3), (0, tiny, 0), (1, 1e-30, INT32 // 7))
    ]  # fmt: skip
    job = start_session(checked(recorded(tmp_path, rows)))
    ids = job.keys.questions
    for stage in diagnosis_stages():
        assert not run_stage(job, stage, ids).failed
    outputs = dict(make_outputs(job, ids, {}).files)
    assert list(outputs)[-1] == "report.html"  # after all tables
    tokens = pl.read_parquet(io.BytesIO(outputs["tokens.parquet"]))
    assert tokens.height == 6 * 3 and set(tokens["token_id"]) == {INT32}


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=60), inner, max_size=4),
    max_leaves=20,
)


@quick
@given(st.dictionaries(st.text(min_size=1, max_size=60), values, max_size=5))
def test_what_json_writes_is_read_as_it_is(data: dict[str, Any]) -> None:
    assert parse(json.dumps(data)) == data
    assert parse_table("jsonl", json.dumps(data).encode()) == [data]
    assert parse_table("jsonl", json.dumps(data, ensure_ascii=False).encode()) == [data]


@quick
@given(st.binary(max_size=400) | st.text(max_size=400) | st.text("[]{}&*:,-?!|>'\"%@\n \tab1", max_size=200))
def test_any_document_is_read_or_refused_in_one_line(text: bytes | str) -> None:
    try:
        parse(text)
    except RefusedError as error:
        assert visible(str(error)) == str(error) and len(str(error)) < 400


@quick
@given(
    st.sampled_from(["jsonl", "csv", "parquet"]),
    st.binary(max_size=300) | st.text('{}[]":,\n 1a', max_size=200).map(str.encode),
)
def test_any_table_is_read_or_refused_in_one_line(kind: str, data: bytes) -> None:
    data = b"PAR1" + data + b"PAR1" if kind == "parquet" else data
    try:
        assert isinstance(parse_table(kind, data), list)
    except ValueError as error:
        assert type(error) is ValueError and len(str(error).splitlines()) == 1


@quick
@given(
    st.lists(st.sampled_from([*"{}%#|.()[]'\"*~ab0 \n", "{{", "}}", "{%", "%}", " if ", " for ", " in "]), max_size=20)
)
def test_a_template_is_refused_or_takes_columns_as_they_are(parts: list[str]) -> None:
    template = "".join(parts)
    try:
        names = names_in(template)
    except ValueError:
        return
    filled = rendered(template, {**dict.fromkeys(names.texts, "\x00" * 50), **{name: [] for name in names.lists}})
    assert len(filled) <= len(template) + 50 * len(template)


@quick
@given(values)
def test_shown_values_are_short_and_in_one_line(value: Any) -> None:
    assert len(quoted(value)) <= 80 and visible(quoted(value)) == quoted(value)
    assert len(reason(str(value))) <= 200


@quick
@given(st.text(max_size=40))
def test_names_and_ids_that_are_taken_are_harmless(text: str) -> None:
    if name_problem(text) is None:
        assert text.isprintable() and text == text.strip() and text.encode()
    if id_problem(text) is None:
        assert text.strip() and len(text.splitlines()) == 1 and "\x1f" not in text and text.encode()


@quick
@given(st.sampled_from([u for u in SECRETS if "@" in u and f":{SECRET}" in u]), st.text("abc:/?#@%!$ ", max_size=8))
def test_passwords_of_any_characters_are_found(url: str, more: str) -> None:
    assert url_problem(url.replace(SECRET, SECRET + more)) is not None
    assert SECRET not in quoted(url.replace(SECRET, SECRET + more))


def test_null_is_told_in_words(settings: dict[str, Any]) -> None:
    refused(
        lambda: checked(merged(settings, parse_overrides(["store=~"]))), "store: ", "given null (nothing, null or ~"
    )


def test_columns_without_a_name() -> None:
    with pytest.raises(ValueError, match="3 columns have no name"):
        parse_table("csv", b",,\n1,2,3\n")
    assert parse_table("csv", b",id\n0,a\n")[0]["id"] == "a"  # as pandas writes its index


def test_two_identities_never_have_one_stream() -> None:
    with pytest.raises(ValueError, match=r"an identity contains U\+001F"):
        stream_seed(0, "a\x1fstr:b", "c")  # would be that of (0, "a", "b", "c")


def test_a_hub_name_without_a_network_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """Nothing listens on the port, as where a firewall refuses."""
    (tmp_path / "q.jsonl").write_text(GOOD)
    config = {"student": {"path": "Qwen/Qwen3-0.6B"}, "questions": {"path": "q.jsonl"}, "teachers": [{"name": "a"}]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = command(tmp_path, "plan", "config.yaml", HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("student.path: 'Qwen/Qwen3-0.6B' is neither a local folder nor a reachable or cached")


def test_a_command_says_what_is_wrong_and_ends(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(BOMB)
    done = command(tmp_path, "run", "config.yaml")
    assert done.returncode == 2 and "more than 20,000 values" in done.stderr and len(done.stderr) < 300
    done = command(tmp_path, "store", "ls", "--store", f"ftp://u:{SECRET}@127.0.0.1/x")
    assert done.returncode == 2 and done.stderr.startswith("--store: the URL contains a password")
    assert SECRET not in done.stderr


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The whole command, in a folder of its own."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
