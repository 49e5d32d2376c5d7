"""Rollouts of another system: matched to their questions, encoded, and ranked without a sampler."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows.command.configuration import ConfigurationError, check_ranked, checked, merged
from schemas.arrays import Arrays
from schemas.signals import Signal, signals
from tasks.inputs.errors import InputError
from tasks.run.session import RunSession, start_session
from tasks.run.shells import run_stage
from tasks.stages.no_signal import Endings
from tasks.stages.ranking import RankedQuestion, advantages, contributions, gains
from tests.helpers.sessions import provided

Rows = list[dict[str, Any]]


@pytest.fixture
def drawn(settings: dict[str, Any]) -> tuple[RunSession, dict[str, Arrays]]:
    """A run's own rollouts of three questions."""
    session = start_session(checked(settings))
    questions = session.keys.questions[:3]
    assert not run_stage(session, "rollouts", questions).failed
    keys = {question: session.keys.key("rollouts", question) for question in questions}
    return session, {question: session.store.need("rollouts", key).arrays for question, key in keys.items()}


def completions(arrays: Arrays) -> list[list[int]]:
    return [part.tolist() for part in np.split(arrays["tokens"], arrays["offsets"][1:-1])]


def rows(drawn: tuple[RunSession, dict[str, Arrays]], form: str) -> Rows:
    """The rollouts as another system writes them."""
    session, of_question = drawn
    tokenizer, made = provided(session).tokenizer, Rows()
    for question, arrays in of_question.items():
        prompt = arrays["prompt"].tolist()
        for ids, correct in zip(completions(arrays), arrays["correct"].tolist(), strict=True):
            whole, plain = tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)
            asked = {skip: tokenizer.decode(prompt, skip_special_tokens=skip) for skip in (False, True)}
            made.append(
                {
                    "opdscope": {"question_id": question, "tokens": ids, "reward": float(correct)},
                    "text": {"question_id": question, "completion": whole, "reward": correct},
                    "trl": {"step": 3, "prompt": asked[False], "completion": whole, "accuracy_reward": float(correct)},
                    "verl": {"input": asked[True], "output": plain, "score": float(correct), "step": 7},
                    "prime_rl": {
                        "token_ids": [*prompt, *ids],
                        "loss_mask": [False] * len(prompt) + [True] * len(ids),
                        "reward": float(correct),
                    },
                }[form]
            )
    return made


def given(settings: dict[str, Any], table: Rows, form: str, tmp_path: Path, **more: Any) -> RunSession:
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    name = {"text": "opdscope"}.get(form, form)
    return start_session(checked(merged(settings, merged({"rollouts": {"path": str(path), "format": name}}, more))))


@pytest.mark.parametrize("form", ["opdscope", "text", "trl", "prime_rl", "verl"])
def test_a_tables_rollouts_are_those_that_were_written(
    settings: dict[str, Any], drawn: tuple[RunSession, dict[str, Arrays]], form: str, tmp_path: Path
) -> None:
    session = given(settings, rows(drawn, form), form, tmp_path)
    assert session.keys.questions == list(drawn[1])
    assert run_stage(session, "rollouts", session.keys.questions).decoded_tokens == 0
    end = provided(session).tokenizer.eos_token_id
    for question, expected in drawn[1].items():
        key = session.keys.key("rollouts", question)
        assert key != drawn[0].keys.key("rollouts", question)
        found = session.store.need("rollouts", key).arrays
        np.testing.assert_array_equal(found["prompt"], expected["prompt"])
        np.testing.assert_array_equal(found["correct"], expected["correct"])
        np.testing.assert_array_equal(found["reward"], expected["correct"].astype(float))
        for ids, original in zip(completions(found), completions(expected), strict=True):
            if form == "verl":  # whose texts lack special tokens, of which a small model draws some
                original = [i for i in original if i not in provided(session).tokenizer.all_special_ids]
                ids = [i for i in ids if i != end]
            assert ids == original
        if form != "verl":
            np.testing.assert_array_equal(found["truncated"], expected["truncated"])


