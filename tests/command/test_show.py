"""`opdscope show`: prompts as rendered, and the first tokens with the probabilities of student and teachers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from flows.command.configuration import checked
from flows.command.guarded import BAD_INPUT, OK
from flows.command.show import show_file
from flows.show import by_name, prompts, rollouts_of, scored
from schemas.signals import sources
from tasks.run.session import start_session
from tasks.run.shells import run_stage
from tests.helpers.sessions import provided


def test_prompts_are_those_that_are_scored(settings: dict[str, Any]) -> None:
    session = start_session(checked(settings))
    models, question = provided(session), session.keys.questions[1]
    shown = prompts(session.config, models, question, None, {})
    assert list(shown) == ["student", "large / none", "self / none", "self / answer"]
    read_back = models.tokenizer(list(shown.values()), add_special_tokens=False)["input_ids"]
    teachers = [models.prompts.teacher(source, question) for source in sources(session.config)]
    assert read_back == [models.prompt(question), *teachers]
    assert shown["self / answer"] != shown["student"] == shown["self / none"]


def test_tokens_are_the_runs_own_and_probabilities_those_of_whole_passes(settings: dict[str, Any]) -> None:
    session = start_session(checked(settings))
    question = session.keys.questions[0]
    arrays = rollouts_of(session, [question], make=True)[question]
    assert list(rollouts_of(session, session.keys.questions[:2], make=False)) == [question]
    assert run_stage(session, "rollouts", [question]).cached == 1
    drawn = scored(session.config, provided(session), question, arrays, {}, 5)
    tokens = arrays["tokens"][: min(5, int(arrays["offsets"][1]))]
    models = provided(session)
    assert drawn.tokens == models.tokenizer.batch_decode([[int(t)] for t in tokens])
    assert drawn.own < 1e-5
    for name, values in by_name(drawn).items():
        source = next((s for s in drawn.teachers if f"{s.teacher} / {s.context}" == name), None)
        scorer = models.student if source is None else models.teacher(source)
        prompt = models.prompt(question) if source is None else models.prompts.teacher(source, question)
        with torch.inference_mode():
            logits = scorer.model(input_ids=torch.tensor([[*prompt, *tokens.tolist()]])).logits[0, len(prompt) - 1 : -1]
        expected = torch.softmax(logits[:, : scorer.vocabulary].float(), -1).numpy()[np.arange(len(tokens)), tokens]
        assert values == pytest.approx(expected.tolist(), rel=1e-4)


def test_it_is_shown_as_text_whatever_it_contains(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hostile.jsonl"
    row = {"id": "q[b]1", "question": "[red]1\u202e+\x1b[31m1", "answer": "2", "solution": "two\nlines", "hint": "h"}
    path.write_text(json.dumps({**row, "attempt": "3"}) + "\n")
    settings["questions"] = {"path": str(path)}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert show_file(config, [], question=None, score=True) == OK
    out = capsys.readouterr().out
    assert "student, question q[b]1" in out and "\x1b" not in out and "\u202e" not in out
    assert "the student as its own teacher: log-probabilities within" in out
    monkeypatch.setattr("tasks.engines.transformers.loading.load_transformers", lambda *_: pytest.fail("loaded"))
    assert show_file(config, [], question="q[b]1", score=False) == OK
    assert "probability of" not in capsys.readouterr().out
    assert show_file(config, [], question="other", score=False) == BAD_INPUT
    assert "--question: 'other' is not among the 1 questions, such as 'q[b]1'" in capsys.readouterr().err


def test_recorded_runs_have_no_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"question_id": "q", "rollout_id": 0, "position": 0}
    rows = [{**keys, "token_id": t, "student_prob": 0.5, "successes": t, "draws": 2, "correct": True} for t in (0, 1)]
    (tmp_path / "o.jsonl").write_text("\n".join(map(json.dumps, rows)))
    teacher = [{**keys, "token_id": t, "teacher_prob": 0.5} for t in (0, 1)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, teacher)))
    config = {
        "store": str(tmp_path / "store"),
        "tree": {"kind": "recorded", "path": str(tmp_path / "o.jsonl")},
        "teachers": [{"kind": "recorded", "name": "t", "path": str(tmp_path / "t.jsonl")}],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert show_file(path, [], question=None, score=True) == BAD_INPUT
    assert "tree.kind: recorded outcomes have no prompts to show" in capsys.readouterr().err
