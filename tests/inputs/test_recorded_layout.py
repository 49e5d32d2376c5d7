"""Recorded tables laid out as stages 1 and 2: closed forms, gaps that stay undefined, rows in any order."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.command.configuration import checked
from schemas.arrays import ROLLOUTS, TREES, check_layout
from schemas.config import RecordedTeacher, RecordedTree, ReverseKL
from schemas.pipeline import PIPELINE
from schemas.signals import Signal, Source
from tasks.inputs.errors import InputError
from tasks.inputs.recorded import RecordedQuestion, read_recorded
from tasks.inputs.recorded_rows import RecordedTable
from tasks.run.recorded import RecordedProvider

quick = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def row(rollout: int, position: int, token: int, prob: float, wins: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "question_id": "q",
        "rollout_id": rollout,
        "position": position,
        "token_id": token,
        "student_prob": prob,
        "successes": wins,
        "draws": 4,
        "correct": rollout == 0,
        **more,
    }


def lay_out(
    folder: Path, rows: list[dict[str, Any]], teacher: list[float] | None = None
) -> dict[str, RecordedQuestion]:
    (folder / "o.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    names = ("question_id", "rollout_id", "position", "token_id")
    probs = teacher if teacher is not None else [r["student_prob"] for r in rows]
    theirs = [{**{n: r[n] for n in names}, "teacher_prob": p} for r, p in zip(rows, probs, strict=True)]
    (folder / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in theirs[::-1]))
    teachers = [RecordedTeacher(name="t", path=str(folder / "t.jsonl"))]
    return read_recorded(RecordedTree(path=str(folder / "o.jsonl")), teachers)


ROWS = [
    {**row(0, 2, 7, 0.5, 3, sampled=True), "token": "seven"},
    row(0, 2, 8, 0.25, 1),
    row(1, 0, 9, 1.0, 4),
    row(1, 3, 7, 0.125, 0, inclusion=0.25, entropy=1.5),
]


def test_positions_that_were_not_recorded_are_undefined(tmp_path: Path) -> None:
    found = lay_out(tmp_path, ROWS)["q"]
    check_layout("rollouts", ROLLOUTS, found.rollouts)
    check_layout("trees", TREES, found.tree)
    assert found.rollouts["offsets"].tolist() == [0, 3, 7]
    assert found.rollouts["tokens"].tolist() == [-1, -1, 7, -1, -1, -1, -1]
    assert found.rollouts["correct"].tolist() == [True, False] and len(found.rollouts["prompt"]) == 0
    assert np.isnan(found.tree["token_prob"]).tolist() == [True, True, False, True, True, True, True]
    assert np.isnan(found.tree["entropy"]).tolist() == [True, True, False, False, True, True, False]
    assert np.isnan(found.tree["leverage"]).all()
    assert found.tree["node"].tolist() == [2, 3, 6] and found.tree["branch_offsets"].tolist() == [0, 2, 3, 4]
    assert found.texts == {7: "seven"}


def test_what_is_left_of_a_distribution_counts_as_one_token(tmp_path: Path) -> None:
    tree = lay_out(tmp_path, ROWS)["q"].tree
    assert tree["tail_prob"] == pytest.approx([0.25, 0.0, 0.875])
    assert tree["p_sq"] == pytest.approx([0.5**2 + 2 * 0.25**2, 1.0, 0.125**2 + 0.875**2])
    assert tree["entropy"][[2, 3, 6]] == pytest.approx([1.5 * math.log(2), 0.0, 1.5])  # the last is as recorded
    assert tree["inclusion"].tolist() == [1, 1, 0.25] and not tree["branch_tail"].any()
    assert tree["successes"].tolist() == [3, 1, 4, 0] and tree["draws"].tolist() == [4] * 4


@given(st.permutations(range(len(ROWS))))
@quick
def test_rows_may_stand_in_any_order(tmp_path: Path, order: list[int]) -> None:
    one, other = (lay_out(tmp_path, rows)["q"] for rows in (ROWS, [ROWS[i] for i in order]))
    assert one.digest == other.digest and one.teachers["t"].digest == other.teachers["t"].digest
    for name in one.tree:
        assert np.array_equal(one.tree[name], other.tree[name], equal_nan=True), name
    assert np.array_equal(one.teachers["t"].prob, other.teachers["t"].prob)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 9), min_size=1, max_size=4)), min_size=1, max_size=4),
    st.integers(0, 2**32),
)
@quick
def test_every_node_is_a_whole_distribution(tmp_path: Path, nodes: list[tuple[int, set[int]]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    by_position = dict(nodes)
    rows = []
    for position, tokens in by_position.items():
        probs = rng.dirichlet(np.ones(len(tokens) + 1))
        rows += [row(0, position, t, float(p)) for t, p in zip(tokens, probs[:-1], strict=True)]
    found = lay_out(tmp_path, rows)["q"]
    check_layout("trees", TREES, found.tree)
    starts = found.tree["branch_offsets"]
    inside = np.add.reduceat(found.tree["branch_prob"], starts[:-1])
    assert inside + found.tree["tail_prob"] == pytest.approx(1)
    assert sorted(by_position) == found.tree["node"].tolist()
    assert len(found.rollouts["tokens"]) == max(by_position) + 1
    for a, b in pairwise(starts):
        assert (np.diff(found.tree["branch_prob"][a:b]) <= 0).all()  # the likeliest first


def test_rounding_above_1_is_taken_and_more_is_not(tmp_path: Path) -> None:
    over = [row(0, 0, 1, 0.7), row(0, 0, 2, 0.3 + 5e-7)]
    assert lay_out(tmp_path, over)["q"].tree["tail_prob"].tolist() == [0.0]
    with pytest.raises(InputError, match="row 2, column 'student_prob': the probabilities of this node's branches sum"):
        lay_out(tmp_path, [row(0, 0, 1, 0.7), row(0, 0, 2, 0.3001)])
    with pytest.raises(InputError, match=r"teachers\.0\.path: .*column 'teacher_prob': .* sum to 1\.1, above 1"):
        lay_out(tmp_path, [row(0, 0, 1, 0.5), row(0, 0, 2, 0.2)], [0.6, 0.5])


def test_a_gap_of_rollouts_is_named_and_two_verdicts_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="question 'q' has rollout 2 but no rollout 1"):
        lay_out(tmp_path, [row(0, 0, 1, 0.5), row(2, 0, 1, 0.5)])
    with pytest.raises(InputError, match="column 'correct': rollout 0 of question 'q' is both true and false"):
        lay_out(tmp_path, [row(0, 0, 1, 0.5), row(0, 1, 1, 0.5, correct=False)])


def test_a_node_of_more_draws_than_a_column_holds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 2, column 'draws': this node's branches have 2,147,483,648 draws"):
        lay_out(tmp_path, [row(0, 0, t, 0.5, draws=2**30) for t in (1, 2)])
    lay_out(tmp_path, [row(0, t, 1, 0.5, draws=2**30) for t in (1, 2)])


def test_rows_count_from_1_in_errors() -> None:
    told = str(RecordedTable("tree.path", "o.jsonl").error(0, "draws", "x"))
    assert told == "tree.path: 'o.jsonl', row 1, column 'draws': x"


@pytest.fixture
def provider(tmp_path: Path) -> RecordedProvider:
    questions = lay_out(tmp_path, [*ROWS, *({**r, "question_id": "سؤال"} for r in ROWS[:2])], [0.1] * 6)
    config = checked(
        {
            "tree": {"kind": "recorded", "path": str(tmp_path / "o.jsonl")},
            "teachers": [{"kind": "recorded", "name": "t", "path": str(tmp_path / "t.jsonl")}],
            "sampling": {"temperature": 0.5},
        }
    )
    return RecordedProvider(config, questions)


def test_recorded_evidence_is_looked_up(provider: RecordedProvider) -> None:
    assert provider.questions == ["q", "سؤال"] and provider.decoded == 0
    rollouts = provider.rollouts("q")
    tree = provider.tree("q", rollouts)
    made = provider.distillation("q", {Source("t", "none"): {"kl": ReverseKL()}}, rollouts, tree, {})
    (arrays,) = made.values()
    check_layout("distillation", PIPELINE["distillation"].arrays, arrays)
    assert list(made) == [Signal("t", "none", "kl")] and arrays["teacher_prob"].tolist() == [0.1] * 4
    with pytest.raises(NotImplementedError, match="no values along rollouts"):
        provider.values("q", rollouts)
    for missing in (lambda: provider.rollouts("x"), lambda: provider.of_teacher(Source("x", "none"), "q")):
        with pytest.raises(KeyError):
            missing()


def test_tokens_have_the_texts_of_the_table(provider: RecordedProvider) -> None:
    assert provider.texts([9, 7, -1, 7]) == {-1: "", 7: "seven", 9: "#9"}
    assert provider.texts([]) == {}


def test_keys_of_recorded_evidence_hold_rows_and_where_it_counts_the_temperature(provider: RecordedProvider) -> None:
    assert provider.settings(PIPELINE["rollouts"]) == {}
    assert provider.settings(PIPELINE["ideal"]) == {"temperature": 0.5}
    assert set(provider.settings(PIPELINE["alignment"])) == {"level", "posterior"}
    assert provider.of_question("q") != provider.of_question("سؤال")
    assert provider.of_teacher(Source("t", "none"), "q") != provider.of_teacher(Source("t", "none"), "سؤال")
