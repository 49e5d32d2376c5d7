"""Scores within a trainer's loop: the numbers of `rank` on the same rollouts, and errors that name the argument."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from polars.testing import assert_frame_equal
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.command.configuration import checked
from opdscope import InputError, Rollouts, TopLogprobs, score
from schemas.signals import Source, ranked_signals
from schemas.tables import RANKS
from tasks.outputs import tasks as output_tasks
from tasks.outputs.files import read_table
from tasks.outputs.tasks import rank_task
from tasks.run.session import RunSession, start_session
from tasks.run.shells import run_stage
from tasks.stages.models import teacher_view
from tests.helpers.sessions import provided

V = 12
LOSSES: list[Any] = ["reverse_kl", {"kind": "jsd", "beta": 0.1}, "sampled_token", "trl_sdft"]


@pytest.fixture
def ranked(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> RunSession:
    settings["sampling"] |= {"rollouts": 8, "temperature": 0.8}
    settings["losses"] = LOSSES
    session = start_session(checked({**settings, "seed": 3}))
    monkeypatch.setattr(output_tasks, "open_session", lambda config: session)
    ids = session.keys.questions
    for stage in ("rollouts", "ranking"):
        run_stage(session, stage, ids)
    rank_task.fn(session.config, ids, {}, {}, [])
    return session


@cache
def model(folder: str) -> Any:
    """As anyone loads it."""
    return AutoModelForCausalLM.from_pretrained(folder)


def log_probs(folder: str, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """At each token of a completion, over the tokens of the tokenizer, [T, V]; heads have more rows."""
    with torch.no_grad():
        logits = model(folder)(torch.tensor([[*prompt, *completion]])).logits[0]
    tokens = len(AutoTokenizer.from_pretrained(folder))
    return torch.log_softmax(logits[len(prompt) - 1 : -1, :tokens], dim=-1)


def test_the_numbers_are_those_of_a_ranking(ranked: RunSession) -> None:
    config, models = ranked.config, provided(ranked)
    folders = {teacher.name: (teacher.model or config.model).path for teacher in config.model_teachers}

    def held() -> Iterator[Rollouts]:
        for question in ranked.keys.questions:
            rollouts = ranked.store.need("rollouts", ranked.keys.key("rollouts", question)).arrays
            completions = [rollouts["tokens"][a:b].tolist() for a, b in pairwise(rollouts["offsets"].tolist())]
            sources = {signal.source for signal in ranked_signals(config)}
            views: dict[Source, Any] = {s: teacher_view(models, s, question, rollouts, None) for s in sources}
            yield Rollouts(
                completions,
                rollouts["reward"],
                [log_probs(config.model.path, rollouts["prompt"].tolist(), c) for c in completions],
                {
                    (s.teacher, s.context): [log_probs(folders[s.teacher], v.prompt, c) for c in completions]
                    for s, v in views.items()
                },
            )

    expected = read_table(ranked.store, "small", "ranks")
    expected = expected.select([name for name in expected.columns if not name.startswith("update_")])
    assert expected["carrying"][0] >= 5 and expected["gain"].is_not_null().any()
    table = score(held(), LOSSES, temperature=0.8, seed=3, bootstrap=200)
    keys = ["teacher", "context", "loss"]
    assert_frame_equal(table.sort(keys), expected.sort(keys), abs_tol=1e-6, rel_tol=1e-5)


def distributions(rng: np.random.Generator, lengths: Sequence[int], sharp: float = 2.0) -> list[Any]:
    return [np.asarray(torch.log_softmax(torch.from_numpy(sharp * rng.normal(size=(T, V))), -1)) for T in lengths]


def question(seed: int, R: int = 4) -> Rollouts:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, R).tolist()
    tokens = [rng.integers(0, V, T) for T in lengths]
    rewards = np.array([1.0, 0.0, *rng.integers(0, 2, R - 2)])
    teachers = {name: distributions(rng, lengths) for name in ("a", "b")}
    return Rollouts(tokens, rewards, distributions(rng, lengths), dict(teachers))


def by_hand(questions: Sequence[Rollouts], teacher: str, temperature: float) -> float:
    """The gain of reverse KL from its formulas, in plain loops."""
    inner = d_sq = 0.0
    for q in questions:
        for r, tokens in enumerate(q.tokens):
            others = [q.rewards[o] for o in range(len(q.tokens)) if o != r]
            for t, y in enumerate(tokens):
                P, T = np.exp(q.student[r][t]), np.exp(q.teachers[teacher][r][t])
                d = -P * (np.log(P / T) - P @ np.log(P / T))
                policy = P ** (1 / temperature) / (P ** (1 / temperature)).sum()
                inner += (q.rewards[r] - np.mean(others)) * (d[y] - policy @ d) / temperature
                d_sq += d @ d
    return float(inner / np.sqrt(sum(len(q.tokens) for q in questions) * d_sq))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gains_follow_the_formulas(temperature: float) -> None:
    questions = [question(seed) for seed in range(6)]
    table = score((q for q in questions), temperature=temperature)
    assert table.columns == [name for name in RANKS if not name.startswith("update_")]
    assert table["rank"].to_list() == [1, 2] and set(table["context"]) == {"none"}
    for row in table.iter_rows(named=True):
        assert row["gain"] == pytest.approx(by_hand(questions, row["teacher"], temperature), rel=1e-9)
        assert row["gain_low"] < row["gain"] < row["gain_high"] and row["positions"] == sum(
            len(t) for q in questions for t in q.tokens
        )


def test_intervals_are_by_rollout_or_unknown_with_few_questions() -> None:
    assert score([question(0, 6)])["gain_low"].null_count() == 0
    (table,) = [score([question(0, 2), question(1, 2)])]
    assert table["gain"].null_count() == 0 and table["gain_low"].null_count() == table["p_best"].null_count() == 2
    alike = replace(question(0), rewards=[1, 1, 1, 1])
    assert score([alike])["gain"].null_count() == 2


def test_rewards_of_any_size_and_forms_of_input() -> None:
    q = question(0)
    expected = score([q])
    forms: list[Callable[[Any], Any]] = [
        torch.from_numpy,
        lambda x: torch.from_numpy(x).requires_grad_(),
        lambda x: torch.from_numpy(x).float(),
        np.float32,
    ]
    for form in forms:
        teachers: dict[Any, Any] = {
            ("a", "none"): list(map(form, q.teachers["a"])),
            "b": list(map(form, q.teachers["b"])),
        }
        other = Rollouts([t.tolist() for t in q.tokens], q.rewards > 0, list(map(form, q.student)), teachers)
        assert_frame_equal(score([other]), expected, abs_tol=1e-6)
    half = [torch.from_numpy(rows).bfloat16() for rows in q.student]
    assert score([replace(q, student=half)])["gain"].to_list() == pytest.approx(expected["gain"].to_list(), abs=0.02)
    doubled = score([replace(q, rewards=2 * q.rewards)])
    assert doubled["gain"].to_list() == pytest.approx((2 * expected["gain"]).to_list())


def test_a_teacher_may_tell_of_some_tokens_only() -> None:
    q = question(0)

    def top(rows: Any, k: int) -> TopLogprobs:
        ids = np.argsort(-rows, axis=-1)[:, :k]
        return TopLogprobs(ids, np.take_along_axis(rows, ids, -1))

    def completed(rows: Any, student: Any, k: int) -> Any:
        ids = top(rows, k).ids
        told = np.zeros(rows.shape, dtype=bool)
        np.put_along_axis(told, ids, True, -1)
        T, P = np.exp(rows), np.exp(student)
        rest = (T * ~told).sum(-1, keepdims=True) / (P * ~told).sum(-1, keepdims=True)
        return np.log(np.where(told, T, P * rest))

    for k in (V - 1, 3, 1):
        some = replace(q, teachers={"a": [top(rows, k) for rows in q.teachers["a"]]})
        whole = replace(
            q, teachers={"a": [completed(t, p, k) for t, p in zip(q.teachers["a"], q.student, strict=True)]}
        )
        kept = {"student_kept", "teacher_kept"}
        assert_frame_equal(score([some]).drop(kept), score([whole]).drop(kept), rel_tol=1e-8)
        assert score([some])["teacher_kept"][0] < 1 and score([some])["covered"][0] == 1


class Counting(Sequence[Any]):
    """Rows that are made as they are asked for."""

    def __init__(self, rows: Sequence[Any], asked: list[int]) -> None:
        self.rows, self.asked = rows, asked

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, r: Any) -> Any:
        self.asked.append(r)
        return self.rows[r]


def test_rows_are_asked_for_once_one_rollout_after_the_other() -> None:
    q, asked = question(0), list[int]()
    lazy = replace(
        q, student=Counting(q.student, asked), teachers={"a": Counting(q.teachers["a"], asked), "b": q.teachers["b"]}
    )
    assert_frame_equal(score([lazy]), score([q]))
    assert asked == [0, 0, 1, 1, 2, 2, 3, 3]


def with_row(rows: Sequence[Any], value: Any) -> list[Any]:
    return [rows[0], value, *rows[2:]]


Q = question(0)
T1 = len(Q.tokens[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": Q.tokens[:1]}, r"questions\[0\]\.tokens: 1 given; give 2 or more"),
        ({"tokens": with_row(Q.tokens, [])}, r"questions\[0\]\.tokens\[1\]: \[0\] of .*; give token ids in one"),
        ({"tokens": with_row(Q.tokens, [0.5])}, r"tokens\[1\]: \[1\] of torch.float64; give token ids"),
        ({"tokens": with_row(Q.tokens, "ab")}, r"tokens\[1\]: a str of <U2; give a tensor or an array"),
        ({"tokens": with_row(Q.tokens, [-1] * T1)}, r"tokens\[1\]: "),
        ({"tokens": with_row(Q.tokens, [V] * T1)}, rf"tokens\[1\]: has token {V}, but .* those of {V} tokens"),
        (
            {"tokens": with_row(Q.tokens, [0] * (T1 + 1))},
            rf"student\[1\]: \[{T1}, {V}\] .*; give numbers \[{T1 + 1}, voc",
        ),
        ({"rewards": [1, 0]}, r"rewards: \[1.0, 0.0\] given; give 4 finite numbers"),
        ({"rewards": [1, 0, float("nan"), 0]}, r"rewards: \[1.0, 0.0, nan, 0.0\] given"),
        ({"teachers": {}}, r"teachers: none given; give one at least"),
        ({"teachers": {"a": Q.student, ("a", "none"): Q.student}}, r"teachers: .*; give each name once"),
        ({"teachers": {3: Q.student}}, r"teachers: 3 given; give a teacher's name, or"),
        ({"teachers": {"a": Q.student[:2]}}, r"teachers\['a'\]: of 2 rollouts; give those of the 4 in tokens"),
        ({"student": with_row(Q.student, Q.student[1][:, 0])}, r"student\[1\]: .*with the sampled token's .*alone"),
        ({"student": with_row(Q.student, Q.student[1] * np.nan)}, r"student\[1\]: has values that are NaN or \+inf"),
        (
            {"student": with_row(Q.student, Q.student[1] + 1)},
            r"student\[1\]: probabilities at token \d sum to 2\.72; give log_s",
        ),
        ({"student": with_row(Q.student, np.exp(Q.student[1]))}, r"student\[1\]: probabilities at token"),
        (
            {"student": with_row(Q.student, Q.student[1][:, :5])},
            r"student\[1\]: over 5 tokens, but the first rollout over 12",
        ),
        (
            {"teachers": {"a": with_row(Q.student, TopLogprobs([[0]] * T1, [[-1.0]] * T1))}},
            r"teachers\['a'\]\[1\]: a TopLogprobs, unlike that of the first rollout",
        ),
        (
            {"teachers": {"a": [TopLogprobs([[0, 0]] * len(t), [[-1.0, -2.0]] * len(t)) for t in Q.tokens]}},
            r"teachers\['a'\]\[0\]: ids name a token twice in a row",
        ),
        (
            {"teachers": {"a": [TopLogprobs([[0, V]] * len(t), [[-1.0, -2.0]] * len(t)) for t in Q.tokens]}},
            rf"teachers\['a'\]: has token {V}, but the student has {V}",
        ),
        (
            {"teachers": {"a": [TopLogprobs([[0, 1]] * len(t), [[-0.1, -0.2]] * len(t)) for t in Q.tokens]}},
            r"teachers\['a'\]\[0\]: probabilities at token \d sum to 1\.72; give log-prob",
        ),
    ],
)
def test_wrong_rollouts_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        score([replace(Q, **change)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"questions": []}, "questions: none given"),
        (
            {"questions": [Q, replace(Q, teachers={"c": Q.student})]},
            r"questions\[1\]\.teachers: c/none given; give those",
        ),
        ({"losses": "reverse_kl"}, "losses: 'reverse_kl' given; give a list"),
        ({"losses": []}, r"losses: \[\] given"),
        ({"losses": ["kl"]}, r"losses\[0\]: .*'kl'"),
        ({"losses": [{"kind": "jsd", "beta": 2}]}, r"losses\[0\]\.beta: 2 given"),
        ({"losses": ["jsd", "jsd"]}, r"losses\[1\]: 'jsd' is given twice"),
        ({"losses": ["minillm"]}, r"losses\[0\]: minillm needs several draws from one place"),
        ({"losses": [{"kind": "python", "function": "os:system"}]}, r"losses\[0\]: 'os:system' runs code"),
        ({"temperature": 0.0}, "temperature: 0.0 given"),
        ({"level": 1.5}, "level: 1.5 given"),
        ({"bootstrap": 3}, "bootstrap: 3 given"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        score(**{"questions": [Q], **arguments})
