"""vLLM, the real one, in this process and as a server on loopback, against transformers on the same model folder.

sh infra/test-vllm
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml
from scipy.stats import chi2_contingency
from transformers import PreTrainedTokenizerFast

from schemas.config import Model, TransformersEngine, VLLMEngine, VLLMServerEngine
from schemas.tables import RUN_TABLES
from tasks.engines.protocol import Continuation, Draw, EngineError, Sampler, Trunk
from tasks.engines.transformers.loading import load_transformers, stop_tokens
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.engines.transformers.scorer import SELF_TEST_LIMIT, TransformersScorer
from tasks.engines.vllm.bounds import NoAnswerError
from tasks.engines.vllm.connection import Connection
from tasks.engines.vllm.offline import VLLMSampler
from tasks.engines.vllm.served import look_up
from tasks.engines.vllm.server import ServerSampler
from tasks.statistics.streams import stream_seed
from tests.helpers.places import ROOT
from tests.helpers.small import random_model
from tests.helpers.threads import together

pytestmark = pytest.mark.vllm

STOP = frozenset([1])
PROMPT = tuple(range(5, 17))
TRUNKS = [Trunk(PROMPT, tuple(range(20, 30))), Trunk(PROMPT, (21, 22, 23))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model whose head has more rows than the tokenizer has tokens."""
    place = tmp_path_factory.mktemp("vllm") / "student"
    random_model(place, 0, len(tokenizer) + 4, hidden=32, head_dim=32, scale=4.0)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def scorer(folder: Path, tokenizer: PreTrainedTokenizerFast) -> TransformersScorer:
    return load_transformers(Model(path=str(folder)), TransformersEngine(device="cpu"), len(tokenizer))


@pytest.fixture(scope="module")
def transformers(scorer: TransformersScorer) -> TransformersSampler:
    return TransformersSampler(scorer, STOP, TransformersEngine(device="cpu"))


@pytest.fixture(scope="module")
def vllm(folder: Path, scorer: TransformersScorer) -> Iterator[VLLMSampler]:
    settings = VLLMEngine(device="cpu", cache=1.0)
    sampler = VLLMSampler(Model(path=str(folder)), STOP, settings, lambda: scorer)
    yield sampler
    sampler.release()


def branches(count: int, draws: int, limit: int = 24) -> list[Draw]:
    """Forced tokens at several depths of both trunks."""
    out = []
    for b in range(count):
        trunk, depth, token = b % 2, b % 4 if b % 2 == 0 else b % 3, 2 + b % 24
        out += [Draw(trunk, depth, token, limit, stream_seed(0, trunk, depth, token, d)) for d in range(draws)]
    return out


SPECIAL = [Draw(0, 2, 1, 9, 1), Draw(0, 3, 25, 0, 2), Draw(1, 3, None, 30, 3), Draw(0, 0, None, 5, 4)]


def same(a: list[Continuation], b: list[Continuation]) -> bool:
    return [(x.tokens.tolist(), x.truncated) for x in a] == [(y.tokens.tolist(), y.truncated) for y in b]


def stops_alike(ends: list[Continuation], draws: list[Draw], vocabulary: int) -> None:
    for end, draw in zip(ends, draws, strict=True):
        tokens = end.tokens.tolist()
        assert not STOP & set(tokens[:-1]) and all(t < vocabulary for t in tokens)
        if draw.token in STOP:
            assert not tokens and not end.truncated
        elif end.truncated:
            assert len(tokens) == max(0, draw.limit) and not STOP & set(tokens)
        else:
            assert 0 < len(tokens) <= draw.limit and tokens[-1] in STOP


def test_stop_tokens_are_those_of_model_and_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    assert stop_tokens(Model(path=str(folder)), tokenizer) == STOP


