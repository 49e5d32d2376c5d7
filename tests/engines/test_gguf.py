"""A GGUF file as a model: read by transformers, known by its content, refused with a reason where it cannot be used."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from flows.command.configuration import checked
from schemas.config import Model, TransformersEngine
from tasks.engines.memory import weights
from tasks.engines.positions import model_limit
from tasks.engines.transformers.scorer import load_transformers, stop_tokens, vocabulary_size
from tasks.inputs.prompts import load_tokenizer
from tasks.inputs.questions import InputError
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
    assert torch.isfinite(scorer.log_probs(scorer.hidden([[1, 2, 3]], [1])[0])).all()


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


def test_what_cannot_be_used_is_refused_with_its_field(
    settings: dict[str, Any], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"student.path: '.*gone.gguf' is not there; give a GGUF file"):
        start_session(checked(with_student(settings, tmp_path / "gone.gguf")))
    (tmp_path / "torn.gguf").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"student.path: '.*torn.gguf' is not a readable GGUF file"):
        start_session(checked(with_student(settings, tmp_path / "torn.gguf")))
    monkeypatch.setattr("tasks.run.preflight.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs gguf: pip install 'opdscope\[gguf\]'"):
        start_session(checked(with_student(settings, file)))