def test_a_ranking_of_a_table_is_that_of_the_same_rollouts_and_samples_nothing(
    settings: dict[str, Any],
    drawn: tuple[RunSession, dict[str, Arrays]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = given(settings, rows(drawn, "opdscope"), "opdscope", tmp_path)
    monkeypatch.setattr("tasks.engines.choice.EngineChoice.sampler", lambda *given: pytest.fail("a sampler"))
    run_stage(other, "rollouts", list(drawn[1]))
    for session in (drawn[0], other):
        assert not run_stage(session, "ranking", list(drawn[1])).failed
    for question, arrays in drawn[1].items():
        for signal in signals(other.config):
            mine, theirs = (
                s.store.need("ranking", s.keys.key("ranking", question, signal)).arrays for s in (drawn[0], other)
            )
            for name in mine:
                np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-9)
        assert arrays["reward"].tolist() == arrays["correct"].tolist()


def test_rewards_between_and_beyond_nought_and_one_rank_as_they_are() -> None:
    """A reward is an advantage's scale and place: gains follow the one and not the other."""
    rng = np.random.default_rng(0)
    arrays = {"offsets": np.array([0, 3, 5, 9]), "d": rng.normal(size=9)}
    signal = {"d_token": arrays["d"], "d_sq": rng.random(9)}
    found = []
    for reward in ([0.0, 1.0, 0.25], [0.0, 3.0, 0.75], [-2.0, 1.0, -1.25]):
        rollouts = {"offsets": arrays["offsets"], "reward": np.array(reward)}
        q = RankedQuestion(rollouts, {Signal("t", "c", "l"): signal})
        found.append(float(gains(contributions(q, 1.0).sum(axis=0))[0]))
        assert advantages(np.array(reward))[0] == pytest.approx(reward[0] - np.mean(reward[1:]))
    assert found[1] == pytest.approx(3 * found[0]) and found[2] == pytest.approx(3 * found[0])


def test_a_text_ends_unless_it_was_cut(
    settings: dict[str, Any], drawn: tuple[RunSession, dict[str, Arrays]], tmp_path: Path
) -> None:
    question = next(iter(drawn[1]))
    base = {"question_id": question, "reward": 1}
    tokenizer = provided(drawn[0]).tokenizer
    text = tokenizer.decode([5, 6, 7])
    table = [{**base, "completion": text}, {**base, "completion": text, "truncated": True}, {**base, "tokens": [5, 6]}]
    session = given(settings, table, "opdscope", tmp_path)
    arrays = provided(session).given_rollouts(question)
    assert arrays is not None
    assert completions(arrays) == [[5, 6, 7, tokenizer.eos_token_id], [5, 6, 7], [5, 6]]
    assert arrays["truncated"].tolist() == [False, True, False]


def test_a_changed_row_changes_its_questions_keys_only(
    settings: dict[str, Any], drawn: tuple[RunSession, dict[str, Arrays]], tmp_path: Path
) -> None:
    table = rows(drawn, "opdscope")
    before = given(settings, table, "opdscope", tmp_path).keys
    one, two, _ = before.questions
    old = {question: before.key("rollouts", question) for question in (one, two)}
    table[0]["reward"] = 0.5
    stricter = given(settings, table, "opdscope", tmp_path, rollouts={"correct_from": 0.7}).keys
    assert stricter.key("rollouts", two) != old[two]
    after = given(settings, table, "opdscope", tmp_path).keys
    assert after.key("rollouts", one) != old[one] and after.key("rollouts", two) == old[two]


@pytest.mark.parametrize(
    ("form", "change", "why"),
    [
        ("opdscope", {"question_id": "elsewhere"}, "row 2 .*'elsewhere' is not among the"),
        ("opdscope", {"tokens": []}, "row 2 .* is empty"),
        ("opdscope", {"tokens": [1, 10**6]}, "token 1000000 is not among"),
        ("opdscope", {"tokens": [1, True]}, "give a list of token ids"),
        ("opdscope", {"tokens": [5] * 100}, "raise sampling.max_tokens"),
        ("opdscope", {"reward": "good"}, "reward is 'good'; give a number"),
        ("opdscope", {"reward": 10**400}, "reward"),
        ("opdscope", {"tokens": "[" * 100_000}, "give a list of token ids"),
        ("opdscope", {"tokens": "[1,2"}, "tokens is .*give a list of token ids"),
        ("prime_rl", {"loss_mask": ["0", "0"]}, "true or false"),
        ("opdscope", {"reward": float("inf")}, "finite"),
        ("opdscope", {"reward": None}, "has no 'reward'; its columns"),
        ("opdscope", {"truncated": "maybe"}, "truncated is 'maybe'"),
        ("text", {"completion": "\ud800"}, "line 2, column 'completion'"),
        ("text", {"completion": "ÿ never seen"}, "survive"),
        ("trl", {"prompt": "something else"}, "'something else'.* is that of none of the"),
        ("trl", {"format_reward": 1.0}, "rewards are accuracy_reward, format_reward; name one in rollouts.reward"),
        ("trl", {"completion": [{"role": "assistant"}]}, "give text"),
        ("prime_rl", {"loss_mask": [True]}, "loss_mask is not a list of"),
        ("verl", {"score": None}, "has no 'score'"),
    ],
)
def test_a_bad_row_is_named_before_any_model_is_loaded(
    settings: dict[str, Any],
    drawn: tuple[RunSession, dict[str, Arrays]],
    form: str,
    change: dict[str, Any],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.run.models.LoadedModels._scorer", lambda *given: pytest.fail("a model was loaded"))
    table = rows(drawn, form)
    table[1] |= change
    with pytest.raises(InputError, match=why):
        given(settings, table, form, tmp_path)


def test_rollouts_of_questions_beyond_a_limit_are_left_out(
    settings: dict[str, Any], drawn: tuple[RunSession, dict[str, Arrays]], tmp_path: Path
) -> None:
    table = rows(drawn, "trl")
    one = given(settings, table, "trl", tmp_path, questions={"limit": 1})
    assert one.keys.questions == list(drawn[1])[:1]
    with pytest.raises(InputError, match=r"row 1 .* is that of none of the 1 questions"):
        given(settings, [row for row in table if row["prompt"] != table[0]["prompt"]], "trl", tmp_path,
              questions={"limit": 1})  # fmt: skip


def test_several_turns_are_no_rollout(
    settings: dict[str, Any], drawn: tuple[RunSession, dict[str, Arrays]], tmp_path: Path
) -> None:
    table = rows(drawn, "prime_rl")
    table[0]["loss_mask"][-2] = False
    with pytest.raises(InputError, match=r"row 1 .*several turns"):
        given(settings, table, "prime_rl", tmp_path)


def test_a_parquet_file_and_a_column_of_ones_own(
    settings: dict[str, Any], drawn: tuple[RunSession, dict[str, Arrays]], tmp_path: Path
) -> None:
    table = [{**row, "score": row["reward"] * 2 - 1} for row in rows(drawn, "opdscope")]
    pl.DataFrame(table).write_parquet(tmp_path / "r.parquet")
    wanted = {"path": str(tmp_path / "r.parquet"), "reward": "score", "correct_from": 1}
    session = start_session(checked(merged(settings, {"rollouts": wanted})))
    question = next(iter(drawn[1]))
    arrays = provided(session).given_rollouts(question)
    assert arrays is not None and set(arrays["reward"].tolist()) <= {-1.0, 1.0}
    np.testing.assert_array_equal(arrays["correct"], drawn[1][question]["correct"])
    with pytest.raises(InputError, match=r"ranking.segments: 2, but values along rollouts are of success"):
        start_session(checked(merged(settings, {"rollouts": wanted, "ranking": {"segments": 2}})))


def test_a_recorded_tree_has_rollouts_of_its_own() -> None:
    fields = {
        "tree": {"kind": "recorded", "path": "x.parquet"},
        "teachers": [{"kind": "recorded", "name": "t", "path": "t.parquet"}],
        "rollouts": {"path": "r.jsonl"},
    }
    with pytest.raises(ConfigurationError, match="rollouts: a table, but the tree is recorded"):
        checked(fields)


def test_trees_grow_on_a_tables_rollouts(
    settings: dict[str, Any], drawn: tuple[RunSession, dict[str, Arrays]], tmp_path: Path
) -> None:
    session = given(settings, rows(drawn, "opdscope"), "opdscope", tmp_path)
    question = session.keys.questions[0]
    run_stage(session, "rollouts", [question])
    assert not run_stage(session, "trees", [question]).failed
    tree = session.store.need("trees", session.keys.key("trees", question)).arrays
    assert len(tree["token_prob"]) == len(drawn[1][question]["tokens"])
    assert int(tree["draws"].sum()) > 0


def test_a_completion_that_ended_is_not_cut_however_long(
    settings: dict[str, Any], drawn: tuple[RunSession, dict[str, Arrays]], tmp_path: Path
) -> None:
    question, most = next(iter(drawn[1])), settings["sampling"]["max_tokens"]
    tokenizer = provided(drawn[0]).tokenizer
    base, end = {"question_id": question, "reward": 1}, int(tokenizer.eos_token_id)
    table = [
        {**base, "tokens": [*[5] * (most - 1), end]},
        {**base, "tokens": [5] * most},
        {**base, "completion": ""},
        {**base, "completion": tokenizer.decode([5, 8])},
    ]
    stop = tokenizer.decode([8]).strip()
    arrays = provided(
        given(settings, table, "opdscope", tmp_path, sampling={"stop": [stop]})
    ).given_rollouts(question)  # fmt: skip
    assert arrays is not None and arrays["truncated"].tolist() == [False, True, False, False]
    assert completions(arrays)[2:] == [[end], [5, 8]]


def test_a_prompt_of_two_questions_is_ambiguous(
    settings: dict[str, Any], drawn: tuple[RunSession, dict[str, Arrays]], tmp_path: Path
) -> None:
    asked = [json.loads(line) for line in Path(settings["questions"]["path"]).read_text().splitlines()]
    path = tmp_path / "twins.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*asked, {**asked[0], "id": "twin"}]))
    with pytest.raises(InputError, match=r"row 1 .*that of several questions"):
        given(settings, rows(drawn, "trl"), "trl", tmp_path, questions={"path": str(path)})


def test_a_table_says_how_many_rollouts_there_are(
    settings: dict[str, Any], drawn: tuple[RunSession, dict[str, Arrays]], tmp_path: Path
) -> None:
    right = {"kind": "right_attempt", "template": "{{ prompt }} solution {{ right_attempt }}"}
    alone = {**settings, "sampling": {**settings["sampling"], "rollouts": 1}}
    with pytest.raises(ConfigurationError, match="shows another rollout"):
        checked({**alone, "teachers": [{"name": "self", "contexts": [right]}]})
    session = given({**alone, "teachers": [{"name": "self", "contexts": [right]}]}, rows(drawn, "trl"), "trl", tmp_path)
    check_ranked(session.config)
    assert len(session.keys.questions) == 3


def test_rewards_that_are_alike_are_no_signal_and_graded_ones_are() -> None:
    assert advantages(np.array([0.1] * 3)).tolist() == [0.0] * 3
    arrays = {"correct": np.zeros(3, dtype=bool), "truncated": np.zeros(3, dtype=bool)}
    alike, graded = (Endings.of({**arrays, "reward": np.array(r)}) for r in ([0.1] * 3, [0.0, 0.1, 0.2]))
    assert alike.always_wrong and not graded.always_wrong
