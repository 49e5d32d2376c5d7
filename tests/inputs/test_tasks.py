"""Ready-made tasks, from a copy in the hub's layout and from the hub's own cache."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.command.configuration import ConfigurationError, checked, merged
from schemas.config import Questions, RunConfig
from schemas.config.tasks import TASKS
from tasks.inputs.errors import InputError
from tasks.inputs.layouts import LAYOUTS
from tasks.inputs.prompts import PLAIN, prompt_text
from tasks.inputs.questions import Question, load_questions
from tasks.verifiers.protocol import Attempt
from tasks.verifiers.verifier import Verifier

_PROBLEM = {"problem": "What is 2 + 3?", "solution": "Add them: \\boxed{5}.", "answer": "5"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "boolq": [
        {"question": "is the sky blue", "answer": True, "passage": "By day it is."},
        {"question": "is grass red", "answer": False, "passage": "It is green."},
    ],
    "mmlu": [
        {"question": "2 + 2 = ?", "subject": "algebra", "choices": ["3", "4", "5", "6"], "answer": 1},
        {"question": "Which is A?", "subject": "letters", "choices": ["A", "B", "C", "D"], "answer": 0},
    ],
    "aime_2024": [{"id": 60, **_PROBLEM, "url": "https://example.org", "year": "2024"}],
    "aime_2025": [{"problem": "What is 2 + 3?", "answer": "5", "id": "0"}],
    "gsm8k": [{"question": "2 and 3?", "answer": "It is 2+3=<<2+3=5>>5.\n#### 5"}],
    "math_500": [{**_PROBLEM, "subject": "Algebra", "level": 1, "unique_id": "test/algebra/1.json"}],
}
RIGHT_AND_WRONG = {
    "boolq": ("By day it is.\nAnswer: yes", "Answer: no"),
    "mmlu": ("4, so\nAnswer: B", "Answer: C"),
    **dict.fromkeys(("aime_2024", "aime_2025", "gsm8k", "math_500"), ("\\boxed{5}", "\\boxed{6}")),
}
LEAST: dict[str, Any] = {"student": {"path": "m"}, "teachers": [{"name": "self", "contexts": ["none", "answer"]}]}


def write(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pl.DataFrame(rows)
    table.write_ndjson(path) if path.suffix == ".jsonl" else table.write_parquet(path)


def loaded(task: str | dict[str, Any], **settings: Any) -> list[Question]:
    return load_questions(checked({**LEAST, "task": task, **settings}))


@pytest.mark.parametrize("name", TASKS)
def test_a_copy_in_the_hubs_layout_gives_questions_that_the_verifier_can_judge(name: str, tmp_path: Path) -> None:
    write(ROWS[name], tmp_path / TASKS[name].file)
    config = checked({**LEAST, "task": {"name": name, "folder": str(tmp_path)}})
    questions = load_questions(config)
    assert len(questions) == len(ROWS[name]) and questions[0].id
    text = prompt_text(config.prompt, PLAIN, questions[0]).user
    assert "{{" not in text and len(text) > 20
    assert ("A. 3\nB. 4" in text) == (name == "mmlu")
    verifier = Verifier(config.verifier)
    try:
        verdicts = verifier.check_all([Attempt(said, questions[0].answer, False) for said in RIGHT_AND_WRONG[name]])
    finally:
        verifier.close()
    assert verdicts == [True, False]
    if name == "gsm8k":
        assert questions[0].fields["solution"].endswith("<<2+3=5>>5.")


@pytest.mark.parametrize("name", TASKS)
def test_the_hubs_cache_serves_the_pinned_revision_offline(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"questions.path: 'hf://datasets/.*the hub cannot be reached.*task.folder"):
        loaded(name)
    source = TASKS[name]
    folder = tmp_path / f"datasets--{source.repository.replace('/', '--')}" / "snapshots" / source.revision
    write(ROWS[name], folder / source.file)
    assert len(loaded(name)) == len(ROWS[name])
    assert [q.id for q in loaded(name, questions={"limit": 1})] == [loaded(name)[0].id]


def test_what_is_set_beside_a_task_takes_its_place(tmp_path: Path) -> None:
    write(ROWS["mmlu"], tmp_path / "mine.parquet")
    config = checked(
        {
            **LEAST,
            "task": "mmlu",
            "questions": {"path": str(tmp_path / "mine.parquet")},
            "prompt": {"chat": False},
            "verifier": {"kind": "exact"},
        }
    )
    assert config.verifier.kind == "exact" and not config.prompt.chat and "{{ choices }}" in config.prompt.template
    assert [q.answer for q in load_questions(config)] == ["B", "A"]
    assert (
        RunConfig.model_validate(
            {"task": "boolq", "questions": Questions(path="q.jsonl", limit=3), **LEAST}
        ).asked.limit
        == 3
    )
    again = checked(config.model_dump(mode="json"))
    assert again == config
    moved = checked(merged({**LEAST, "task": "boolq"}, {"task": {"name": "gsm8k", "folder": "/data"}}))
    assert moved.asked.path == "/data/main/test-00000-of-00001.parquet" and moved.verifier.kind == "math"


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ("nowhere", "task.name.*boolq.*'nowhere'"),
        ({"folder": "x"}, "task.name"),
        (3, "task"),
        ({"name": "boolq", "a": 1}, "a"),
    ],
)
def test_an_unknown_task_is_refused_with_those_that_are(task: object, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        checked({**LEAST, "task": task, "questions": {"path": "q.jsonl"}})


@pytest.mark.parametrize(
    ("layout", "row", "why"),
    [
        ("boolq", {"answer": "perhaps"}, "neither true nor false"),
        ("boolq", {}, "None, neither"),
        ("mmlu", {"choices": "A or B", "answer": 1}, "not a list of 2"),
        ("mmlu", {"choices": "[" * 100_000, "answer": 1}, "not a list of 2"),
        ("mmlu", {"choices": ["a", None], "answer": 0}, "not a list of 2"),
        ("mmlu", {"choices": ["a", "b"], "answer": "\u00b2"}, "counted from 0"),
        ("mmlu", {"choices": ["a"], "answer": 0}, "not a list of 2"),
        ("mmlu", {"choices": ["a", "b"], "answer": 2}, "counted from 0"),
        ("mmlu", {"choices": ["a", "b"], "answer": -1}, "counted from 0"),
        ("gsm8k", {"answer": "5"}, "no ####"),
    ],
)
def test_a_row_of_another_layout_is_named(layout: str, row: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        LAYOUTS[layout](row)
    if row:
        write([row], tmp_path / "q.jsonl")
        with pytest.raises(InputError, match=rf"questions.layout: row 1 of .* is not one of {layout}"):
            loaded("boolq", questions={"path": str(tmp_path / "q.jsonl"), "layout": layout})
