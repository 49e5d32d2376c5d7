"""The table of questions, read once and checked."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from schemas.config import Questions, RunConfig
from schemas.config.contexts import OF_ROLLOUTS
from schemas.config.templates import names_in
from schemas.limits import MOST_TABLE_BYTES
from schemas.text import id_problem, listed, quoted, reason
from tasks.inputs.errors import InputError
from tasks.inputs.files import check_file, read_file
from tasks.inputs.hub import hub_file
from tasks.inputs.layouts import LAYOUTS
from tasks.inputs.tables import parse_table
from tasks.verifiers.verifier import find_bad_answer


@dataclass(frozen=True)
class Question:
    """One row of the questions file.

    `fields` has every column that is not null, as text; its `answer` is the reference answer, whatever the column
    is called.
    """

    id: str
    answer: str
    fields: dict[str, str]


def read_rows(url: str, field: str = "questions.path", *, texts: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a JSONL, parquet or CSV table from any fsspec URL.

    Args:
        field: configuration field that names the table, for errors.
        texts: columns of a CSV table that are text; types of the others are inferred. None: all columns are text.

    Raises:
        InputError: missing, of another kind, or not readable as its extension says.
    """
    kinds = ("jsonl", "parquet", "csv")
    names = [part.partition("?")[0] if "://" in part else part for part in url.lower().split("::")]
    kind = next((k for name in names for k in kinds if name.endswith(f".{k}")), None)
    if kind is None:
        raise InputError(field, f"{quoted(url)} has none of the endings {', '.join(f'.{k}' for k in kinds)}")
    try:
        data = _read(url, MOST_TABLE_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        cause = error.__cause__
        if cause is not None and not isinstance(cause, FileNotFoundError):  # HTTP file systems report any failure so
            raise InputError(field, f"{quoted(url)} cannot be opened: {reason(cause)}") from error
        raise InputError(field, f"{quoted(url)} does not exist; give a path or URL of a file") from None
    except Exception as error:  # each file system raises its own errors
        raise InputError(field, f"{quoted(url)} cannot be opened: {reason(error)}") from error
    if len(data) > MOST_TABLE_BYTES:
        raise InputError(field, f"{quoted(url)} is longer than {MOST_TABLE_BYTES:,} bytes")
    if not data.strip():
        raise InputError(field, f"{quoted(url)} is empty; it needs at least one row")
    try:
        return parse_table(kind, data, texts)
    except ValueError as error:
        raise InputError(field, f"{quoted(url)} is not a readable .{kind} file: {error}") from error


def _read(url: str, most: int) -> bytes:
    """The first bytes at any fsspec URL."""
    path = hub_file(url)
    if path is not None:
        return read_file(str(path), most)
    last = url.rpartition("::")[2]
    if get_protocol(last) in ("file", "local") and last not in fsspec.available_protocols():
        path = LocalFileSystem._strip_protocol(last)
        if last == url:
            return read_file(path, most)
        check_file(path)
    with fsspec.open(url, "rb") as file:
        return bytes(file.read(most))


def load_questions(config: RunConfig) -> list[Question]:
    """The questions of a run, in file order, with everything that templates and verifier need.

    Raises:
        InputError: as for `read_rows`; also a missing column, duplicate or invalid ids, an answer that cannot be
            verified.
    """
    source = config.asked
    table = _laid_out(source, read_rows(source.path)[: source.limit])
    path = quoted(source.path)
    if not table:
        raise InputError("questions.path", f"{path} has no rows; it needs at least one question")
    for name, column in ((f"questions.{n}", getattr(source, n)) for n in ("id", "answer")):
        if column is not None and not any(column in row for row in table):
            raise InputError(name, f"{quoted(column)} is not a column of {path}; it has {listed(table[0])}")
    id_column = "id" if source.id is None else source.id
    rows = [{name: _text(value) for name, value in row.items() if value is not None} for row in table]
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        for column in (id_column, source.answer):
            if column not in row:
                raise InputError("questions.path", f"row {number} of {path} has no {quoted(column)}")
        problem = id_problem(row[id_column])
        if problem is not None:
            raise InputError("questions.id", f"{quoted(row[id_column])} in row {number} of {path} {problem}")
        if row[id_column] in seen:
            raise InputError("questions.id", f"{quoted(row[id_column])} appears twice in {path}; ids must be unique")
        seen.add(row[id_column])
    bad = find_bad_answer(config.verifier, [row[source.answer] for row in rows])
    if bad is not None:
        row, problem = rows[bad[0]], bad[1]
        question = quoted(row[id_column])
        raise InputError("questions.answer", f"{quoted(row[source.answer])} of question {question} {problem}")
    questions = [Question(row[id_column], row[source.answer], {**row, "answer": row[source.answer]}) for row in rows]
    _require_fields("prompt.template", names_in(config.prompt.template).texts, questions)
    _check_braces("prompt.template", config.prompt.template, questions[0])
    for t, teacher in enumerate(config.model_teachers):
        for c, context in enumerate(teacher.contexts):
            where, names = f"teachers[{t}].contexts[{c}] ({teacher.name}, {context.label})", context.names
            taken = [name for name in names.texts if name in OF_ROLLOUTS and name in questions[0].fields]
            if taken:
                raise InputError(where, f"{taken[0]!r} stands for a rollout; rename the column of {path}")
            if context.generate is not None:
                _check_braces(where, context.writer_template, questions[0])
            if names.lists and len(questions) < 2:
                raise InputError(where, "needs demonstrations, which are other questions, but there is one question")
            for template in context.templates.values():
                _check_braces(where, template, questions[0])
            _require_fields(where, [*context.needed_columns, *names.columns], questions)
    return questions


def _laid_out(source: Questions, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the layout of questions; without a column of ids, their numbers."""
    out = []
    for number, row in enumerate(rows, 1):
        try:
            made = LAYOUTS[source.layout](row)
        except ValueError as error:
            what = f"row {number} of {quoted(source.path)} is not one of {source.layout}"
            raise InputError("questions.layout", f"{what}: {error}") from error
        out.append({**made, "id": str(number)} if source.id is None else made)
    return out


def _text(value: object) -> str:
    """A cell as text: decimals in plain digits, dates and times in ISO form, bytes as Python does, the rest as JSON."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, str | bytes | timedelta):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=_within_json)


def _within_json(value: object) -> str:
    return _text(value) if isinstance(value, Decimal | date | time | timedelta) else str(value)


def _require_fields(where: str, names: Sequence[str], questions: Sequence[Question]) -> None:
    for name in names:
        incomplete = next((q for q in questions if name not in q.fields), None)
        if incomplete is not None:
            raise InputError(
                where,
                f"needs {{{{ {name} }}}}, which question {quoted(incomplete.id)} lacks; "
                f"its columns are {listed(incomplete.fields)}",
            )


_IN_SINGLE_BRACES = re.compile(r"(?<![\w{])\{(\w+)\}(?!\})")


def _check_braces(where: str, template: str, question: Question) -> None:
    """Refuse a column in single braces, which would be shown as it stands; arguments of LaTeX commands are none."""
    for name in _IN_SINGLE_BRACES.findall(template):
        if name in question.fields or name == "prompt":
            raise InputError(where, f"has {{{name}}}, which is text; write {{{{ {name} }}}} for the column")
