"""Teachers' own answers, what the student makes of parts of them, and texts that are screened by both."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows.command.configuration import ConfigurationError, checked
from flows.command.terminal import success_table, what_is_copied
from flows.plan import cost
from schemas.arrays import CONTINUATIONS, HANDOVER, check_layout
from schemas.config import Scores
from schemas.pipeline import diagnosis_stages, ranking_stages
from schemas.signals import Source
from schemas.tables import HANDOVERS, SUCCESS
from tasks.outputs.diagnosis import make_outputs
from tasks.outputs.files import parsed
from tasks.outputs.success import answered as read_answers
from tasks.outputs.success import success_tables
from tasks.run.session import RunSession, start_session
from tasks.run.shells import run_stage
from tasks.stages.aggregate.success import Answered, handover_rows, success_rows
from tasks.stages.answers import tokens_before
from tasks.stages.texts import KEPT, NO_GAIN
from tests.helpers.sessions import provided
from tests.run.test_texts import RATIONALE, WRITING

ANSWERS = {"rollouts": 5, "parts": [0.25, 0.5], "continuations": 2}


def answered(settings: dict[str, Any], **more: Any) -> tuple[RunSession, list[str]]:
    session = start_session(checked({**settings, "success": ANSWERS, **more}))
    ids = session.keys.questions[:2]
    for stage in ("rollouts", "texts", "answers", "handover"):
        assert not run_stage(session, stage, ids).failed
    return session, ids


def test_each_teacher_answers_and_the_student_goes_on_from_parts_of_it(settings: dict[str, Any]) -> None:
    session, ids = answered(settings)
    reads, tokenizer = session.store, provided(session).tokenizer
    for question in ids:
        of_stage = session.keys.of_stage("answers", question)
        assert [s.source for s in of_stage if s] == [
            Source("large", "none"),
            Source("self", "none"),
            Source("self", "answer"),
        ]
        for signal, key in of_stage.items():
            answers = reads.need("answers", key).arrays
            handover = reads.need("handover", session.keys.key("handover", question, signal)).arrays
            check_layout("answers", CONTINUATIONS, answers)
            check_layout("handover", HANDOVER, handover)
            assert len(answers["success"]) == 5
            assert handover["answer"].tolist() == np.repeat(np.arange(5), 3).tolist()
            assert handover["part"].tolist() == [0.25, 0.5, 1.0] * 5
            assert (handover["draws"] == 2).all() and (handover["successes"] <= 2).all()
            spans = list(pairwise(answers["offsets"].tolist()))
            for row, (first, last) in enumerate(spans):
                tokens = answers["tokens"][first : last - (not answers["truncated"][row])].tolist()  # but for its end
                assert handover["place"][3 * row : 3 * row + 2].tolist() == [
                    round(0.25 * len(tokens)),
                    round(0.5 * len(tokens)),
                ]
                text = tokenizer.batch_decode([tokens[: handover["place"][3 * row + 2]]], skip_special_tokens=True)[0]
                whole = tokenizer.batch_decode([tokens], skip_special_tokens=True)[0]
                said = [c for c in whole[len(text) :] if c.isdigit()]
                assert whole.startswith(text) and len(set(said)) <= 1  # its last number, and the same before it


def test_a_teacher_that_is_the_student_is_right_as_often_and_answers_by_its_own_stream(
    settings: dict[str, Any],
) -> None:
    session, (question, _) = answered(settings)
    own = session.store.need("answers", session.keys.key("answers", question, Source("self", "none").every_loss)).arrays
    rollouts = session.store.need("rollouts", session.keys.key("rollouts", question)).arrays
    assert own["tokens"].tolist() != rollouts["tokens"].tolist()  # fresh
    again, _ = answered(settings)
    assert again.keys.recipes == session.keys.recipes


def test_answers_have_keys_of_their_own_settings_and_none_are_asked_for_without(settings: dict[str, Any]) -> None:
    keys = {}
    for name, success in (("base", ANSWERS), ("more", {**ANSWERS, "rollouts": 6}), ("parts", {**ANSWERS, "parts": []})):
        session = start_session(checked({**settings, "success": success}))
        question = session.keys.questions[0]
        keys[name] = [
            set(session.keys.of_stage(stage, question).values()) for stage in ("answers", "handover", "trees")
        ]
    assert not keys["base"][0] & keys["more"][0] and keys["base"][0] == keys["parts"][0]
    assert not keys["base"][1] & keys["parts"][1] and keys["base"][2] == keys["more"][2]
    without = start_session(checked({**settings, "success": {"rollouts": 0}}))
    assert without.keys.of_stage("answers", without.keys.questions[0]) == {}
    assert "answers" not in ranking_stages(without.config) and {"answers", "handover"} <= set(
        ranking_stages(session.config)
    )
    planned = {of_stage.stage: of_stage for of_stage in cost(session)}
    assert planned["answers"].completions == 6 * 3 * 5 and planned["handover"].completions == 6 * 3 * 5 * 2
    assert "answers" not in {of_stage.stage for of_stage in cost(without)}


def test_tables_and_report_tell_own_success(settings: dict[str, Any]) -> None:
    session, _ = answered(settings)
    ids = session.keys.questions
    for stage in diagnosis_stages():
        run_stage(session, stage, ids)
    files = dict(make_outputs(session, ids, {}).files)
    success, handover = (parsed(files[f"{name}.parquet"], name) for name in ("success", "handover"))
    assert success.columns == list(SUCCESS) and handover.columns == list(HANDOVERS) and len(handover) == 3 * 3
    assert success["answers"].to_list() == [30] * 3 and "report.html" in files
    own = [
        np.mean(
            [session.store.need("answers", session.keys.key("answers", i, s.every_loss)).arrays["success"] for i in ids]
        )
        for s in (Source("large", "none"), Source("self", "none"), Source("self", "answer"))
    ]
    assert success["own"].to_list() == pytest.approx(own)
    before = handover.filter(pl.col("part") == 1)
    assert before["handover"].to_list() == pytest.approx(success["handover"].to_list())
    assert (success["own"] - success["handover"] - success["copied"]).abs().max() == pytest.approx(0)


class Letters:
    """As many letters as each id says, nothing for 0."""

    def batch_decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool = False) -> list[str]:
        return ["".join("" if i == 0 else "x" * i for i in row) for row in ids]


@pytest.mark.parametrize(
    ("tokens", "place", "n"),
    [([1, 1, 1], 3, 3), ([1, 3, 1], 2, 1), ([1, 0, 3, 1], 3, 2), ([1, 1], 0, 0), ([], 0, 0), ([2], 1, 0)],
)
def test_tokens_before_a_place_have_no_character_from_it_on(tokens: list[int], place: int, n: int) -> None:
    assert tokens_before(tokens, Letters(), place) == n


def test_differences_are_paired_by_question_and_unknown_ones_are_null() -> None:
    copying, honest, hidden = Source("a", "leak"), Source("b", "none"), Source("c", "none")
    rng = np.random.default_rng(0)
    questions = []
    for student in rng.uniform(0.2, 0.8, 20):
        own = rng.random(8) < student
        answers = {"success": own, "truncated": np.zeros(8, dtype=bool)}
        going_on = {"part": np.ones(8), "draws": np.full(8, 2), "successes": 2 * own.astype(int)}
        nothing = {name: values[:0] for name, values in going_on.items()}
        right = {**answers, "success": np.ones(8, dtype=bool)}
        questions.append(
            Answered(
                float(own.mean()),
                {copying: right, honest: answers, hidden: right},
                {copying: going_on, honest: going_on, hidden: nothing},
            )
        )
    rows = {row["teacher"]: row for row in success_rows(questions, Scores(), 0)}
    assert rows["b"]["gap"] == rows["b"]["copied"] == 0 and np.isnan(rows["b"]["gap_low"])  # no spread, pair by pair
    assert rows["a"]["own"] == 1 == rows["a"]["own_high"] and rows["a"]["own_low"] == pytest.approx(0.025 ** (1 / 20))
    assert rows["a"]["copied_low"] > 0.2 and rows["a"]["copied"] == pytest.approx(1 - rows["a"]["handover"])
    assert np.isnan(rows["c"]["handover"]) and np.isnan(rows["c"]["copied_low"])
    assert [row["part"] for row in handover_rows(questions, Scores(), 0)] == [1.0, 1.0]
    shown = pl.DataFrame(list(rows.values())).fill_nan(None).to_dicts()
    (line,) = what_is_copied(shown)
    assert line.startswith("copied: a/leak is right .") and success_table(shown, 0.95).row_count == 3


def test_texts_without_more_success_are_dropped(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the teacher's answers with the text, of which the first is never right and the second always."""
    asked: list[tuple[int, ...]] = []

    def answers(*given: Any) -> dict[str, Any]:
        prompts, n = given[-3:-1]
        asked.append(tuple(prompts[0]))
        with_text = len(set(asked))  # the first prompt is with the first text, the next one without any
        return {"success": np.arange(n) < (n // 2 if with_text != 3 else n)}

    monkeypatch.setattr("tasks.stages.texts.sample_answers", answers)
    context = {**RATIONALE, "generate": {**WRITING, "same_script": False, "success_draws": 4, "max_tokens": 60}}
    session = start_session(checked({**settings, "teachers": [{"name": "self", "contexts": [context]}]}))
    question = session.keys.questions[0]
    run_stage(session, "rollouts", [question])
    assert not run_stage(session, "texts", [question]).failed
    (key,) = session.keys.of_stage("texts", question).values()
    verdicts = session.store.need("texts", key).arrays["verdict"].tolist()
    assert [v for v in verdicts if v in (KEPT, NO_GAIN)][:2] == [NO_GAIN, KEPT]


@pytest.mark.parametrize(
    ("success", "told"),
    [
        ({"parts": [0.5, 0.25]}, "success.parts: \\[0.5, 0.25\\]; give each share once, in increasing order"),
        ({"parts": [1.0]}, "success.parts.0"),
        ({"rollouts": -1}, "success.rollouts"),
    ],
)
def test_parts_are_shares_in_order(success: dict[str, Any], told: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=told):
        checked({**settings, "success": success})


def test_where_the_verifier_does_not_tell_handover_is_unknown(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPDSCOPE_ALLOW_CODE", "1")
    verifier = {"kind": "python", "function": "tests.helpers.judges:last_word"}
    session, ids = answered(settings, verifier=verifier, success={**ANSWERS, "parts": []})
    (row, *_), handover = success_tables(session, read_answers(session, ids))
    assert row["own"] is not None and np.isnan(row["handover"]) and handover == []
    assert {c.stage: c.completions for c in cost(session) if c.stage == "handover"} == {"handover": 0}
    assert what_is_copied(pl.DataFrame([row]).fill_nan(None).to_dicts()) == [
        "handover is not known: the verifier does not tell where answers begin"
    ]
    session.provider.close()


def test_ends_of_answers_are_no_part_of_them(settings: dict[str, Any]) -> None:
    """So the student is not asked to go on after an end, be it the model's or a text of `sampling.stop`."""
    sampling = {**settings["sampling"], "stop": ["3"]}
    session, ids = answered(settings, sampling=sampling, success={**ANSWERS, "parts": [0.5, 0.999]})
    ended = 0
    for question in ids:
        for signal, key in session.keys.of_stage("answers", question).items():
            answers = session.store.need("answers", key).arrays
            handover = session.store.need("handover", session.keys.key("handover", question, signal)).arrays
            for row, place in zip(handover["answer"].tolist(), handover["place"].tolist(), strict=True):
                whole = int(np.diff(answers["offsets"])[row])
                assert place <= (whole if answers["truncated"][row] else whole - 1)
                ended += not answers["truncated"][row]
    assert ended
    session.provider.close()


def test_a_teacher_of_another_tokenizer_may_have_no_token_that_ends_a_completion(
    settings: dict[str, Any], models: Path
) -> None:
    sampling = {**settings["sampling"], "stop": ["3"]}
    other = {"name": "o", "model": {"path": str(models / "other")}, "tokenizer": "own", "chat_template": "own"}
    session, ids = answered({**settings, "teachers": [other]}, sampling=sampling, success={"rollouts": 2})
    assert all(len(session.store.need("answers", key).arrays["success"]) == 2
               for i in ids for key in session.keys.of_stage("answers", i).values())  # fmt: skip
    session.provider.close()
