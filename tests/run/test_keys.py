"""Keys of a run: what each follows from, what leaving a question out changes, and what rounds are kept under."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.command.configuration import checked
from schemas.config import RunConfig
from schemas.pipeline import PIPELINE, Scope, Stage, diagnosis_stages
from schemas.signals import Signal, Source, signals
from tasks.run.keys import RunKeys

POOLED = {"prior", "alignment"}
"""What is made of all questions together, and what reads it."""
QUESTIONS = ["a", "b", "سؤال"]


def configuration(**change: Any) -> RunConfig:
    return checked(
        {
            "questions": {"path": "q.jsonl"},
            "student": {"path": "s"},
            "teachers": [{"name": "t"}, {"name": "u", "contexts": ["none", "answer"]}],
            "losses": ["reverse_kl", {"kind": "jsd", "beta": 0.3}],
            "tree": {"kind": "adaptive", "draws": 512},
            **change,
        }
    )


CONFIG = configuration()
SIGNALS = signals(CONFIG)


class Named:
    """Identities of nothing but names; some of them can be given another content."""

    def __init__(self, config: RunConfig, other: str = "") -> None:
        self.config, self.other = config, other

    def settings(self, stage: Stage) -> dict[str, object]:
        return stage.settings(self.config)

    def of_question(self, question: str) -> dict[str, str]:
        return {"question": f"{question}{'!' if question == self.other else ''}"}

    def of_teacher(self, source: Source, question: str) -> dict[str, object]:
        return {"teacher": f"{source.teacher}{'!' if source.teacher == self.other else ''}", "context": source.context}

    def of_writer(self, source: Source, question: str) -> dict[str, object]:
        return {"writer": list(source), "question": question}


def keys(config: RunConfig = CONFIG, questions: list[str] | None = None, other: str = "") -> RunKeys:
    return RunKeys(config, Named(config, other), QUESTIONS if questions is None else questions)


def all_keys(found: RunKeys, questions: list[str] = QUESTIONS) -> dict[tuple[str, str, Signal | None], str]:
    return {(s, q, signal): key for s in PIPELINE for q in questions for signal, key in found.of_stage(s, q).items()}


def differing(one: dict[Any, str], other: dict[Any, str]) -> set[Any]:
    return {place for place in one if one[place] != other[place]}


def test_a_question_that_is_left_out_changes_what_is_pooled_and_nothing_else() -> None:
    found = keys()
    before = all_keys(found)
    rounds = [found.rounds("trees", q) for q in QUESTIONS]
    found.leave_out(["a"])
    assert found.questions == QUESTIONS[1:]
    assert differing(before, all_keys(found)) == {place for place in before if place[0] in POOLED}
    assert rounds == [found.rounds("trees", q) for q in QUESTIONS]
    found.leave_out(["a"])  # again
    assert all_keys(found) == all_keys(keys(questions=QUESTIONS[1:]))
    found.leave_out([])
    assert all_keys(found) == before and found.questions == QUESTIONS


@given(st.lists(st.sets(st.sampled_from(QUESTIONS)), max_size=4))
@settings(deadline=None, max_examples=25)
def test_keys_follow_from_what_is_left_out_now_and_not_from_what_was_before(steps: list[set[str]]) -> None:
    found = keys()
    for step in steps:
        found.leave_out(step)
        left = [q for q in QUESTIONS if q not in step]
        fresh = keys(questions=left)
        assert found.questions == left
        for q in left:
            assert all(found.of_stage(s, q) == fresh.of_stage(s, q) for s in PIPELINE)


def test_questions_that_are_not_there_can_be_left_out() -> None:
    found = keys()
    before = all_keys(found)
    found.leave_out(["nobody"])
    assert all_keys(found) == before


def test_one_artefact_of_all_questions_has_one_key_and_each_signal_its_own() -> None:
    found = keys()
    for name, stage in PIPELINE.items():
        of = [found.of_stage(name, q) for q in QUESTIONS]
        sources = [source.every_loss for source in stage.sources(configuration())]
        of_scope: list[Any] = {Scope.SIGNAL: stage.signals(configuration()), Scope.SOURCE: sources}.get(
            stage.scope, [None]
        )
        assert [*of[0]] == of_scope
        every = [key for one in of for key in one.values()]
        assert len(set(every)) == (1 if stage.scope is Scope.RUN else len(every))
        if stage.scope not in (Scope.SIGNAL, Scope.SOURCE):  # the signal does not matter
            assert found.key(name, "a", SIGNALS[1]) == found.key(name, "a")


def test_the_order_of_questions_is_in_no_key() -> None:
    assert all_keys(keys()) == all_keys(keys(questions=QUESTIONS[::-1]))


def test_another_question_changes_its_own_and_what_is_pooled() -> None:
    assert differing(all_keys(keys()), all_keys(keys(other="a"))) == {
        place for place in all_keys(keys()) if place[1] == "a" or place[0] in POOLED
    }


def test_another_teacher_changes_its_own_signals() -> None:
    changed = differing(all_keys(keys()), all_keys(keys(other="t")))
    assert changed == {place for place in all_keys(keys()) if place[2] is not None and place[2].teacher == "t"}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        (
            {"seed": 1},
            {
                "rollouts",
                "answers",
                "handover",
                "trees",
                "ideal",
                "prior",
                "distillation",
                "alignment",
                "values",
                "ranking",
            },
        ),
        ({"tree": {"kind": "adaptive", "draws": 1024}}, {"trees", "ideal", "prior", "distillation", "alignment"}),
        ({"scores": {"level": 0.9}}, {"alignment"}),
        ({"ranking": {"segments": 2}}, {"values"}),
        ({"success": {"rollouts": 2}}, {"answers", "handover"}),
        ({"success": {"parts": [0.5]}}, {"handover"}),
        ({"name": "other", "store": "elsewhere", "engine": {"kind": "transformers", "rows": 3}}, set()),
    ],
)
def test_a_setting_changes_the_stages_that_follow_from_it(change: dict[str, Any], stages: set[str]) -> None:
    changed = differing(all_keys(keys()), all_keys(keys(configuration(**change))))
    assert {place[0] for place in changed} == stages


def test_rounds_follow_from_what_a_round_is_and_not_from_the_budget() -> None:
    small, large = keys(), keys(configuration(tree={"kind": "adaptive", "draws": 4096, "half_width": 0.1}))
    assert small.rounds("trees", "a") == large.rounds("trees", "a") != small.rounds("trees", "b")
    assert small.key("trees", "a") != large.key("trees", "a")
    assert small.rounds("trees", "a") != small.key("trees", "a")
    for change in ({"seed": 1}, {"tree": {"kind": "adaptive", "draws": 512, "round": 128}}):
        assert keys(configuration(**change)).rounds("trees", "a") != small.rounds("trees", "a")
    assert small.rounds("rollouts", "a") == small.key("rollouts", "a")  # no settings of its rounds alone


def test_references_are_distinct_and_hold_rounds_where_something_is_drawn() -> None:
    found = keys()
    drawn = found.references(diagnosis_stages())
    assert len(set(drawn)) == len(drawn)
    plain = {pair for pair in drawn if pair[0] != "rounds"}
    of_rounds = {("rounds", found.rounds(stage, q)) for stage in ("rollouts", "trees") for q in QUESTIONS}
    assert set(drawn) - plain == of_rounds
    every = {(place[0], key) for place, key in all_keys(found).items() if place[0] in diagnosis_stages()}
    assert plain == every == {pair for q in QUESTIONS for pair in found.artefacts(q)}
    found.leave_out(QUESTIONS)
    assert found.references(diagnosis_stages()) == []


def test_tables_follow_from_artefacts_questions_and_the_names_in_them() -> None:
    found = keys()
    whole = found.aggregate(QUESTIONS)
    renamed = configuration(teachers=[{"name": "x"}, {"name": "u", "contexts": ["none", "answer"]}])
    others = [
        found.aggregate(QUESTIONS[:2]),
        found.aggregate(QUESTIONS[::-1]),  # rows stand in this order
        keys(other="a").aggregate(QUESTIONS),
        keys(renamed).aggregate(QUESTIONS),
        keys(configuration(scores={"bootstrap": 300})).aggregate(QUESTIONS),
    ]
    assert len({whole, *others}) == 6 and found.aggregate(QUESTIONS) == whole
    found.leave_out(["a"])
    assert found.aggregate(QUESTIONS[1:]) != keys().aggregate(QUESTIONS[1:])  # of another prior


def test_behind_every_key_stands_what_it_follows_from() -> None:
    found = keys()
    every = all_keys(found)
    for place, key in every.items():
        recipe = found.recipes[key]
        assert (recipe.stage, recipe.version, recipe.key) == (place[0], PIPELINE[place[0]].version, key)
        assert set(recipe.inputs) <= set(every.values())
        assert bool(recipe.fingerprints) == (not PIPELINE[place[0]].reads)
    assert found.recipes[found.rounds("trees", "a")].stage == "rounds"
    assert found.recipes[found.aggregate(QUESTIONS)].stage == "aggregate"


def test_two_stages_with_rounds_of_their_own_do_not_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(PIPELINE["trees"], name="more", round_settings=lambda config: {"more": 1})
    monkeypatch.setitem(PIPELINE, "more", other)
    found = keys()
    assert found.rounds("trees", "a") != found.rounds("more", "a")
