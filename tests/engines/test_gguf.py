"""A GGUF file as a model: read by transformers, known by its content, refused with a reason where it cannot be used."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from flows.command.configuration import ConfigurationError, checked
from schemas.config import Model, TransformersEngine
from tasks.engines.identity import ModelLibrary
from tasks.engines.memory import weights
from tasks.engines.positions import model_limit
from tasks.engines.protocol import Draw, EngineError, Trunk
from tasks.engines.transformers.loading import load_transformers, stop_tokens, vocabulary_size
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.inputs.errors import InputError
from tasks.inputs.prompts import load_tokenizer
from tasks.run.preflight import check_models
from tasks.run.session import start_session
from tasks.run.shells import run_stage
from tasks.store.keys import model_fingerprint
from tests.helpers.gguf_file import write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


def test_weights_tokens_and_limits_are_those_of_the_file(file: Path) -> None:
    model = Model(path=str(file))
    tokenizer = load_tokenizer(model)
    scorer = load_transformers(model, TransformersEngine(device="cpu"), vocabulary_size(tokenizer))
    stored = {t.name: t.data for t in GGUFReader(str(file)).tensors}
    embedded = scorer.model.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(embedded, stored["token_embd.weight"])
    assert tokenizer("ab!")["input_ids"] == [94, 0] and tokenizer.decode([94, 0]) == "ab!"
    limit = model_limit(model)
    assert limit is not None and limit.tokens == 128
    assert weights(model) == 4 * sum(t.size for t in stored.values())
    assert stop_tokens(model, tokenizer) == {97}
    assert torch.isfinite(scorer.log_probs(scorer.hidden([1], [[2, 3]])[0])).all()


def test_its_content_is_its_name(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other.GGUF"
    shutil.copy(file, copy)
    changed = write_gguf(tmp_path / "changed.gguf", seed=1)
    same, other, different = (model_fingerprint(Model(path=str(p))) for p in (file, copy, changed))
    assert same == other != different


def with_student(settings: dict[str, Any], path: Path, **more: Any) -> dict[str, Any]:
    teachers = [{"name": "self", "contexts": ["none", "answer"]}]
    return {**settings, "student": {"path": str(path)}, "teachers": teachers, "prompt": {"chat": False}, **more}


def test_a_run_of_a_gguf_file(settings: dict[str, Any], file: Path) -> None:
    settings["questions"]["limit"] = 2
    session = start_session(checked(with_student(settings, file)))
    made = run_stage(session, "rollouts", session.keys.questions)
    assert made.made == 2 and made.decoded_tokens > 0
    assert session.config.student is not None and session.config.student.is_gguf


def refused(settings: dict[str, Any], path: Path) -> str:
    with pytest.raises(InputError, match=r"^student.path: ") as error:
        start_session(checked(with_student(settings, path)))
    return str(error.value)


def test_what_cannot_be_used_is_refused_with_its_field(
    settings: dict[str, Any], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "torn.gguf").write_bytes(file.read_bytes()[:1000])
    shorter = tmp_path / "shorter.gguf"
    shorter.write_bytes(file.read_bytes()[:-100])
    for path, problem in {
        tmp_path / "gone.gguf": "gone.gguf' is not there; give a GGUF file on this machine",
        tmp_path / "folder.gguf": "folder.gguf' is a folder; give the GGUF file in it",
        tmp_path / "torn.gguf": "torn.gguf' is not a whole GGUF file",
        shorter: "shorter.gguf' is not a whole GGUF file",
        write_gguf(tmp_path / "bare.gguf", tokenizer=False): "it has no tokenizer (tokenizer.ggml.tokens is missing)",
        write_gguf(tmp_path / "part.gguf", parts=2): "is one of 2 parts of a model; join them",
        write_gguf(tmp_path / "new.gguf", architecture="unheard"): "architecture unheard is not supported",
    }.items():
        assert problem in refused(settings, path)
    (tmp_path / "beside").mkdir()
    shutil.copy(file, tmp_path / "beside/model.gguf")
    (tmp_path / "beside/tokenizer.json").write_text("{}")
    assert "is beside another model's tokenizer.json" in refused(settings, tmp_path / "beside/model.gguf")
    with pytest.raises(ConfigurationError, match=r"student.revision: 'main' cannot be had of a GGUF file"):
        checked({**settings, "student": {"path": str(file), "revision": "main"}})
    monkeypatch.setattr("tasks.engines.gguf_file.find_spec", lambda name: None)
    assert "needs gguf: pip install" in refused(settings, file)


def test_vllm_in_this_process_does_not_sample_from_one(settings: dict[str, Any], file: Path) -> None:
    with pytest.raises(InputError, match=r"engine.kind: 'vllm' does not sample from a GGUF file"):
        check_models(checked(with_student(settings, file, engine={"kind": "vllm"})), ModelLibrary())


def test_a_file_without_some_of_its_weights_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "part.gguf", without={"blk.1.ffn_up.weight"})
    with pytest.raises(EngineError, match=r"is incomplete: its files lack 1 of its weights, such as '.*up_proj"):
        load_transformers(Model(path=str(path)), TransformersEngine(device="cpu"), 98)


def test_a_file_whose_weights_disagree_with_its_header_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "odd.gguf", inner=24)
    with pytest.raises(EngineError, match=r"odd.gguf' cannot be (loaded|run): "):
        load_transformers(Model(path=str(path)), TransformersEngine(device="cpu"), 98)


def test_a_token_that_the_model_has_no_embedding_for_is_refused(file: Path) -> None:
    scorer = load_transformers(Model(path=str(file)), TransformersEngine(device="cpu"), 98)
    with pytest.raises(ValueError, match=r"token id 98 is in a prompt, but LlamaForCausalLM has ids up to 97"):
        scorer.hidden([1], [[98]])
    sampler = TransformersSampler(scorer, frozenset({97}), TransformersEngine(device="cpu"))
    with pytest.raises(ValueError, match="token id 98"):
        sampler.continue_prefixes([Trunk((1, 98))], [Draw(0, 0, None, 4, 1)], 1.0)
