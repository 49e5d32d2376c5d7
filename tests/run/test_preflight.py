"""What is refused before a run begins, by field and value, and what keys say of models and prompts."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.command.configuration import checked, merged
from schemas.config import RunConfig
from schemas.signals import Source, model_sources
from tasks.engines import memory
from tasks.engines.choice import EngineChoice, choose
from tasks.engines.identity import ModelLibrary
from tasks.engines.protocol import EngineError
from tasks.inputs.errors import InputError
from tasks.inputs.questions import load_questions
from tasks.run.models import LoadedModels
from tasks.run.preflight import ModelIdentities, check_models
from tasks.run.reads import StoredReads
from tasks.run.session import start_session
from tasks.store.store import StoreError
from tests.helpers.sessions import provided


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


def changed(name: str, content: str | None, **fields: Any) -> Callable[[Path], None]:
    """Replace a file of a model folder, remove it, or change fields of its JSON."""

    def change(folder: Path) -> None:
        path = folder / name
        if fields:
            path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        elif content is None:
            path.unlink()
        else:
            path.write_text(content)

    return change


def torn(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


class Code:
    """What a pickle of a stranger would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("it-ran"),)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Code()))


MALFORMED: dict[str, tuple[Callable[[Path], None], str]] = {
    "list": (changed("config.json", "[]"), "cannot be loaded: "),
    "null": (changed("config.json", "null"), "cannot be loaded: "),
    "field": (changed("config.json", "", hidden_size="big"), "cannot be loaded: "),
    "dtype": (changed("config.json", "", dtype="notadtype", torch_dtype="notadtype"), ""),
    "heads": (changed("config.json", "", num_attention_heads=0), ""),
    "tokenizer": (changed("tokenizer.json", "[]"), "has no tokenizer that can be loaded: "),
    "tokenizer's": (changed("tokenizer_config.json", "[]"), "has no tokenizer that can be loaded: "),
    "generation": (changed("generation_config.json", "[]"), "has generation settings that cannot be read: "),
    "end": (changed("generation_config.json", '{"eos_token_id": "x"}'), "has an eos_token_id of 'x'; it must be"),
    "torn": (torn, "cannot be loaded: model.safetensors is damaged "),
    "junk": (changed("model.safetensors", "junk"), "cannot be loaded: model.safetensors is damaged "),
    "none": (changed("model.safetensors", None), "has no weights (*.safetensors)"),
    "pickle": (pickled, "cannot be loaded: its weights are a pickle that would run code, which is refused"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_model_is_one_line_that_names_its_field(
    name: str, models: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the session is opened, or when the model is loaded; none of its code is run."""
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(models / "student", tmp_path / "model"))
    change, problem = MALFORMED[name]
    change(folder)
    with pytest.raises((InputError, EngineError)) as error:
        provided(start_session(checked(merged(settings, {"student": {"path": str(folder)}})))).sampler  # noqa: B018
    message = str(error.value)
    assert message.startswith("student.path: ") and problem in message and message.isprintable() and len(message) < 500
    assert not (tmp_path / "it-ran").exists()


def test_a_folder_without_a_tokenizer(models: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "student", tmp_path / "model"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    told = refused(settings, {"student": {"path": str(folder)}})
    assert told == f"student.path: {str(folder)!r} has no tokenizer (tokenizer.json)"


def test_a_broken_link(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "link' is a broken link; give a model" in refused(settings, {"student": {"path": str(tmp_path / "link")}})


def test_a_chat_template_that_fails(models: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "student", tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    told = refused(settings, {"student": {"path": str(folder)}, "prompt": {"chat": True}})
    assert told == "prompt: it does not work with the model's chat template: division by zero"


def test_a_stop_that_no_token_contains(settings: dict[str, Any]) -> None:
    told = refused(settings, {"sampling": {"stop": ["answer", "two words"]}})
    assert told == "sampling.stop: no token contains 'two words'; give a shorter text"


def test_a_template_that_shows_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": "a", "question": "", "answer": "5"}\n')
    change = {"questions": {"path": str(path)}, "prompt": {"chat": False}}
    assert refused(settings, change) == "prompt.template: '{{ question }}' gives an empty prompt"


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
    library, engine = ModelLibrary(), EngineChoice(choose(config)[0])
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
    assert parts(settings, question, prompt={"template": "{{ question }} ."}) == {"prompt"}
    assert parts(settings, question, verifier={"kind": "exact"}) == {"verifier"}
    assert parts(settings, question, student={"path": str(models / "teacher")}) == {"student"}
    assert parts(settings, question, seed=5, scores={"level": 0.9}) == set()


def test_a_teacher_is_its_model_its_context_and_its_prompt(settings: dict[str, Any], question: str) -> None:
    found = identities(checked(settings))
    of = {source: found.of_teacher(source, question) for source in model_sources(checked(settings))}
    large, plain, shown = (of[Source(*s)] for s in (("large", "none"), ("self", "none"), ("self", "answer")))
    assert plain["teacher"] == shown["teacher"] == found.of_question(question)["student"] != large["teacher"]
    assert plain["prompt"] == large["prompt"] == found.of_question(question)["prompt"] != shown["prompt"]
    assert plain["context"] == {"template": "{{ prompt }}"} != shown["context"]
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
            "reward": np.zeros(1),
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
