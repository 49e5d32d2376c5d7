"""What is refused before a run begins, by field and value, and what keys say of models and prompts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.command.configuration import checked, merged
from schemas.config import RunConfig
from schemas.signals import Source, model_sources
from tasks.engines import memory
from tasks.engines.choice import EngineChoice
from tasks.engines.identity import ModelLibrary
from tasks.inputs.questions import InputError, load_questions
from tasks.run.models import LoadedModels
from tasks.run.preflight import ModelIdentities, check_models
from tasks.run.reads import StoredReads
from tasks.run.session import start_session
from tasks.store.store import StoreError


def refused(settings: dict[str, Any], change: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        start_session(checked(merged(settings, change)))
    return str(error.value)


def teacher(path: str) -> dict[str, Any]:
    return {"teachers": [{"name": "self"}, {"name": "large", "model": {"path": path}}]}


@pytest.mark.parametrize("path", ["./gone", "/nowhere/model", "a/b/c"])
def test_a_model_that_is_not_there_is_named_by_its_field(path: str, settings: dict[str, Any]) -> None:
    assert refused(settings, {"student": {"path": path}}) == (
        f"student.path: {path!r} is not there; give a model folder or a hub name"
    )
    assert refused(settings, teacher(path)).startswith(f"teachers[1].model.path: {path!r} is not there")


def test_a_device_that_is_not_here(settings: dict[str, Any]) -> None:
    assert refused(settings, {"engine": {"device": "gpu"}}).startswith("engine.device: 'gpu' is not a device")


def test_a_teacher_of_another_tokenizer(models: Path, settings: dict[str, Any]) -> None:
    told = refused(settings, teacher(str(models / "other")))
    assert told.startswith("teachers[1].model.path: ") and "has a different tokenizer from the student" in told


def test_a_model_that_memory_cannot_hold(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda _: 100)
    assert "GiB of weights" in refused(settings, {}) and refused(settings, {}).startswith("student.path: ")


def test_a_folder_that_is_no_model(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(settings, {"student": {"path": str(tmp_path / "empty")}})


def test_a_template_that_shows_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": "a", "question": "", "answer": "5"}\n')
    change = {"questions": {"path": str(path)}, "prompt": {"chat": False}}
    assert refused(settings, change) == "prompt.template: '{question}' gives an empty prompt"


def test_completions_that_do_not_fit_name_question_and_teacher(
    models: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    short = Path(shutil.copytree(models / "teacher", tmp_path / "short"))
    configuration = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**configuration, "max_position_embeddings": 20}))
    told = refused(settings, teacher(str(short)))
    assert told.startswith("sampling.max_tokens: 24 tokens after a prompt of ")
    assert "teacher 'large' with context 'none'" in told and "the 20 that" in told
    told = refused(settings, {"sampling": {"max_tokens": 256}})
    assert "student" in told and "(question " in told and "the 256 that" in told


def test_a_store_that_cannot_be_written(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert refused(settings, {"store": str(tmp_path / "file")}).startswith("store: ")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    told = refused(settings, {"store": str(tmp_path / "mine")})
    assert "is not a store and contains other files (thesis.tex)" in told and "give a writable folder or URL" in told


def identities(config: RunConfig) -> ModelIdentities:
    library, engine = ModelLibrary(), EngineChoice(config.engine)
    asked = {q.id: q for q in load_questions(config)}
    check_models(config, library)
    return ModelIdentities(config, library, engine, LoadedModels(config, library, engine, asked), asked)


@pytest.fixture
def question(settings: dict[str, Any]) -> str:
    return load_questions(checked(settings))[0].id


def parts(settings: dict[str, Any], question: str, **change: Any) -> set[str]:
    """What a change of the settings changes of a question's fingerprints."""
    one, other = (identities(checked(merged(settings, c))).of_question(question) for c in ({}, change))
    assert one.keys() == other.keys() == {"question", "prompt", "verifier", "student", "engine"}
    return {name for name in one if one[name] != other[name]}


def test_each_fingerprint_of_a_question_is_of_one_thing(models: Path, settings: dict[str, Any], question: str) -> None:
    assert parts(settings, question) == set()
    assert parts(settings, question, prompt={"template": "{question} ."}) == {"prompt"}
    assert parts(settings, question, verifier={"kind": "exact"}) == {"verifier"}
    assert parts(settings, question, student={"path": str(models / "teacher")}) == {"student"}
    assert parts(settings, question, seed=5, scores={"level": 0.9}) == set()


def test_a_teacher_is_its_model_its_context_and_its_prompt(settings: dict[str, Any], question: str) -> None:
    found = identities(checked(settings))
    of = {source: found.of_teacher(source, question) for source in model_sources(checked(settings))}
    large, plain, shown = (of[Source(*s)] for s in (("large", "none"), ("self", "none"), ("self", "answer")))
    assert plain["teacher"] == shown["teacher"] == found.of_question(question)["student"] != large["teacher"]
    assert plain["prompt"] == large["prompt"] == found.of_question(question)["prompt"] != shown["prompt"]
    assert plain["context"] == {"template": "{prompt}"} != shown["context"]
    renamed = {**settings, "teachers": [{**t, "name": f"{t['name']}!"} for t in settings["teachers"]]}
    assert identities(checked(renamed)).of_teacher(Source("large!", "none"), question) == large


def test_artefacts_that_are_not_there_are_said(settings: dict[str, Any], question: str) -> None:
    session = start_session(checked(settings))
    reads = StoredReads(session.store, session.keys)
    with pytest.raises(StoreError, match=r"rollouts/[0-9a-f]{64} is missing; run again to make it"):
        reads.artefact("rollouts", question)
    with pytest.raises(StoreError, match="trees/"):
        next(reads.every("trees"))
    assert reads.seed("x", "trees", question) == reads.seed("x", "trees", question)
    others = {reads.seed(p, s, question) for p in ("x", "y") for s in ("trees", "rollouts")}
    assert len(others) == 4 and all(0 <= seed < 2**64 for seed in others)


def test_artefacts_of_all_questions_come_in_the_order_of_their_keys(settings: dict[str, Any]) -> None:
    """The prior's key holds them sorted: what is made of them may not depend on another order."""
    session = start_session(checked(settings))

    def rollouts(n: int) -> dict[str, Any]:
        return {
            "prompt": np.array([n], dtype=np.int32),
            "tokens": np.empty(0, dtype=np.int32),
            "offsets": np.zeros(2, dtype=np.int64),
            "correct": np.zeros(1, dtype=bool),
            "truncated": np.zeros(1, dtype=bool),
        }

    ids = session.keys.questions
    for n, question in enumerate(ids):
        session.store.commit("rollouts", session.keys.key("rollouts", question), rollouts(n), {})
    reads = StoredReads(session.store, session.keys)
    by_key = sorted(range(len(ids)), key=lambda n: session.keys.key("rollouts", ids[n]))
    assert [int(found["prompt"][0]) for found in reads.every("rollouts")] == by_key
    session.keys.leave_out(ids[:2])
    assert len(list(reads.every("rollouts"))) == len(ids) - 2
    assert int(reads.artefact("rollouts", ids[3])["prompt"][0]) == 3
