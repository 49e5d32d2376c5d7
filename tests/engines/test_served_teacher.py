"""A teacher on a server: what it tells is what it would be here, and what it does not tell is said."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.command.configuration import ConfigurationError, checked
from schemas.config import Model, TransformersEngine
from schemas.pipeline import diagnosis_stages
from schemas.signals import Source
from tasks.engines.protocol import EngineAwayError, EngineError
from tasks.engines.transformers.loading import load_transformers
from tasks.inputs.errors import InputError
from tasks.inputs.prompts import load_tokenizer
from tasks.outputs.diagnosis import make_outputs
from tasks.run.session import RunSession, start_session
from tasks.run.shells import run_stage
from tests.helpers.fake_vllm import FakeServer, completion
from tests.helpers.sessions import provided


class Serving:
    """A small model as vLLM serves it."""

    def __init__(self, folder: Path) -> None:
        model = Model(path=str(folder))
        self.tokenizer = load_tokenizer(model)
        self._scorer = load_transformers(model, TransformersEngine(), len(self.tokenizer), lambda: None)
        self.broken: dict[str, Any] = {}
        self.asked = 0

    def __call__(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/version":
            return {"version": "0.32.0"}
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "teacher", "object": "model", "max_model_len": 200}]}
        if "raw" in self.broken:
            return self.broken["raw"]
        self.asked += 1
        prompt = body["prompt"]
        log_probs = self._scorer.log_probs(self._scorer.hidden(prompt[:1], [prompt[1:]])[0])
        steps: list[Any] = [None]
        for token, row in zip(prompt[1:], log_probs, strict=True):
            top = row.topk(min(body["prompt_logprobs"], len(row))).indices.tolist()
            steps.append(
                {
                    str(t): {"logprob": float(row[t]), "rank": 1, "decoded_token": self.tokenizer.decode([t])}
                    for t in dict.fromkeys([token, *top])
                }
            )
        return completion(token_ids=[5], prompt_logprobs=self.broken.get("steps", steps))


@pytest.fixture
def serving(models: Path) -> Serving:
    return Serving(models / "teacher")


@pytest.fixture
def server(serving: Serving) -> Iterator[FakeServer]:
    with FakeServer(serving) as found:
        yield found


ANSWER = {"kind": "answer", "template": "{{ prompt }} answer {{ answer }}"}


def opened(settings: dict[str, Any], server: FakeServer, **more: Any) -> RunSession:
    teacher = {"name": "far", "server": {"url": f"{server.url}/v1/", **more}, "contexts": ["none", ANSWER]}
    return start_session(checked({**settings, "teachers": [teacher]}))


def stored(session: RunSession, stage: str, question: str) -> dict[str, dict[str, Any]]:
    keys = session.keys.of_stage(stage, question)
    return {f"{s.context} {s.loss}": session.store.need(stage, key).arrays for s, key in keys.items() if s is not None}


def test_a_server_that_tells_all_tokens_is_the_teacher_itself(
    settings: dict[str, Any], server: FakeServer, models: Path
) -> None:
    here = {"name": "near", "model": {"path": str(models / "teacher")}, "contexts": ["none", ANSWER]}
    sessions = [start_session(checked({**settings, "teachers": [here]})), opened(settings, server, top=1000)]
    question = sessions[0].keys.questions[0]
    for session in sessions:
        for stage in ("rollouts", "trees", "distillation", "ranking"):
            assert not run_stage(session, stage, [question]).failed
    for stage in ("distillation", "ranking"):
        near, far = (stored(session, stage, question) for session in sessions)
        assert near.keys() == far.keys()
        for name, arrays in near.items():
            for array, values in arrays.items():
                np.testing.assert_allclose(far[name][array], values, rtol=2e-4, atol=1e-6, err_msg=f"{name} {array}")


def test_a_server_that_tells_few_is_a_teacher_of_these_and_the_rest(
    settings: dict[str, Any], server: FakeServer, serving: Serving
) -> None:
    session = opened(settings, server, top=3)
    ids = session.keys.questions
    for stage in (*diagnosis_stages(), "ranking"):
        assert not run_stage(session, stage, ids).failed
    files = dict(make_outputs(session, ids, {}).files)
    assert {"tokens.parquet", "report.html"} <= set(files)
    arrays = stored(session, "distillation", ids[0])["none reverse_kl"]
    rollouts = session.store.need("rollouts", session.keys.key("rollouts", ids[0])).arrays
    prompt = provided(session).prompt(ids[0])
    tokens = rollouts["tokens"][: rollouts["offsets"][1]].tolist()
    row = serving._scorer.log_probs(serving._scorer.hidden(prompt, [tokens])[0]).exp()
    for t, token in enumerate(tokens):
        told = {token, *row[t].topk(3).indices.tolist()}
        assert arrays["teacher_kept"][t] == pytest.approx(float(row[t][list(told)].sum()), rel=1e-4)
        assert arrays["teacher_token_prob"][t] == pytest.approx(float(row[t][token]), rel=1e-4)
    assert np.isfinite(arrays["kl"]).all() and (arrays["student_kept"] < 1).any()


def test_what_is_served_and_how_much_is_told_is_in_the_keys(settings: dict[str, Any], server: FakeServer) -> None:
    keys = [
        set(opened(settings, server, **more).keys.of_stage("ranking", "chain-001").values())
        for more in ({}, {"top": 5}, {"concurrency": 2, "timeout": 9.0, "model": "teacher"})
    ]
    assert not keys[0] & keys[1] and keys[0] == keys[2]


@pytest.mark.parametrize(
    ("teacher", "why"),
    [
        ({"url": "ftp://x"}, "not a server address"),
        ({"url": "http://u:p@x"}, "contains a password"),
        ({"top": 0}, "top"),
    ],
)
def test_bad_addresses_are_refused(settings: dict[str, Any], teacher: dict[str, Any], why: str) -> None:
    fields = {"name": "far", "server": {"url": "http://127.0.0.1:1", **teacher}}
    with pytest.raises(ConfigurationError, match=why):
        checked({**settings, "teachers": [fields]})


@pytest.mark.parametrize(
    ("teacher", "more", "why"),
    [
        ({"model": {"path": "m"}}, {}, "given beside model"),
        ({"chat_template": "own"}, {}, "a server's model has none here"),
        ({"contexts": [{"kind": "rationale"}]}, {}, "which is on a server; set it to student"),
        ({}, {"losses": ["verl_topk"]}, "teacher 'far' is on a server"),
    ],
)
def test_what_a_server_cannot_do_is_refused(
    settings: dict[str, Any], teacher: dict[str, Any], more: dict[str, Any], why: str
) -> None:
    fields = {"name": "far", "server": {"url": "http://127.0.0.1:1"}, **teacher}
    with pytest.raises(ConfigurationError, match=why):
        checked({**settings, "teachers": [fields], **more})


def test_a_server_that_is_not_there_or_serves_something_else_is_refused_first(
    settings: dict[str, Any], server: FakeServer, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.run.models.LoadedModels._scorer", lambda *given: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=r"teachers\[0\].server: .*does not answer as a vLLM server"):
        start_session(checked({**settings, "teachers": [{"name": "far", "server": {"url": "http://127.0.0.1:9"}}]}))
    with pytest.raises(InputError, match="serves other models"):
        opened(settings, server, model="another")
    with pytest.raises(InputError, match=r"sampling.max_tokens: .*longer than 199"):
        opened({**settings, "sampling": {**settings["sampling"], "max_tokens": 190}}, server)
    monkeypatch.setattr(serving.tokenizer, "decode", lambda ids: f"x{ids}")
    with pytest.raises(InputError, match=r"reads token \d+ as 'x.*must share the student's tokenizer"):
        opened(settings, server)


@pytest.mark.parametrize(
    ("broken", "error", "why"),
    [
        ({"steps": None}, EngineError, "no prompt_logprobs"),
        ({"steps": [None, {}]}, EngineError, "no prompt_logprobs"),
        ({"raw": b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"}, EngineAwayError, "503"),
        ({"raw": b"HTTP/1.1 400 Bad\r\ncontent-length: 3\r\n\r\nno!"}, EngineError, "refuses"),
        ({"raw": {"choices": []}}, EngineError, "one completion"),
    ],
)
def test_wrong_answers_are_errors_of_the_engine(
    settings: dict[str, Any], server: FakeServer, serving: Serving, broken: dict[str, Any], error: Any, why: str
) -> None:
    session = opened(settings, server)
    teacher = provided(session).served(Source("far", "none"))
    serving.broken = broken
    with pytest.raises(error, match=why):
        teacher.log_probs([[5, 6]], [[7, 8, 9]])
    serving.broken = {}
    (row,) = teacher.log_probs([[5, 6]], [[7, 8, 9]])
    assert row.shape == (3, 2, 21) and bool((row[:, 1].exp().sum(-1) <= 1 + 1e-6).all())
    assert torch.isfinite(row[:, 0]).all() and os.environ.get("VLLM_API_KEY") is None
