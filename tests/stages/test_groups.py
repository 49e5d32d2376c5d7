"""Groups of positions: every grouping of the settings, its bins, and the questions that are looked at for them."""

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest

from schemas.config import Grouping
from schemas.signals import Signal
from tasks.stages.aggregate.groups import GROUPINGS, all_bins
from tasks.stages.aggregate.questions import QuestionScores

ONE, ALSO, OTHER = Signal("a", "none", "x"), Signal("a", "none", "y"), Signal("b", "none", "x")


def question(lengths: list[int], correct: list[bool], entropy: Any = None, kl: Any = None) -> QuestionScores:
    total = sum(lengths)
    rollouts: Any = {"offsets": np.cumsum([0, *lengths]), "correct": np.array(correct)}
    tree = {"entropy": np.arange(total, dtype=np.float64) if entropy is None else np.array(entropy)}
    kl = kl or {}
    shown = {signal: {"kl": np.array(kl.get(signal.teacher, np.zeros(total)))} for signal in (ONE, ALSO, OTHER)}
    return QuestionScores("q", rollouts, tree, {}, shown, {})


def values(by: str, q: QuestionScores, signal: Signal = ONE) -> list[float]:
    return [float(v) for v in GROUPINGS[by].values(q, signal)]


def test_every_grouping_of_the_settings_is_there() -> None:
    assert set(GROUPINGS) == set(get_args(Grouping.model_fields["by"].annotation))


def test_what_each_grouping_goes_by() -> None:
    q = question([1, 4], [True, False], kl={"a": [1, 2, 3, 4, 5], "b": [6, 7, 8, 9, 10]})
    assert values("outcome", q) == [1, 0, 0, 0, 0]
    assert values("position", q) == [0, 0, 0.25, 0.5, 0.75]
    assert values("difficulty", q) == [0.5] * 5
    assert values("entropy", q) == [0, 1, 2, 3, 4]
    assert values("divergence", q, ONE) == values("divergence", q, ALSO) == [1, 2, 3, 4, 5]
    assert values("divergence", q, OTHER) == [6, 7, 8, 9, 10]


@pytest.mark.parametrize("bins", range(2, 12))
def test_a_question_that_is_always_right_is_in_the_last_bin(bins: int) -> None:
    q = question([3], [True])
    found = all_bins([Grouping(by="difficulty", bins=bins)], [q], [ONE])[ONE][0]
    assert set(found.of(GROUPINGS["difficulty"].values(q, ONE)).tolist()) == {bins - 1}
    wrong = question([3], [False])
    assert set(found.of(GROUPINGS["difficulty"].values(wrong, ONE)).tolist()) == {0}


def test_bins_that_need_no_values_look_at_no_question() -> None:
    def questions() -> Iterator[QuestionScores]:
        pytest.fail("a question was read")
        yield question([1], [True])

    by = [Grouping(by="outcome"), Grouping(by="position"), Grouping(by="difficulty", bins=3)]
    found = all_bins(by, questions(), [ONE, OTHER])
    assert [len(bins.labels) for bins in found[ONE]] == [2, 4, 3]
    assert [bins.group for bins in found[OTHER]] == ["outcome", "position", "difficulty"]
    assert all_bins([], questions(), [ONE]) == {ONE: []}


def test_quantiles_are_of_all_questions_together_and_of_each_teacher_alone() -> None:
    asked = [
        question([2], [True], entropy=[1, 2], kl={"a": [1, 2], "b": [100, 200]}),
        question([2], [True], entropy=[4, 8], kl={"a": [4, 8], "b": [400, 800]}),
    ]
    by = [Grouping(by="entropy", bins=2), Grouping(by="divergence", bins=2)]
    found = all_bins(by, iter(asked), [ONE, ALSO, OTHER])
    assert [bins.edges.tolist() for bins in found[ONE]] == [[2.0], [2.0]]
    assert np.array_equal(found[ALSO][1].edges, found[ONE][1].edges)
    assert found[OTHER][0].edges.tolist() == [2.0] and found[OTHER][1].edges.tolist() == [200.0]


def test_what_is_not_known_is_in_no_quantile() -> None:
    q = question([4], [True], entropy=[np.nan, 1, 1, 2])
    bins = all_bins([Grouping(by="entropy", bins=3)], [q], [ONE])[ONE][0]
    assert bins.edges.tolist() == [] or np.isfinite(bins.edges).all()
    nothing = question([2], [True], entropy=[np.nan, np.nan])
    assert all_bins([Grouping(by="entropy", bins=3)], [nothing], [ONE])[ONE][0].labels == ["0-100 %"]
