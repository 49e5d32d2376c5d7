"""What is asked: a table of questions, read once and checked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import fsspec
import polars as pl

from schemas.config import RunConfig, template_fields
from tasks.verifiers.verifier import find_bad_answer


class InputError(ValueError):
    """Input that cannot be used: one line that names field, value and what would be right."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")


@dataclass(frozen=True)
class Question:
    """One row of the questions file.

    `fields` holds every column as text, null ones left out; `answer` among them is the reference answer, whatever
    its column is called.
    """

    id: str
    answer: str
    fields: dict[str, str]


def read_rows(url: str, field: str = "questions.path", *, typed: bool = False) -> list[dict[str, Any]]:
    """Rows of a JSONL, parquet or CSV table from any fsspec URL.

    Args:
        field: of the configuration that names the table, for errors.
        typed: whether the columns of a CSV table have types; else all are text.

    Raises:
        InputError: missing, of another kind, or not readable as what its name says.
    """
    kinds = (".jsonl", ".parquet", ".csv")
    suffix = next((s for s in kinds if url.lower().endswith(s)), None)
    if suffix is None:
        raise InputError(field, f"{url!r} ends in none of {', '.join(kinds)}")
    try:
        with fsspec.open(url, "rb") as file:
            data = file.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(field, f"{url!r} is not there; give a path or URL of a file") from None
    except (ImportError, ValueError, OSError) as error:
        raise InputError(field, f"{url!r} cannot be opened: {error}") from error
    if not data.strip():
        raise InputError(field, f"{url!r} is empty; it needs at least one row")
    try:
        if suffix == ".jsonl":
            rows = [json.loads(line) for line in data.decode().splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is not an object")
            return rows
        return (
            pl.read_csv(data, infer_schema=typed, infer_schema_length=None)
            if suffix == ".csv"
            else pl.read_parquet(data)
        ).to_dicts()
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise InputError(field, f"{url!r} is not a readable {suffix} file: {str(error).splitlines()[0]}") from error


def load_questions(config: RunConfig) -> list[Question]:
    """The questions of a run, in the file's order, all that templates and verifier need being there.

    Raises:
        InputError: see above; also a missing column, duplicate or empty ids, an answer that cannot be verified.
    """
    source = config.asked
    table = read_rows(source.path)[: source.limit]
    if not table:
        raise InputError("questions.path", f"{source.path!r} has no rows; it needs at least one question")
    for name, column in (("questions.id", source.id), ("questions.answer", source.answer)):
        if not any(column in row for row in table):
            raise InputError(name, f"{column!r} is no column of {source.path!r}; it has {', '.join(table[0])}")
    rows = [{name: _text(value) for name, value in row.items() if value is not None} for row in table]
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if source.id not in row or source.answer not in row:
            column = source.id if source.id not in row else source.answer
            raise InputError("questions.path", f"row {number} of {source.path!r} has no {column!r}")
        if row[source.id] in seen:
            raise InputError("questions.id", f"{row[source.id]!r} stands twice in {source.path!r}; ids must be unique")
        seen.add(row[source.id])
    bad = find_bad_answer(config.verifier, [row[source.answer] for row in rows])
    if bad is not None:
        row, problem = rows[bad[0]], bad[1]
        answer = row[source.answer]
        shown = answer if len(answer) <= 100 else answer[:100] + "..."
        raise InputError("questions.answer", f"{shown!r} of question {row[source.id]!r} {problem}")
    questions = [Question(row[source.id], row[source.answer], {**row, "answer": row[source.answer]}) for row in rows]
    _need_fields("prompt.template", template_fields(config.prompt.template), questions)
    for t, teacher in enumerate(config.model_teachers):
        for c, context in enumerate(teacher.contexts):
            needed = [name for name in template_fields(context.text) if name != "prompt"]
            _need_fields(f"teachers[{t}].contexts[{c}] ({teacher.name}, {context.label})", needed, questions)
    return questions


def _text(value: object) -> str:
    """A cell as text: decimals in plain digits, dates and times in ISO form, the rest as JSON."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, str | timedelta):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=_text)


def _need_fields(where: str, names: Sequence[str], questions: Sequence[Question]) -> None:
    for name in names:
        lacking = next((q for q in questions if name not in q.fields), None)
        if lacking is not None:
            raise InputError(
                where,
                f"needs {{{name}}}, which question {lacking.id!r} lacks; its columns are {', '.join(lacking.fields)}",
            )
