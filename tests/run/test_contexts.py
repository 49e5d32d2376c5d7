"""Contexts made of the student's own rollouts, of other questions, and system messages: who is shown what."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.command.configuration import ConfigurationError, checked
from schemas.config import Context, Prompt
from schemas.signals import Source, losses, not_ranked, sources
from tasks.engines.scoring import View
from tasks.inputs.errors import InputError
from tasks.inputs.prompts import prompt_text
from tasks.inputs.questions import Question
from tasks.run.contexts import answer_of
from tasks.run.models import LoadedModels
from tasks.run.session import RunSession, start_session
from tasks.run.shells import run_stage
from tasks.stages.distillation.gradients import distill
from tasks.stages.distillation.stage import NO_NODES
from tests.helpers.sessions import provided

RIGHT = {"kind": "right_attempt", "template": "{{ prompt }} solution {{ right_attempt }}"}
FEEDBACK = {"kind": "feedback", "template": "{{ prompt }} wrong {{ attempt }}{% if verdict == 'right' %} +{% endif %}"}


def opened(settings: dict[str, Any], *contexts: Any) -> RunSession:
    return start_session(checked({**settings, "teachers": [{"name": "self", "contexts": list(contexts)}]}))


def prompts_of(session: RunSession, context: str, correct: list[bool], texts: list[str]) -> list[str]:
    """The prompts by rollout, of rollouts with these texts."""
    models, question = provided(session), session.keys.questions[0]
    tokens = [models.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rollouts: dict[str, Any] = {
        "tokens": np.concatenate(tokens).astype(np.int32),
        "offsets": np.cumsum([0, *map(len, tokens)]),
        "correct": np.array(correct),
    }
    first, by_rollout = models.teacher_prompts(Source("self", context), question, rollouts)
    assert first == by_rollout[0]
    own = models.tokenizer.decode(models.prompt(question)).replace(" <assistant>", "")
    return [models.tokenizer.decode(p).removeprefix(own).replace(" <assistant>", "").strip() for p in by_rollout]


TEXTS = ["answer 1", "answer 2", "answer 3", "answer 4"]


@pytest.mark.parametrize(
    ("correct", "shown"),
    [
        ([True, False, True, False], ["3", "1", "1", "1"]),
        ([False, False, True, False], ["3", "3", None, "3"]),
        ([False] * 4, [None] * 4),
        ([True] * 4, ["2", "1", "1", "1"]),
    ],
)
def test_an_attempt_that_is_right_is_another_rollout(
    correct: list[bool], shown: list[str | None], settings: dict[str, Any]
) -> None:
    session = opened(settings, RIGHT)
    expected = ["" if other is None else f"solution answer {other}" for other in shown]
    assert prompts_of(session, "right_attempt", correct, TEXTS) == expected


def test_an_attempt_that_failed_is_another_rollout_too(settings: dict[str, Any]) -> None:
    template = "{{ prompt }} solution {{ right_attempt }} wrong {{ failed_attempt }}"
    contrast = {"kind": "custom", "name": "contrast", "template": template, "otherwise": "{{ prompt }} +"}
    session = opened(settings, contrast)
    found = prompts_of(session, "contrast", [True, False, False, True], TEXTS)
    assert found == [
        "solution answer 4 wrong answer 2",
        "solution answer 1 wrong answer 3",
        "solution answer 1 wrong answer 2",
        "solution answer 1 wrong answer 2",
    ]
    assert prompts_of(session, "contrast", [True, False, True, True], TEXTS)[1] == "+"


def test_only_trees_judge_a_context_that_shows_what_is_scored(settings: dict[str, Any]) -> None:
    writing = {"template": "{{ prompt }} {{ attempt }}", "max_tokens": 8}
    critique = {"kind": "critique", "template": "{{ prompt }} {{ critique }}", "generate": writing}
    session = opened(settings, "none", RIGHT, FEEDBACK, critique)
    assert not_ranked(session.config) == [Source("self", "feedback"), Source("self", "critique")]


def test_feedback_is_of_the_very_rollout_that_is_scored(settings: dict[str, Any]) -> None:
    session = opened(settings, FEEDBACK)
    found = prompts_of(session, "feedback", [True, False, False, True], TEXTS)
    assert found == ["wrong answer 1 +", "wrong answer 2", "wrong answer 3", "wrong answer 4 +"]


def test_what_is_shown_where_no_attempt_is_right_is_a_setting(settings: dict[str, Any]) -> None:
    session = opened(settings, {**RIGHT, "otherwise": "{{ prompt }} answer {{ answer }}"})
    answer = provided(session).answer(session.keys.questions[0])
    found = prompts_of(session, "right_attempt", [True, False, False, False], TEXTS)
    assert found == [f"answer {answer}", *["solution answer 1"] * 3]


def test_gradients_are_those_of_each_rollout_after_its_own_prompt(settings: dict[str, Any]) -> None:
    session = opened(settings, "none", RIGHT, FEEDBACK)
    question, models = session.keys.questions[0], provided(session)
    run_stage(session, "rollouts", [question])
    run_stage(session, "ranking", [question])
    rollouts = session.store.need("rollouts", session.keys.key("rollouts", question)).arrays
    options: Any = {"temperature": session.config.sampling.temperature, "block": 64, "group_tokens": 10_000}
    of_run = losses(session.config)
    for source in sources(session.config):
        shared, by_rollout = models.teacher_prompts(source, question, rollouts)
        for r in range(len(rollouts["correct"])):
            part = slice(*rollouts["offsets"][r : r + 2])
            tokens = np.asarray(rollouts["tokens"][part])
            view = View(models.teacher(source), by_rollout[r] if by_rollout else shared)
            student = View(models.student, models.prompt(question))
            offsets = np.array([0, len(tokens)])
            alone = distill(student, {source: view}, tokens, offsets, NO_NODES, {source: of_run}, **options)
            for signal, arrays in alone.items():
                stored = session.store.need("ranking", session.keys.key("ranking", question, signal)).arrays
                assert np.allclose(stored["d_sq"][part], arrays["d_sq"], rtol=1e-4, atol=1e-9)
                assert np.allclose(stored["d_token"][part], arrays["d_token"], rtol=1e-4, atol=1e-7)


def keys(session: RunSession, stage: str = "ranking") -> list[str]:
    return list(session.keys.of_stage(stage, session.keys.questions[0]).values())


def test_a_contexts_text_is_in_its_key_and_what_it_does_not_use_is_not(settings: dict[str, Any]) -> None:
    base = keys(opened(settings, RIGHT))
    assert keys(opened(settings, {**RIGHT, "demonstrations": 5})) == base
    assert keys(opened(settings, {**RIGHT, "otherwise": "{{ prompt }} +"})) != base
    assert keys(opened(settings, {**RIGHT, "template": "{{ prompt }} wrong {{ right_attempt }}"})) != base
    assert keys(opened(settings, RIGHT), "rollouts") == keys(opened(settings, "none"), "rollouts")


def hinted(settings: dict[str, Any], tmp_path: Path, hint: str) -> dict[str, Any]:
    """The settings, with a column more."""
    rows = [json.loads(line) for line in Path(settings["questions"]["path"]).read_text().splitlines()]
    path = tmp_path / f"{hint}.jsonl"
    path.write_text("".join(json.dumps({**row, "hint": hint, "values": hint}) + "\n" for row in rows))
    return {**settings, "questions": {"path": str(path)}}


@pytest.mark.parametrize(
    "context",
    [
        {**RIGHT, "otherwise": "{{ prompt }} answer {{ hint }}"},
        {"kind": "feedback", "template": "{{ prompt }}{% if verdict == 'right' %} answer {{ hint }}{% endif %}"},
        {"kind": "feedback", "template": "{{ prompt }}{% if attempt == 'x' %} answer {{ hint }}{% endif %}"},
        {
            "kind": "feedback",
            "template": "{{ prompt }}{% if attempt == 'x' %}"
            "{% for d in demonstrations %}{{ d.values }}{% endfor %}{% endif %}",
        },
    ],
)
def test_every_text_that_a_prompt_may_show_is_in_its_key(
    context: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    one, other = (opened(hinted(settings, tmp_path, hint), context) for hint in ("7", "8"))
    assert keys(one) != keys(other) and keys(one, "rollouts") == keys(other, "rollouts")


def test_a_rows_column_is_no_method_of_it(settings: dict[str, Any], tmp_path: Path) -> None:
    template = "{% for other in demonstrations %}{{ other.values }} {% endfor %}{{ prompt }}"
    session = opened(hinted(settings, tmp_path, "answer"), {"kind": "demonstrations", "template": template})
    prompt = provided(session).prompts.teacher(Source("self", "demonstrations"), session.keys.questions[0])
    assert provided(session).tokenizer.decode(prompt).startswith("<user> answer answer start")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"contexts": [{"kind": "answer", "system": "x"}], "chat": False}, "teachers.0.contexts.0.system: given, but"),
        ({"contexts": [{"kind": "answer", "chat_template_kwargs": {}}], "chat": False}, "chat_template_kwargs: given"),
        ({"contexts": [RIGHT], "rollouts": 1}, "teachers.0.contexts.0: shows another rollout, but sampling.rollouts"),
        ({"contexts": [{"kind": "answer", "template": "{{ prompt }} is {answer}"}]}, "has {answer}, which is text"),
        ({"contexts": ["demonstrations"], "limit": 1}, "needs demonstrations, which are other questions, but there is"),
        ({"contexts": ["feedback"], "column": "attempt"}, "'attempt' stands for a rollout; rename the column"),
        (
            {"contexts": [{"kind": "feedback", "template": "{{ prompt }}" + "{{ attempt }}" * 12}]},
            "sampling.max_tokens: 24 tokens after a prompt of",
        ),
        (
            {"contexts": [{**RIGHT, "otherwise": "{{ prompt }}" + " answer" * 300}]},
            "sampling.max_tokens: 24 tokens after a prompt of",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused_before_anything_is_loaded(
    change: dict[str, Any], told: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoadedModels, "_scorer", lambda *_: pytest.fail("a model was loaded"))
    changed = hinted(settings, tmp_path, "x")
    if "column" in change:
        path = Path(changed["questions"]["path"])
        path.write_text(path.read_text().replace('"hint"', f'"{change["column"]}"'))
    changed["questions"]["limit"] = change.get("limit")
    changed["prompt"] = {"chat": change.get("chat", True)}
    changed["sampling"] = {**settings["sampling"], "rollouts": change.get("rollouts", 4)}
    with pytest.raises((ConfigurationError, InputError)) as error:
        opened(changed, *change["contexts"])
    assert told in str(error.value)


def test_demonstrations_are_the_questions_that_come_next(settings: dict[str, Any]) -> None:
    shown_of = "{{ other.question }} answer {{ other.answer }} ; "
    template = "{% for other in demonstrations %}" + shown_of + "{% endfor %}{{ prompt }}"
    session = opened(settings, {"kind": "demonstrations", "template": template, "demonstrations": 2})
    models, ids, source = provided(session), session.keys.questions, Source("self", "demonstrations")
    for n, question in enumerate(ids):
        shown = models.tokenizer.decode(models.prompts.teacher(source, question))
        others = [models._questions[ids[(n + k) % len(ids)]] for k in (1, 2)]
        expected = "".join(f"{o.fields['question']} answer {o.answer} ; " for o in others)
        assert shown == f"<user> {expected}{models._questions[question].fields['question']} <assistant>"


def test_a_column_that_other_questions_lack_is_an_error_before_anything_is_loaded(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoadedModels, "_scorer", lambda *_: pytest.fail("a model was loaded"))
    template = "{% for other in demonstrations %}{{ other.proof }}{% endfor %}{{ prompt }}"
    with pytest.raises(InputError, match=r"^teachers\[0\]\.contexts\[0\] .*: needs \{\{ proof \}\}"):
        opened(settings, {"kind": "demonstrations", "template": template})


QUESTION = Question("q", "7", {"question": "1 + 6", "answer": "7"})


def test_a_system_message_takes_the_place_of_the_students() -> None:
    prompt = Prompt(system="be brief")
    plain, hinted = Context(), Context(kind="custom", name="c", template="{{ prompt }}", system="it is {{ answer }}")
    assert prompt_text(prompt, plain, QUESTION).system == "be brief"
    assert prompt_text(prompt, hinted, QUESTION).system == "it is 7"
    assert prompt_text(prompt, hinted, QUESTION).user == "1 + 6"


def test_a_teacher_may_think_where_the_student_does_not(settings: dict[str, Any], models: Path, tmp_path: Path) -> None:
    student = Path(shutil.copytree(models / "student", tmp_path / "student"))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %} +{% endif %}"
    (student / "chat_template.jinja").write_text(template)
    thinking = {"kind": "answer", "template": "{{ prompt }}", "chat_template_kwargs": {"enable_thinking": True}}
    prompt = {"chat_template_kwargs": {"enable_thinking": False}}
    session = opened({**settings, "student": {"path": str(student)}, "prompt": prompt}, "none", thinking)
    found, question = provided(session), session.keys.questions[0]
    plain, thought = (found.prompts.teacher(Source("self", name), question) for name in ("none", "answer"))
    assert found.tokenizer.decode(thought) == f"{found.tokenizer.decode(plain)} +" and plain == found.prompt(question)
    none = {**thinking, "chat_template_kwargs": {}}
    other = opened({**settings, "student": {"path": str(student)}, "prompt": prompt}, "none", none)
    assert keys(other)[:2] == keys(session)[:2] and keys(other)[2:] != keys(session)[2:]


@pytest.mark.parametrize("text", ["{{ answer }}", "{% for x in y %}", "{{ 7 * 7 }}", "{# no #}", "<b>&amp;"])
def test_what_a_model_writes_is_text(text: str) -> None:
    context = Context(kind="feedback")
    found = prompt_text(Prompt(), context, QUESTION, {"attempt": text, "verdict": "wrong"}).user
    assert f"\n{text}\n" in found and "It is wrong." in found


@pytest.mark.parametrize(
    ("context", "told"),
    [
        ({"kind": "right_attempt", "otherwise": "{{ prompt }}{{ right_attempt }}"}, "which there is none of then"),
        ({"kind": "right_attempt", "otherwise": "x"}, "does not contain {{ prompt }}"),
        ({"kind": "answer", "template": "{{ prompt }}{{ demonstrations }}"}, "which are a list: go over them"),
        ({"kind": "answer", "template": "{{ prompt }}{% for a in answer %}{% endfor %}"}, "the only list is demonst"),
        ({"kind": "demonstrations", "demonstrations": 0}, "greater than or equal to 1"),
        ({"kind": "none", "system": "x"}, "given to context none; use kind: custom"),
    ],
)
def test_contexts_that_cannot_be_are_refused(context: dict[str, Any], told: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as error:
        opened(settings, context)
    assert told in str(error.value)


def test_thinking_is_not_shown() -> None:
    assert answer_of("<think>long\n</think>\n\nanswer 7 ") == "answer 7" and answer_of(" answer 7") == "answer 7"