def test_draws_depend_on_their_own_seed_alone(vllm: VLLMSampler) -> None:
    draws = branches(6, 20) + SPECIAL
    whole = vllm.continue_prefixes(TRUNKS, draws, 1.0)
    stops_alike(whole, draws, vllm._vocabulary)
    assert any(end.truncated for end in whole) and any(not end.truncated for end in whole)
    order = np.random.default_rng(0).permutation(len(draws))
    shuffled = vllm.continue_prefixes(TRUNKS, [draws[i] for i in order], 1.0)
    assert same(shuffled, [whole[i] for i in order])
    assert same(vllm.continue_prefixes(TRUNKS, draws[7:8], 1.0), whole[7:8])


def test_calls_of_several_threads_are_scheduled_together(vllm: VLLMSampler) -> None:
    """Each has the draws that it has alone; one that is refused fails alone."""
    calls = [branches(4, 8), branches(3, 5, limit=9), SPECIAL]
    alone = [vllm.continue_prefixes(TRUNKS, draws, 1.0) for draws in calls]
    long = [Trunk(tuple([5] * 100_000))]
    works = [partial(vllm.continue_prefixes, TRUNKS, draws, 1.0) for draws in calls]
    *beside, refused = together([*works, partial(vllm.continue_prefixes, long, [Draw(0, 0, None, 4, 1)], 1.0)])
    assert all(same(a, b) for a, b in zip(alone, beside, strict=True))
    assert isinstance(refused, EngineError) and "vLLM refuses a draw" in str(refused)


def agree(a: Sampler, b: Sampler, vocabulary: int, *, count: int, draws: int) -> float:
    """p of the hypothesis that success is as likely on both engines, over all branches; success: a small last token."""
    asked = branches(count, draws)
    statistic = freedom = 0.0
    both = [s.continue_prefixes(TRUNKS, asked, 0.9) for s in (a, b)]
    for ends in both:
        stops_alike(ends, asked, vocabulary)
    for i in range(count):
        part = slice(i * draws, (i + 1) * draws)
        success = [sum(not e.truncated and int(e.tokens[:-1].sum()) % 2 == 0 for e in ends[part]) for ends in both]
        if 0 < sum(success) < 2 * draws:
            found = chi2_contingency([[s, draws - s] for s in success], correction=False)
            statistic, freedom = statistic + found.statistic, freedom + 1
    assert freedom >= 0.8 * count
    from scipy.stats import chi2

    return float(chi2.sf(statistic, freedom))


def test_success_is_as_likely_on_transformers_as_on_vllm(vllm: VLLMSampler, transformers: TransformersSampler) -> None:
    assert agree(transformers, vllm, vllm._vocabulary, count=30, draws=1000) > 1e-3


