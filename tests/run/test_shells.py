"""A stage over many questions at once: failures stay with their question, and a stage that was ended goes on later."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.command.configuration import checked
from flows.diagnose import Progressed, _without_signal
from schemas.pipeline import PIPELINE, diagnosis_stages
from schemas.signals import sources
from tasks.engines.protocol import EngineError
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.run import shells
from tasks.run.session import RunSession, start_session
from tasks.run.shells import run_stage
from tasks.store.store import Store
from tests.helpers.sessions import provided


def session(settings: dict[str, Any], name: str, in_flight: int = 6) -> RunSession:
    execution = {"round_draws": 24, "round_seconds": 0.0, "questions_in_flight": in_flight}
    return start_session(checked({**settings, "store": f"{settings['store']}-{name}", "execution": execution}))


def artefacts(run: RunSession, *stages: str) -> dict[str, Any]:
    found: dict[str, bytes] = {}
    for stage in stages:
        for question in run.keys.questions:
            arrays = run.store.need(stage, run.keys.key(stage, question)).arrays
            found |= {f"{stage}/{question}/{name}": np.asarray(arrays[name]).tobytes() for name in arrays}
    return found


def test_any_number_in_flight_gives_the_same_bytes_and_counts(settings: dict[str, Any]) -> None:
    alone, beside = session(settings, "alone", 1), session(settings, "beside")
    counts = []
    for run in (alone, beside):
        made = [run_stage(run, stage, run.keys.questions) for stage in ("rollouts", "trees")]
        counts.append([(m.made, m.cached, m.decoded_tokens) for m in made])
        for stage in ("rollouts", "trees"):
            metas = [run.store.need(stage, run.keys.key(stage, i)).meta["decoded_tokens"] for i in run.keys.questions]
            assert sum(metas) == made[stage == "trees"].decoded_tokens and min(metas) > 0
    assert counts[0] == counts[1]
    assert artefacts(alone, "rollouts", "trees") == artefacts(beside, "rollouts", "trees")
    assert alone.store.names("claims") == beside.store.names("claims") == []


def test_a_stage_tells_what_models_did(settings: dict[str, Any]) -> None:
    run = session(settings, "told")
    ids = run.keys.questions
    done = {
        stage: run_stage(run, stage, ids).figures for stage in diagnosis_stages() if run.keys.of_stage(stage, ids[0])
    }
    for stage, figures in done.items():
        with_model = PIPELINE[stage].with_model
        assert (figures["model_seconds"] > 0) == with_model, stage
        assert figures["waiting_seconds"] == (figures["seconds"] - figures["model_seconds"] if with_model else 0), stage
        assert (figures["decoded_tokens"] > 0) == (stage in ("rollouts", "trees")), stage
    models, needed = provided(run), 0
    for q in ids:
        lengths = np.diff(run.store.need("rollouts", run.keys.key("rollouts", q)).arrays["offsets"])
        views = {(models.teacher(source), tuple(models.prompts.teacher(source, q))) for source in sources(run.config)}
        views.add((models.student, tuple(models.prompt(q))))
        needed += sum(len(prompt) + int((lengths - 1).sum()) for _, prompt in views)
    assert done["distillation"]["scored_tokens"] == needed
    again = run_stage(run, "distillation", ids)
    assert again.made == again.scored_tokens == 0


def test_a_question_that_fails_leaves_the_others(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = session(settings, "failing")
    lost, *kept = run.keys.questions
    rollouts = type(run.provider).rollouts

    def broken(self: Any, question: str) -> Any:
        if question == lost:
            raise ValueError("no such luck")
        return rollouts(self, question)

    monkeypatch.setattr(type(run.provider), "rollouts", broken)
    summary = run_stage(run, "rollouts", run.keys.questions)
    assert summary.failed == {lost: "ValueError: no such luck"} and summary.made == len(kept)


def test_a_stage_that_an_error_ended_goes_on_in_the_same_session(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a task does that is tried again after a full disk: the threads have ended, and nothing stays stopped."""
    run = session(settings, "full")
    put, writes = Store.put_bytes, 0

    def full(self: Store, data: bytes, *parts: str) -> None:
        nonlocal writes
        writes += 1
        if writes == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, data, *parts)

    monkeypatch.setattr(Store, "put_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        run_stage(run, "rollouts", run.keys.questions)
    assert run.store.names("claims") == []
    again = run_stage(run, "rollouts", run.keys.questions)
    assert again.made + again.cached == len(run.keys.questions)
    monkeypatch.undo()
    whole = session(settings, "whole")
    run_stage(whole, "rollouts", whole.keys.questions)
    assert artefacts(run, "rollouts") == artefacts(whole, "rollouts")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EngineError("gone")])
def test_what_ends_the_run_ends_all_threads_at_once(
    error: BaseException, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = session(settings, "ended")
    sample, calls = TransformersSampler.continue_prefixes, 0

    def ending(self: TransformersSampler, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise error
        return sample(self, *args)

    monkeypatch.setattr(TransformersSampler, "continue_prefixes", ending)
    with pytest.raises(type(error)):
        run_stage(run, "rollouts", run.keys.questions)
    assert run.store.names("claims") == []


@pytest.mark.parametrize(("seconds", "threads"), [(None, 6), (60.0, 1)])
def test_a_budget_of_seconds_is_a_questions_own(
    seconds: float | None, threads: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def count(work: object, parts: object, n: int) -> list[Any]:
        asked.append(n)
        return []

    monkeypatch.setattr(shells, "beside_each_other", count)
    tree = {"kind": "adaptive", "node_draws": 24, "round": 24, "draws": 48, "seconds": seconds}
    run = session({**settings, "tree": tree}, "timed", in_flight=32)
    monkeypatch.setattr(shells, "_refused", lambda *_: {})
    run_stage(run, "trees", run.keys.questions)
    assert asked == [threads]


def test_questions_whose_rollouts_are_all_alike_get_no_tree_where_the_settings_say_so(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = session(settings, "alike")
    ids = run.keys.questions
    summary = run_stage(run, "rollouts", ids)
    alike = {i for i in ids if run.store.need("rollouts", run.keys.key("rollouts", i)).arrays["offsets"][1] % 2}
    assert alike and alike != set(ids)
    monkeypatch.setattr("flows.diagnose.uninformative", lambda rollouts: "odd" if rollouts["offsets"][1] % 2 else None)
    done = Progressed(ids, stages={"rollouts": summary})
    assert _without_signal(run, done) == {}
    asked = {**settings["questions"], "without_signal": "leave_out"}
    other = session({**settings, "questions": asked}, "alike")
    assert other.keys.key("rollouts", ids[0]) == run.keys.key("rollouts", ids[0])
    assert set(_without_signal(other, done)) == alike
