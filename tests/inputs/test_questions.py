"""Questions from every kind of file, prompts, and tokenizers compared by content."""

import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest

from flows.command.configuration import checked, merged
from schemas.config import Context, Model, Prompt
from tasks.inputs.errors import InputError
from tasks.inputs.prompts import PLAIN, check_same_tokenizer, encode_prompt, load_tokenizer, prompt_text
from tasks.inputs.questions import Question, load_questions


def test_the_same_questions_from_every_kind_of_file(settings: dict[str, Any], questions: Path, tmp_path: Path) -> None:
    table = pl.read_ndjson(questions)
    table.write_parquet(tmp_path / "q.parquet")
    table.write_csv(tmp_path / "q.csv")
    with fsspec.open("memory://q.jsonl", "wb") as file:
        file.write(questions.read_bytes())
    expected = load_questions(checked(settings))
    assert [q.id for q in expected][:2] == ["chain-001", "chain-002"]
    for path in (tmp_path / "q.parquet", tmp_path / "q.csv", "memory://q.jsonl"):
        assert load_questions(checked(merged(settings, {"questions": {"path": str(path)}}))) == expected
    assert load_questions(checked(merged(settings, {"questions": {"limit": 2}}))) == expected[:2]


def test_a_column_that_a_template_names_may_be_null_where_no_template_reads_it(
    settings: dict[str, Any], questions: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows[2]["summary"] = None
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    override: dict[str, Any] = {"questions": {"path": str(path)}}
    assert "summary" not in load_questions(checked(merged(settings, override)))[2].fields
    override["teachers"] = {"1": {"contexts": ["summary"]}}
    with pytest.raises(InputError, match=r"needs \{\{ summary \}\}, which question 'chain-003' lacks"):
        load_questions(checked(merged(settings, override)))


QUESTION = Question("q", "7", {"question": "start 3 add 4", "answer": "7", "note": "{{ answer }}"})


def test_prompts() -> None:
    prompt = Prompt(template="{{ question }} ;")
    assert prompt_text(prompt, PLAIN, QUESTION).user == "start 3 add 4 ;"
    hinted = prompt_text(prompt, Context(kind="custom", name="c", template="{{ prompt }} = {{ note }}"), QUESTION)
    assert hinted.user == "start 3 add 4 ; = {{ answer }}"  # a field's own braces are text
    assert prompt_text(prompt, Context(kind="answer"), QUESTION).user.endswith("The correct answer is 7.")


def test_chat_and_plain_prompts(models: Path) -> None:
    tokenizer = load_tokenizer(Model(path=str(models / "student")))
    chat = encode_prompt(tokenizer, prompt_text(Prompt(), PLAIN, QUESTION))
    assert tokenizer.decode(chat) == "<user> start 3 add 4 <assistant>"
    plain = Prompt(chat=False)
    assert tokenizer.decode(encode_prompt(tokenizer, prompt_text(plain, PLAIN, QUESTION))) == "start 3 add 4"


def test_another_tokenizer_of_the_same_size_is_refused(models: Path) -> None:
    student, teacher, other = (load_tokenizer(Model(path=str(models / n))) for n in ("student", "teacher", "other"))
    check_same_tokenizer("teachers[0].model.path", "here", student, teacher)
    with pytest.raises(InputError, match=r"'here' has a different tokenizer from the student: 2 tokens differ"):
        check_same_tokenizer("teachers[0].model.path", "here", student, other)


def test_numbers_keep_their_own_form_and_the_answer_its_name(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"id": 1, "question": "start 3", "gold": 7, "answer": "no"}\n{"id": "b", "question": "x", "gold": 7.5}'
    )
    override = {"questions": {"path": str(path), "answer": "gold"}}
    first, second = load_questions(checked(merged(settings, override)))
    assert (first.id, first.answer, second.answer) == ("1", "7", "7.5")
    assert first.fields["answer"] == "7"  # what a context shows is the reference answer


def test_decimals_and_dates_of_a_parquet_table_are_plain_text(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    row = {
        "id": date(2026, 11, 24),
        "question": "start 3",
        "answer": Decimal("18.90"),
        "at": datetime(2026, 11, 24, 1, 2, 3),
        "prices": [Decimal("1.50")],
    }
    pl.DataFrame([row]).write_parquet(path)
    question = load_questions(checked(merged(settings, {"questions": {"path": str(path)}})))[0]
    assert (question.id, question.answer) == ("2026-11-24", "18.90")
    assert (question.fields["at"], question.fields["prices"]) == ("2026-11-24T01:02:03", '["1.50"]')


def test_a_reference_answer_that_cannot_be_verified_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": "a", "question": "x", "answer": "5"}\n{"id": "b", "question": "x", "answer": "1e999"}\n')
    with pytest.raises(InputError, match=r"questions.answer: '1e999' of question 'b' is not a finite number"):
        load_questions(checked(merged(settings, {"questions": {"path": str(path)}})))
