"""Probes: measured once for a machine and what its models are asked; and the estimates that are made of them."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flows.command.configuration import checked
from flows.plan import StageCost, cost, duration, expectation, memory, seconds
from schemas.pipeline import PIPELINE
from tasks.run import throughput as module
from tasks.run.session import start_session
from tasks.run.shells import run_stage
from tasks.run.throughput import Throughput, throughput
from tests.helpers.sessions import provided

SPEED = Throughput(
    load_seconds=2.0,
    completion=20.0,
    prompt=10.0,
    passes=0.75,
    passed_prompt=30.0,
    rows=(16, 256),
    step_seconds=(0.1, 1.3),
    context=40.0,
    context_slowdown=0.001,
    scored=500.0,
    cache_bytes=1000,
    most_rows=20,
    cache_tokens=10**6,
    memory=2**30,
    seconds=5.0,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "opdscope" / "throughput"


def test_a_probe_is_made_once(settings: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = throughput(start_session(checked(settings)))
    assert first is not None and first.memory > 0 and first.scored > 0 and min(first.step_seconds) > 0
    (kept,) = cache.iterdir()
    kept.write_text("{")  # damaged: made anew
    second = throughput(start_session(checked(settings)))
    assert second is not None and second != first
    monkeypatch.setattr(module._Probe, "measure", lambda self: pytest.fail("measured again"))
    again = start_session(
        checked({**settings, "tree": {"kind": "windows"}, "name": "other", "store": str(cache.parents[1] / "store")})
    )
    assert throughput(again) == second


@pytest.mark.parametrize("context", ["right_attempt", "feedback", "demonstrations"])
def test_contexts_of_rollouts_are_probed_too(context: str, settings: dict[str, Any], cache: Path) -> None:
    template = "{{ prompt }} {% for d in demonstrations %}{{ d.answer }}{% endfor %}"
    chosen = {"kind": context, "template": template} if context == "demonstrations" else {"kind": context}
    session = start_session(checked({**settings, "teachers": [{"name": "self", "contexts": ["none", chosen]}]}))
    measured = throughput(session)
    assert measured is not None and measured.passes == pytest.approx(2 / 3)  # the plain context is the student's pass
    run_stage(session, "rollouts", session.keys.questions)
    done = run_stage(session, "ranking", session.keys.questions)
    config = session.config
    planned = StageCost("ranking", 0, 6, 6, 0, 0, 6 * config.sampling.rollouts * 3)
    lengths = [session.store.need("rollouts", session.keys.key("rollouts", q)) for q in session.keys.questions]
    completion = sum(a.arrays["offsets"][-1] for a in lengths) / (6 * config.sampling.rollouts)
    known = measured.model_copy(update={"completion": None, "scored": 1.0})
    short = config.model_copy(
        update={"sampling": config.sampling.model_copy(update={"max_tokens": max(2, round(completion))})}
    )
    assert seconds(short, known, planned) == pytest.approx(done.scored_tokens, rel=0.5)


@pytest.mark.parametrize("kept", ["file", "folder"])
def test_a_probe_that_cannot_be_kept_is_told_all_the_same(
    kept: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "here"
    place.write_text("x") if kept == "file" else (place / "opdscope").mkdir(parents=True)
    if kept == "folder":
        (place / "opdscope" / "throughput").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    monkeypatch.setattr(module._Probe, "measure", lambda self: SPEED)
    assert throughput(start_session(checked(settings))) == SPEED


def test_a_relative_cache_folder_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "somewhere"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert module._folder() == tmp_path / ".cache" / "opdscope" / "throughput"


@pytest.mark.parametrize(
    "odd",
    [
        {"completion": 0},
        {"scored": 0},
        {"step_seconds": [0, 0]},
        {"rows": [0, 0]},
        {"load_seconds": -1},
        {"load_seconds": 1e300},
        {"completion": -3},
        {"more": 1},
    ],
)
def test_a_kept_probe_of_impossible_numbers_is_made_anew(
    odd: dict[str, Any], settings: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._Probe, "measure", lambda self: SPEED)
    throughput(start_session(checked(settings)))
    (kept,) = cache.iterdir()
    kept.write_text(json.dumps({**json.loads(kept.read_text()), **odd}))
    assert throughput(start_session(checked(settings))) == SPEED
    assert Throughput.model_validate_json(kept.read_bytes()) == SPEED


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": {"rollouts": 4, "max_tokens": 24, "temperature": 0.5}},
        {"losses": ["jsd"]},
        {"engine": {"kind": "transformers", "score_rows": 7}},
        {"execution": {"questions_in_flight": 2}},
    ],
)
def test_another_work_is_probed_anew(
    change: dict[str, Any], settings: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._Probe, "measure", lambda self: SPEED)
    throughput(start_session(checked(settings)))
    throughput(start_session(checked({**settings, **change})))
    assert len(list(cache.iterdir())) == 2


def test_models_that_would_have_to_be_downloaded_are_not_probed(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "weights", lambda model: None)
    assert throughput(start_session(checked(settings))) is None


def test_a_probe_counts_what_its_own_models_do(settings: dict[str, Any], cache: Path) -> None:
    session = start_session(checked(settings))
    models = provided(session)
    measured = throughput(session)
    ids = session.keys.questions
    assert measured is not None and measured.prompt == sum(len(models.prompt(q)) for q in ids) / len(ids)
    assert measured.rows == (16, 256) and measured.load_seconds < measured.seconds
    config = models.student.model.config
    assert measured.cache_bytes == 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4


def test_lengths_are_those_of_a_constant_chance_to_end() -> None:
    by_hand = sum(k * 0.95 ** (k - 1) * 0.05 for k in range(1, 30)) + 29 * 0.95**29
    assert SPEED.length(29) == pytest.approx(by_hand)
    assert SPEED.length(10_000) == pytest.approx(20.0)
    assert SPEED.model_copy(update={"completion": None}).length(48) == 48
    assert SPEED.model_copy(update={"completion": 1.0}).length(48) == 1


def test_speed_is_what_was_measured_and_grows_with_rows() -> None:
    assert SPEED.decoded_per_second(16, 40.0) == pytest.approx(160)
    assert SPEED.decoded_per_second(256, 40.0) == pytest.approx(256 / 1.3)
    rates = [SPEED.decoded_per_second(n, 40.0) for n in (1, 2, 16, 64, 256, 4096, 100_000)]
    assert all(a < b for a, b in pairwise(rates)) and rates[-1] < 200
    assert SPEED.decoded_per_second(16, 1040.0) == pytest.approx(160 * 1.04 / 2.04)
    flat = SPEED.model_copy(update={"step_seconds": (0.1, 0.05)})  # measured with noise
    assert flat.decoded_per_second(256, 40.0) > 0 and flat.decoded_per_second(1, 40.0) > 0


def test_estimates_follow_from_counts_and_speed(settings: dict[str, Any]) -> None:
    config = checked(settings)
    planned = StageCost("ranking", 0, 6, 6, 0, 0, 96)
    length, rollouts = SPEED.length(config.sampling.max_tokens), config.sampling.rollouts
    assert seconds(config, SPEED, planned) == pytest.approx(96 * 0.75 * (length + 30 / rollouts) / 500)
    assert seconds(config, SPEED, StageCost("ideal", 0, 6, 6, 0, 0, 0)) == 0
    drawn = StageCost("rollouts", 0, 6, 6, 24, 24 * config.sampling.max_tokens, 0)
    rate = SPEED.decoded_per_second(6 * rollouts, 10 + length / 2)
    assert seconds(config, SPEED, drawn) == pytest.approx(24 * length / rate + 6 * 10 / 500)
    assert memory(config, SPEED, [drawn]) == pytest.approx(2**30 + 20 * length * 1000)
    assert memory(config, SPEED.model_copy(update={"cache_tokens": 7}), [drawn]) == 2**30 + 7000


def test_nothing_to_do_takes_no_time(settings: dict[str, Any]) -> None:
    config = checked(settings)
    costs = [StageCost(name, 6, 0, 0, 0, 0, 0) for name in PIPELINE]
    assert expectation(costs, config, SPEED).startswith("with models: no time for rank, no time for run, 1.0 GiB")
    planned = cost(start_session(config))
    assert "about" in expectation(planned, config, SPEED)


def test_durations_in_words() -> None:
    words = {0: "0 s", 0.123: "0.12 s", 119: "119 s", 150: "2.5 min", 7000: "117 min", 90_000: "25 h", 1e6: "12 days"}
    assert [duration(seconds) for seconds in words] == list(words.values())
