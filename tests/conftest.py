"""Small real models and questions, made once a session, and a Prefect server for whole runs."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub's client
# threads of processes beside each other only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from flows.cli import app
from tasks.demo.train import make_tokenizer
from tests.helpers.command import Command
from tests.helpers.finished import finished_run
from tests.helpers.prefect_server import Server
from tests.helpers.small import make_models, make_questions, small_settings

# of probes: those of the user are neither read nor added to
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="opdscope-cache-")

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# workers of pytest-xdist ignore the first, nohup the second, and so would the commands that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    return make_models(tmp_path_factory.mktemp("models"), tokenizer)


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_questions(tmp_path_factory.mktemp("questions") / "questions.jsonl")


@pytest.fixture(scope="session")
def finished(models: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a small run that is done; tests do not write to it."""
    settings = small_settings(models, questions, tmp_path_factory.mktemp("finished") / "store")
    return finished_run(settings | {"losses": ["reverse_kl", "minillm"]})


@pytest.fixture
def settings(models: Path, questions: Path, tmp_path: Path) -> dict[str, Any]:
    return small_settings(models, questions, tmp_path / "store")


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


@pytest.fixture
def prefect_here(prefect_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Flows of this process use it too."""
    for name, value in prefect_server.client_environment.items():
        monkeypatch.setenv(name, value)
    with temporary_settings({PREFECT_API_URL: prefect_server.url}):
        yield


@pytest.fixture
def cli(prefect_here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """A command in this process, which has imported all that it needs, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    return run