def test_another_model_than_the_student_is_refused(
    vllm: VLLMSampler, folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    vllm.release()  # one engine a process; it starts again with the next draws
    random_model(tmp_path / "other", 5, len(tokenizer) + 4, hidden=32, head_dim=32, scale=4.0)
    tokenizer.save_pretrained(tmp_path / "other")
    other = load_transformers(Model(path=str(tmp_path / "other")), TransformersEngine(device="cpu"), len(tokenizer))
    sampler = VLLMSampler(Model(path=str(folder)), STOP, VLLMEngine(device="cpu", cache=1.0), lambda: other)
    with pytest.raises(EngineError, match="log-probabilities by vLLM differ"):
        sampler.continue_prefixes(TRUNKS, branches(1, 1), 1.0)
    sampler.release()


class Server:
    """A vLLM server on loopback that can be killed and started again on its port."""

    def __init__(self, folder: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url, self._folder, self._log = f"http://127.0.0.1:{self.port}", folder, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._folder)]
        command += ["--served-model-name", "student", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64", "--generation-config", "vllm"]
        command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192", "--max-model-len", "256"]
        environment = {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_HOST_IP": "127.0.0.1",
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        for _ in range(360):
            try:
                if httpx.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            if self._process is None or self._process.poll() is not None:
                break
            time.sleep(0.5)
        raise RuntimeError(f"vLLM's server did not start: {self._log.read_text()[-3000:]}")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    served = Server(folder, tmp_path_factory.mktemp("server") / "log")
    served.start()
    try:
        served.wait()
        yield served
    finally:
        served.kill()


@pytest.fixture
def on_server(server: Server, scorer: TransformersScorer) -> Callable[..., ServerSampler]:
    def make(**settings: Any) -> ServerSampler:
        asked = VLLMServerEngine(urls=[server.url], device="cpu", **settings)
        return ServerSampler(STOP, asked, look_up(asked), lambda: scorer)

    return make


def test_a_server_samples_as_its_engine_does(
    on_server: Callable[..., ServerSampler], transformers: TransformersSampler, scorer: TransformersScorer
) -> None:
    sampler, draws = on_server(concurrency=32), branches(4, 10) + SPECIAL
    ends = sampler.continue_prefixes(TRUNKS, draws, 1.0)
    stops_alike(ends, draws, scorer.vocabulary)
    assert same(on_server(concurrency=3).continue_prefixes(TRUNKS, draws[::-1], 1.0), ends[::-1])
    assert agree(transformers, sampler, scorer.vocabulary, count=10, draws=60) > 1e-3


def test_a_server_that_is_killed_and_restarted_loses_nothing(
    on_server: Callable[..., ServerSampler], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, draws = on_server(concurrency=16), branches(10, 60, limit=200)
    expected = sampler.continue_prefixes(TRUNKS, draws, 1.0)

    def disturb() -> None:
        time.sleep(0.7)
        server.kill()
        time.sleep(1)
        server.start()

    answered: list[int] = []
    probed: list[int] = []
    lost: list[NoAnswerError] = []
    ask = Connection.ask

    def counted(connection: Connection, path: str, body: dict[str, Any], **bounds: Any) -> Any:
        try:
            answer = ask(connection, path, body, **bounds)
        except NoAnswerError as error:
            lost.append(error)
            raise
        (probed if "prompt_logprobs" in body else answered).append(1)
        return answer

    monkeypatch.setattr(Connection, "ask", counted)
    thread = threading.Thread(target=disturb)
    thread.start()
    got = sampler.continue_prefixes(TRUNKS, draws, 1.0)
    thread.join()
    server.wait()
    assert same(got, expected)
    assert lost and len(answered) == len(draws)  # each was answered once; what was under way was asked again
    assert probed  # a server that was away shows again what it serves


def test_a_server_that_comes_back_with_another_model_is_refused(
    on_server: Callable[..., ServerSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = on_server(concurrency=4)
    ask, asked = Connection.ask, 0

    def away_once(*args: Any, **bounds: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise NoAnswerError("connection refused")
        return ask(*args, **bounds)

    monkeypatch.setattr(Connection, "ask", away_once)
    monkeypatch.setattr(sampler, "_probe_scores", sampler._probe_scores + 1.0)
    with pytest.raises(EngineError, match=r"log-probabilities by http://127\.0\.0\.1"):
        sampler.continue_prefixes(TRUNKS, branches(4, 4), 1.0)


def test_a_server_that_stays_away_is_a_clear_error(on_server: Callable[..., ServerSampler], server: Server) -> None:
    sampler = on_server(patience=1.0)
    server.kill()
    try:
        with pytest.raises(EngineError, match="no server has answered for"):
            sampler.continue_prefixes(TRUNKS, branches(2, 4), 1.0)
    finally:
        server.start()
        server.wait()


def test_a_server_of_another_model_is_refused(
    server: Server, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    random_model(tmp_path / "other", 5, len(tokenizer) + 4, hidden=32, head_dim=32, scale=4.0)
    other = load_transformers(Model(path=str(tmp_path / "other")), TransformersEngine(device="cpu"), len(tokenizer))
    asked = VLLMServerEngine(urls=[server.url], device="cpu")
    with pytest.raises(EngineError, match=f"log-probabilities by {server.url} differ"):
        ServerSampler(STOP, asked, look_up(asked), lambda: other)
    with pytest.raises(EngineError, match=r"serves other models than engine.model 'teacher': \['student'\]"):
        look_up(VLLMServerEngine(urls=[server.url], model="teacher"))


@pytest.fixture
def run(
    settings: dict[str, Any], folder: Path, tmp_path: Path, prefect_environment: dict[str, str]
) -> Callable[..., subprocess.Popen[str]]:
    """Starts `opdscope run` of the small run, student as above, on an engine, into a store of its own."""
    settings["student"]["path"] = str(folder)
    settings["execution"] = {"questions_per_task": 2, "round_draws": 32, "round_seconds": 0.0}
    settings["tree"]["draws"] = 24

    def start(name: str, engine: dict[str, Any]) -> subprocess.Popen[str]:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**settings, "engine": engine, "store": str(tmp_path / name)}))
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", str(path)],
            env=prefect_environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finished(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def outputs(store: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (store / "runs" / "small").glob("*.parquet")}


def test_a_whole_run_on_vllm(run: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    engine = {"kind": "vllm", "device": "cpu", "cache": 1.0}
    out = finished(run("offline", engine))
    assert ", 0 from the store" in out and len(outputs(tmp_path / "offline")) == len(RUN_TABLES)
    again = finished(run("offline", {**engine, "max_num_seqs": 7}))
    assert "0 artefacts made" in again and ", 0 tokens decoded" in again


def test_a_whole_run_on_two_servers_one_of_them_killed(
    run: Callable[..., "subprocess.Popen[str]"], server: Server, folder: Path, tmp_path: Path
) -> None:
    second = Server(folder, tmp_path / "second.log")
    second.start()
    try:
        second.wait()
        engine = {"kind": "vllm-server", "device": "cpu", "concurrency": 16}
        finished(run("one", {**engine, "urls": [server.url]}))
        both = run("two", {**engine, "urls": [server.url, second.url]})
        for _ in range(1200):
            if any((tmp_path / "two" / "rounds").glob("*/*")):
                break
            time.sleep(0.05)
        second.kill()
        assert both.poll() is None
        time.sleep(1.0)
        second.start()
        finished(both)
        second.wait()
    finally:
        second.kill()
    assert outputs(tmp_path / "two") == outputs(tmp_path / "one")
    assert (tmp_path / "second.log").read_text().count("POST /v1/completions") > 1  # the first is a probe


def test_bfloat16_agrees_within_its_limit(vllm: VLLMSampler, folder: Path, tokenizer: Any) -> None:
    vllm.release()
    model = Model(path=str(folder), dtype="bfloat16")
    scorer = load_transformers(model, TransformersEngine(device="cpu"), len(tokenizer))
    sampler = VLLMSampler(model, STOP, VLLMEngine(device="cpu", cache=1.0), lambda: scorer)
    draws = branches(4, 16)
    stops_alike(sampler.continue_prefixes(TRUNKS, draws, 1.0), draws, sampler._vocabulary)
    error = log_probability_error(sampler, scorer)
    sampler.release()
    assert 0 < error < SELF_TEST_LIMIT[torch.bfloat16]


@torch.inference_mode()
def log_probability_error(vllm: VLLMSampler, scorer: TransformersScorer) -> float:
    ids = [*PROMPT, *range(2, 26)]
    theirs = vllm._prompt_log_probs(ids)
    logits = scorer.model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    own = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return float((own - theirs).abs().max())


def test_log_probabilities_are_those_of_transformers(vllm: VLLMSampler, scorer: TransformersScorer) -> None:
    vllm.continue_prefixes(TRUNKS, branches(1, 1), 1.0)
    assert log_probability_error(vllm, scorer) < 1e-4
