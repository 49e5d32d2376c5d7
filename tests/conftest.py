"""Small real models and questions, made once a session, and a Prefect server for whole runs."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub's client
# threads of processes beside each other only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tasks.demo.chains import draw_questions
from tasks.demo.train import make_tokenizer
from tests.prefect_server import Server

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# workers of pytest-xdist ignore the first, nohup the second, and so would the commands that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def random_model(
    folder: Path,
    seed: int,
    vocabulary: int,
    *,
    hidden: int = 16,
    layers: int = 2,
    head_dim: int = 8,
    scale: float = 8.0,
) -> None:
    """A Qwen3 model with random weights, its outputs sharpened, saved as an ordinary folder."""
    torch.manual_seed(seed)
    model: Any = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=head_dim,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
            initializer_range=0.2,
        )
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(scale / hidden**0.5)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Folder with `student`, `teacher`, and `other`, whose tokenizer has two tokens swapped.

    Their heads have more rows than the tokenizer has tokens, and not the same number, as published models do.
    """
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "teacher", "other")):
        random_model(root / name, seed, len(tokenizer) + 4 * (seed + 1))
        tokenizer.save_pretrained(root / name)
    saved = json.loads((root / "other" / "tokenizer.json").read_text())
    vocabulary = saved["model"]["vocab"]
    vocabulary["add"], vocabulary["times"] = vocabulary["times"], vocabulary["add"]
    (root / "other" / "tokenizer.json").write_text(json.dumps(saved))
    return root


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in draw_questions(6, 0)))
    return path


@pytest.fixture
def settings(models: Path, questions: Path, tmp_path: Path) -> dict[str, Any]:
    """A small run's configuration as plain data; the random student is right now and then."""
    return {
        "name": "small",
        "store": str(tmp_path / "store"),
        "questions": {"path": str(questions)},
        "student": {"path": str(models / "student")},
        "verifier": {"kind": "numeric"},
        "sampling": {"rollouts": 4, "max_tokens": 24},
        "tree": {"kind": "forced", "nodes": 6, "head": 3, "tail": 2, "draws": 12},
        "teachers": [
            {"name": "large", "model": {"path": str(models / "teacher")}},
            {"name": "self", "contexts": ["none", {"kind": "answer", "template": "{prompt} answer {answer}"}]},
        ],
        "losses": ["reverse_kl", "forward_kl"],
        "scores": {"bootstrap": 200, "posterior": 100},
        "execution": {"questions_per_task": 3},
    }


@pytest.fixture
def config_file(settings: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prefect server of the session on loopback."""
    server = Server(tmp_path_factory.mktemp("prefect"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def prefect_environment(prefect_server: Server) -> dict[str, str]:
    """Environment of child processes that use it."""
    return prefect_server.client_environment
