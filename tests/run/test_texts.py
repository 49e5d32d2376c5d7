"""Contexts that show generated texts: what a writer is asked, what passes the screen, who is shown what."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.command.configuration import ConfigurationError, checked
from flows.plan import cost
from flows.show import prompts, texts_of
from schemas.arrays import SCREEN
from schemas.config import Context, Generation, Model, Prompt
from schemas.pipeline import diagnosis_stages
from schemas.signals import Source
from tasks.inputs.errors import InputError
from tasks.inputs.prompts import load_tokenizer, prompt_text
from tasks.inputs.questions import Question
from tasks.outputs.diagnosis import make_outputs
from tasks.run.session import RunSession, start_session
from tasks.run.shells import run_stage
from tasks.stages.texts import ANSWER, CUT, KEPT, NO_ANSWER, SCRIPT, SHORT, screen, shown, states, told
from tests.helpers.sessions import provided
from tests.helpers.small import random_model

WRITING: dict[str, Any] = {"template": "{{ prompt }} {{ solution }}", "max_tokens": 12, "tries": 3, "shortest": 0}
RATIONALE: dict[str, Any] = {
    "kind": "rationale",
    "template": "{{ prompt }} solution {{ rationale }}",
    "generate": WRITING,
}
CRITIQUE: dict[str, Any] = {
    "kind": "critique",
    "template": "{{ prompt }} wrong {{ attempt }} {{ critique }}",
    "generate": {"template": "{{ prompt }} {{ attempt }} {{ verdict }}", "max_tokens": 12, "tries": 2, "shortest": 0},
}


def opened(settings: dict[str, Any], *contexts: Any, model: Path | None = None) -> RunSession:
    teacher = {"name": "self", "contexts": list(contexts), **({"model": {"path": str(model)}} if model else {})}
    return start_session(checked({**settings, "teachers": [teacher]}))


def stored(session: RunSession, stage: str, question: str, context: str) -> dict[str, Any]:
    signal = next(s for s in session.keys.of_stage(stage, question) if s is not None and s.context == context)
    return session.store.need(stage, session.keys.key(stage, question, signal)).arrays


@pytest.mark.parametrize(
    ("text", "more", "why"),
    [
        ("a long enough text about seven", {}, KEPT),
        ("too short a text", {}, SHORT),
        ("", {"shortest": 0}, SHORT),
        ("so the answer must be 7 .", {"answer": "absent"}, ANSWER),
        ("so the answer must be 71 or 7.5 x7", {"answer": "absent"}, KEPT),
        ("so the answer must be 7.", {"answer": "present"}, KEPT),
        ("so the answer must be eight", {"answer": "present"}, NO_ANSWER),
        ("мы видим что это так и есть", {}, SCRIPT),
        ("мы видим что это так и есть", {"same_script": False}, KEPT),
        ("1 + 1 = 2 ; 2 + 5 = 7", {}, KEPT),
    ],
)
def test_a_screen_says_why(text: str, more: dict[str, Any], why: int) -> None:
    assert screen(text, Generation(**more), "What is 3 + 4?", "7", truncated=False) == why
    assert screen(text, Generation(**more), "What is 3 + 4?", "7", truncated=True) == CUT


@pytest.mark.parametrize(
    ("text", "answer", "stated"),
    [
        ("It is\n  New York.", "new york", True),
        ("(a+b)*", "(a+b)", True),
        ("3.14", "3", False),
        ("-3 and 3/4 and 3,000", "3", False),
        ("it is 1,000", "1000", True),
        ("13", "3", False),
        ("3.", "3", True),
        ("yes", "Yes", True),
    ],
)
def test_an_answer_stands_by_itself(text: str, answer: str, stated: bool) -> None:
    assert states(text, answer) == stated


def test_the_first_text_that_passes_is_shown(settings: dict[str, Any]) -> None:
    tokenizer = provided(opened(settings, "none")).tokenizer
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("answer 1", "answer 2", "answer 3")]
    arrays = {
        "tokens": np.concatenate(texts),
        "offsets": np.cumsum([0, *map(len, texts)]),
        "place": np.array([0, 0, 2]),
        "verdict": np.array([SHORT, KEPT, KEPT]),
    }
    assert shown(arrays, tokenizer) == {0: "answer 2", 2: "answer 3"}
    assert told({Source("t", "c"): [arrays, arrays]}) == [
        "t / c: 4 of 6 generated texts are kept (2 too short)",
    ]
    arrays["verdict"] = np.array([SHORT, CUT, KEPT])
    assert told({Source("t", "c"): [arrays]})[0].endswith("; 1 of 2 prompts have none, and are as otherwise says")


def test_a_text_for_the_question_is_shown_to_the_teacher_of_every_rollout(settings: dict[str, Any]) -> None:
    session = opened(settings, "none", RATIONALE)
    question, models = session.keys.questions[0], provided(session)
    source = Source("self", "rationale")
    run_stage(session, "rollouts", [question])
    asked = models.prompts.writer(source, question, None)
    decoded = run_stage(session, "texts", [question]).decoded_tokens
    texts = stored(session, "texts", question, "rationale")
    assert decoded == len(texts["tokens"]) and len(texts["verdict"]) == 3 and set(texts["place"].tolist()) == {0}
    rollouts = session.store.need("rollouts", session.keys.key("rollouts", question)).arrays
    assert models.prompts.writer(source, question, rollouts) == asked
    prompt, by_rollout = models.teacher_prompts(source, question, rollouts, texts)
    assert by_rollout == ()
    written = shown(texts, models.tokenizer)
    told_by = models.tokenizer.decode(prompt)
    if written:
        assert written[0] in told_by and "solution" in told_by
    else:
        assert prompt == models.prompt(question)
    none = {**texts, "verdict": np.full(3, CUT, dtype=np.int8)}
    assert models.teacher_prompts(source, question, rollouts, none)[0] == models.prompt(question)
    run_stage(session, "ranking", [question])
    plain, taught = (stored(session, "ranking", question, context)["d_sq"] for context in ("none", "rationale"))
    assert np.array_equal(plain, np.zeros(len(plain))) and bool((taught > 0).any()) == bool(written)


def test_a_critique_is_of_the_very_rollout_that_is_scored(settings: dict[str, Any]) -> None:
    session = opened(settings, CRITIQUE)
    question, models, source = session.keys.questions[0], provided(session), Source("self", "critique")
    run_stage(session, "rollouts", [question])
    rollouts = session.store.need("rollouts", session.keys.key("rollouts", question)).arrays
    n = len(rollouts["correct"])
    asked = models.prompts.writer(source, question, rollouts)
    attempts = [models.tokenizer.decode(prompt) for prompt in asked]
    assert len(asked) == n
    run_stage(session, "texts", [question])
    texts = stored(session, "texts", question, "critique")
    assert texts["place"].tolist() == [r for r in range(n) for _ in range(2)]
    marked = {**texts, "verdict": np.array([KEPT, CUT] * n, dtype=np.int8)}
    written = shown(marked, models.tokenizer)
    assert sorted(written) == list(range(n))
    _, by_rollout = models.teacher_prompts(source, question, rollouts, marked)
    for r, prompt in enumerate(by_rollout):
        said = models.tokenizer.decode(prompt)
        attempt = models.tokenizer.decode(
            rollouts["tokens"][slice(*rollouts["offsets"][r : r + 2])], skip_special_tokens=True
        ).strip()
        assert attempt in said and attempt in attempts[r] and said.index(attempt) < len(said)
        assert written[r] in said[said.index(attempt) + len(attempt) :]


def test_texts_are_drawn_by_what_they_are(settings: dict[str, Any], tmp_path: Path) -> None:
    """Any order, and resumed or not: the same bytes."""
    found = []
    for n, order in enumerate((1, -1)):
        session = opened({**settings, "store": str(tmp_path / str(n))}, RATIONALE, CRITIQUE)
        ids = session.keys.questions[:3][::order]
        run_stage(session, "rollouts", ids)
        assert not run_stage(session, "texts", ids).failed
        assert run_stage(session, "texts", ids).made == 0
        found.append({(q, c): stored(session, "texts", q, c) for q in ids for c in ("rationale", "critique")})
    for place, arrays in found[0].items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, found[1][place][name])


def test_another_model_writes_where_the_teacher_is_one(settings: dict[str, Any], models: Path) -> None:
    by = [
        {**RATIONALE, "name": who, "generate": {**RATIONALE["generate"], "by": who}} for who in ("teacher", "student")
    ]
    session = opened(settings, *by, model=models / "teacher")
    question, loaded = session.keys.questions[0], provided(session)
    run_stage(session, "rollouts", [question])
    run_stage(session, "texts", [question])
    large, small = (loaded.writer_model(Source("self", who)) for who in ("teacher", "student"))
    assert large.path != small.path == session.config.model.path
    one, other = (stored(session, "texts", question, who) for who in ("teacher", "student"))
    assert one["tokens"].tolist() != other["tokens"].tolist()
    assert loaded.decoded > 0


def keys(session: RunSession, stage: str = "ranking") -> list[str]:
    return list(session.keys.of_stage(stage, session.keys.questions[0]).values())


def test_what_is_written_is_in_the_keys_of_what_reads_it_and_of_nothing_else(settings: dict[str, Any]) -> None:
    base = opened(settings, "none", RATIONALE)
    longer = {**RATIONALE, "generate": {**WRITING, "max_tokens": 13}}
    other = opened(settings, "none", longer)
    n = len(base.config.losses)
    assert keys(base)[:n] == keys(other)[:n] and not set(keys(base)[n:]) & set(keys(other)[n:])
    assert keys(base, "texts") != keys(other, "texts") and len(keys(base, "texts")) == 1
    renamed = opened(settings, "none", {**RATIONALE, "name": "why"})
    assert keys(renamed) == keys(base) and keys(renamed, "texts") == keys(base, "texts")
    assert base.keys.key("trees", base.keys.questions[0]) == other.keys.key("trees", other.keys.questions[0])
    needed = base.keys.references(["texts"])
    assert needed and all(stage == "texts" for stage, _ in needed)


def test_it_is_planned_and_shown(settings: dict[str, Any]) -> None:
    session = opened(settings, "none", RATIONALE, CRITIQUE)
    planned = {c.stage: c for c in cost(session)}
    questions, rollouts = len(session.keys.questions), session.config.sampling.rollouts
    assert planned["texts"].missing == 2 * questions
    drawn = questions * (3 + 2 * rollouts)
    assert drawn <= planned["texts"].completions < drawn + 2 * questions and planned["texts"].tokens > 0
    assert "texts" not in {c.stage for c in cost(opened(settings, "none"))}
    question, models = session.keys.questions[0], provided(session)
    before = prompts(session.config, models, question, None, {})
    assert list(before) == [
        "student",
        "self / none",
        "self / rationale / writer",
        "self / rationale",
        "self / critique / writer",
        "self / critique",
    ]
    run_stage(session, "rollouts", [question])
    assert texts_of(session, question, make=False) == {}
    assert set(texts_of(session, question, make=True)) == {Source("self", "rationale"), Source("self", "critique")}


@pytest.mark.parametrize(
    ("context", "why"),
    [
        (
            {"kind": "custom", "name": "c", "template": "{{ prompt }} {{ written }}", "generate": {}},
            "generate.template: missing",
        ),
        ({"kind": "answer", "generate": {"template": "{{ prompt }}"}}, "does not show the generated text"),
        ({"kind": "rationale", "template": "{{ prompt }}"}, r"write \{\{ rationale \}\}"),
        ({"kind": "rationale", "generate": {"template": "think"}}, "names nothing of the question"),
        ({"kind": "rationale", "generate": {"template": "{{ prompt.x }}"}}, "text"),
        ({"kind": "critique", "generate": {"template": "{{ right_attempt }}"}}, "names right_attempt"),
        ({"kind": "critique", "otherwise": "{{ prompt }} {{ critique }}"}, "otherwise.*there is none of then"),
        ({"kind": "rationale", "generate": {"tries": 0}}, "tries"),
        ({"kind": "rationale", "generate": None}, "always generated; leave it out"),
        ({"kind": "rationale", "generate": False}, "generate"),
        ({"kind": "rationale", "generate": {"shortest": 600}}, "more than its max_tokens, 512; lower it"),
        (
            {"kind": "summary", "generate": {"template": "Shorten: {{ summary }}"}},
            "the text that is to be",
        ),
        ({"kind": "none", "generate": {"template": "{{ prompt }}"}}, "does not show the generated text"),
    ],
)
def test_bad_generations_are_refused(settings: dict[str, Any], context: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        checked({**settings, "teachers": [{"name": "self", "contexts": [context]}]})


def test_every_default_is_whole() -> None:
    for kind in ("rationale", "critique"):
        context = Context.model_validate({"kind": kind})
        assert context.generate is not None and context.written == kind and context.written in context.names.texts
        assert context.needed_columns == (["solution"] if kind == "rationale" else [])
        assert (
            context.written_for_rollouts == (kind == "critique")
            and Context.model_validate(context.model_dump()) == context
        )
    summary = Context.model_validate({"kind": "summary", "generate": {"by": "student"}})
    assert summary.needed_columns == ["solution"] and Context(kind="summary").needed_columns == ["summary"]
    assert len(SCREEN) == 7


def test_what_was_dropped_is_told_in_outputs_and_report(settings: dict[str, Any]) -> None:
    few = {**settings, "losses": ["reverse_kl"], "questions": {**settings["questions"], "limit": 2}}
    strict = {**RATIONALE, "generate": {**WRITING, "shortest": 4, "max_tokens": 24}}
    session = opened(few, "none", strict)
    ids = session.keys.questions
    for stage in diagnosis_stages():
        assert not run_stage(session, stage, ids).failed
    outputs = make_outputs(session, ids, {})
    (line,) = outputs.generated_texts
    assert line.startswith("self / rationale: ") and "of 6 generated texts are kept" in line
    assert line.split(" (")[0] in dict(outputs.files)["report.html"].decode()


def test_a_text_that_is_not_there_leaves_a_blank_whatever_the_columns(settings: dict[str, Any], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(settings["questions"]["path"]).read_text().splitlines()]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({**row, "summary": "SECRET"}) + "\n" for row in rows))
    context = Context.model_validate(
        {"kind": "summary", "template": "{{ prompt }} {{ summary }}", "system": "Ideas: {{ summary }}", "generate": {}}
    )
    question = Question("q", "7", {"question": "start 3", "answer": "7", "summary": "SECRET", "solution": "s"})
    assert prompt_text(Prompt(), context, question).system == "Ideas: "
    assert prompt_text(Prompt(), context, question, {"summary": "a text"}).system == "Ideas: a text"


def test_contexts_that_show_the_same_text_have_it_written_once(settings: dict[str, Any]) -> None:
    session = opened(settings, *({**RATIONALE, "name": name} for name in ("one", "two", "three")))
    question = session.keys.questions[0]
    run_stage(session, "rollouts", [question])
    summary = run_stage(session, "texts", [question])
    assert summary.made == 1 and len(set(session.keys.of_stage("texts", question).values())) == 1
    assert summary.decoded_tokens == len(stored(session, "texts", question, "one")["tokens"])


def test_texts_do_not_end_where_completions_do(settings: dict[str, Any]) -> None:
    session = opened({**settings, "sampling": {**settings["sampling"], "stop": ["3"]}}, RATIONALE)
    question = session.keys.questions[0]
    run_stage(session, "rollouts", [question])
    run_stage(session, "texts", [question])
    texts = stored(session, "texts", question, "rationale")
    end = provided(session).tokenizer.eos_token_id
    for first, last, verdict in zip(texts["offsets"], texts["offsets"][1:], texts["verdict"], strict=False):
        if verdict != CUT:
            assert texts["tokens"][last - 1] == end, texts["tokens"][first:last]


def test_a_text_that_would_not_fit_names_its_own_limit(settings: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=r"context rationale, generate.max_tokens: 250, with which sampling.max_tokens"
    ):
        opened(settings, {**RATIONALE, "generate": {**WRITING, "max_tokens": 250}})


def test_what_two_writers_have_written_adds_up(settings: dict[str, Any], models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "student", tmp_path / "third"))
    random_model(folder, 9, len(load_tokenizer(Model(path=str(folder)))))
    by = [{"name": name, "model": {"path": str(path)}, "contexts": [RATIONALE]} for name, path in (
        ("one", models / "teacher"), ("two", folder))]  # fmt: skip
    session = start_session(checked({**settings, "teachers": by}))
    ids = session.keys.questions[:2]
    run_stage(session, "rollouts", ids)
    summary = run_stage(session, "texts", ids)
    keys = {key for question in ids for key in session.keys.of_stage("texts", question).values()}
    assert summary.made == len(keys) == 4
    assert summary.decoded_tokens == sum(len(session.store.need("texts", key)["tokens"]) for key in keys)
