"""Figures and their verdicts, comparisons of planners by hand, and the oracle as a run's evidence."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrays import check_layout
from schemas.config import AdaptiveTree, ReverseKL, Sampling, WindowsTree
from schemas.pipeline import PIPELINE
from schemas.signals import Signal, Source
from tasks.calibration.comparisons import (
    FAMILY,
    MAIN_DRAWS,
    WINDOWS_DRAWS,
    at_main,
    bias,
    coverage,
    error_of_mean,
    errors,
    first_right,
    growth,
    mean,
    ratio_to_windows,
    share,
    tokens_against_uniform,
    tokens_to_rank,
)
from tasks.calibration.figure import COVERS, WITHIN_01, Figure, Range
from tasks.calibration.measure import EQUAL, Setting
from tasks.calibration.provider import Chains, OracleProvider
from tasks.calibration.suite import TEACHERS, Family, make_question


@pytest.mark.parametrize(
    ("value", "error", "wanted", "verdict"),
    [
        (None, 0.1, WITHIN_01, None),
        (0.0, 0.1, None, None),
        (0.0, 0.01, WITHIN_01, "pass"),
        (0.0, 0.011, WITHIN_01, "inconclusive"),
        (0.02, 0.005, WITHIN_01, "inconclusive"),  # outside by two errors, and not more
        (0.02, 0.0049, WITHIN_01, "fail"),
        (0.01, None, WITHIN_01, "pass"),
        (-0.0101, None, WITHIN_01, "fail"),
        (0.9, 0.0, COVERS, "fail"),
        (5.0, 1.0, Range(-math.inf, 6.0, ""), "pass"),
        (-1e9, 1.0, Range(-math.inf, 6.0, ""), "pass"),
    ],
)
def test_verdicts(value: float | None, error: float | None, wanted: Range | None, verdict: str | None) -> None:
    assert Figure("x", value, error, 1, wanted).verdict == verdict


@given(st.floats(-2, 2), st.floats(0, 1), st.floats(-1, 0), st.floats(0, 1))
def test_a_larger_error_never_turns_doubt_into_a_verdict(value: float, error: float, low: float, high: float) -> None:
    sure, unsure = (Figure("x", value, e, 1, Range(low, high, "")).verdict for e in (error, 2 * error + 0.1))
    assert unsure in (sure, "inconclusive")
    mirrored = Figure("x", -value, error, 1, Range(-high, -low, "")).verdict
    assert mirrored == sure


def test_a_figure_is_a_row_of_its_table() -> None:
    assert Figure("x", None, None, 0).row == {
        "figure": "x", "value": None, "error": None, "of": 0, "must be": "", "verdict": None
    }  # fmt: skip
    assert Figure("x", 0.0, 0.0, 3, WITHIN_01).must_be == "within .01"


def rows(*given: dict[str, Any]) -> pl.DataFrame:
    plain = {
        "length": 64,
        "signal": "clear",
        "student": "easy",
        "decisions": "fixed",
        "planner": "adaptive",
        "draws": MAIN_DRAWS,
        "rollouts": 8,
        "run": 0,
        "teacher": "good",
        "score": "alignment",
        "estimate": 0.5,
        "truth": 0.5,
        "own": 0.5,
        "low": 0.4,
        "high": 0.6,
        "count": 1,
        "tokens": 100.0,
    }
    return pl.DataFrame([{**plain, **row} for row in given], schema={n: _type(v) for n, v in plain.items()})


def _type(value: object) -> Any:
    return {str: pl.String, int: pl.Int64, float: pl.Float64}[type(value)]


def test_what_is_undefined_is_none_and_not_0() -> None:
    nothing = rows()
    assert mean(pl.Series([None, None], dtype=pl.Float64)) is None and mean(pl.Series([], dtype=pl.Float64)) is None
    assert error_of_mean(pl.Series([1.0])) is None and error_of_mean(pl.Series([None, 1.0])) is None
    for figure in (
        bias("x", nothing, WITHIN_01),
        share("x", nothing, WITHIN_01),
        coverage("x", nothing),
        ratio_to_windows(nothing, "mean_cosine", "x"),
        tokens_against_uniform(nothing),
        tokens_to_rank(nothing),
        growth(nothing),
        growth(rows({})),
        bias("x", rows({"estimate": None}), WITHIN_01),
        coverage("x", rows({"low": None})),
    ):
        assert (figure.value, figure.error, figure.n, figure.verdict) == (None, None, 0, None), figure


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20))
def test_the_error_of_a_mean_is_its_standard_error(values: list[float]) -> None:
    found = error_of_mean(pl.Series([*values, None]))
    assert found == pytest.approx(np.std(values, ddof=1) / len(values) ** 0.5, abs=1e-12)


def test_bias_is_between_runs_and_without_the_teacher_whose_groups_are_equal() -> None:
    found = bias(
        "x",
        rows(
            {"estimate": 0.7, "truth": 0.5},
            {"estimate": 0.5, "truth": 0.5, "teacher": "fair"},
            {"estimate": None, "teacher": "wrong"},
            {"estimate": 9.0, "teacher": EQUAL},
            {"estimate": 0.4, "truth": 0.5, "run": 1},
        ),
        None,
    )
    assert found.value == pytest.approx(0.0) and found.n == 3  # means of two runs: .1 and -.1
    assert found.error == pytest.approx(0.1)


def test_an_interval_covers_with_its_ends() -> None:
    found = coverage("x", rows(*({"truth": t, "run": i} for i, t in enumerate([0.4, 0.6, 0.39, 0.61, 0.5]))))
    assert found.value == pytest.approx(3 / 5) and found.n == 5 and found.wanted == COVERS


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=12))
@settings(deadline=None)
def test_a_share_is_of_all_that_was_counted(parts: list[tuple[int, int, int]]) -> None:
    """(run, of so many, so many)."""
    found = share("x", rows(*({"run": r, "estimate": min(1.0, k / n), "count": n} for r, k, n in parts)), None)
    total = sum(n for _, _, n in parts)
    value = sum(min(k, n) for _, k, n in parts) / total
    assert found.value == pytest.approx(value) and found.n == total
    by_run = {r: [sum(min(k, n) - value * n for q, k, n in parts if q == r)] for r, _, _ in parts}
    spread = (sum(v[0] ** 2 for v in by_run.values()) * len(by_run) / max(1, len(by_run) - 1)) ** 0.5 / total
    assert found.error == pytest.approx(spread if spread > 1e-9 else 1 / (len(by_run) + 1), abs=1e-6)


def test_runs_that_agree_leave_doubt_all_the_same() -> None:
    found = share("x", rows(*({"run": r, "estimate": 1.0, "count": 50} for r in range(9))), Range(0.93, 2.0, ""))
    assert (found.value, found.error) == (1.0, 0.1)


def test_an_unresolved_estimate_errs_by_the_whole_truth() -> None:
    found = errors(
        rows({"estimate": None, "own": 0.6}, {"estimate": 0.5, "own": 0.5, "run": 1}, {"teacher": EQUAL, "own": 9.0})
    ).row(0, named=True)
    assert found["rmse"] == pytest.approx((0.36 / 2) ** 0.5) and found["unresolved"] == 0.5 and found["runs"] == 2


def test_main_budgets_are_of_fixed_decisions() -> None:
    kept = at_main(rows({}, {"draws": WINDOWS_DRAWS}, {"draws": 256}, {"decisions": "dense"}))
    assert kept["draws"].to_list() == [MAIN_DRAWS, WINDOWS_DRAWS]


def test_errors_of_planners_are_compared_family_by_family() -> None:
    table = rows(
        {"estimate": 0.6},
        {"planner": "windows", "estimate": 0.9, "score": "mean_cosine"},
        {"student": "hard", "estimate": 0.7},
        {"student": "hard", "planner": "windows", "estimate": 0.9, "score": "mean_cosine"},
        {"length": 4096, "estimate": 0.7},  # which windows was not judged on
    )
    found = ratio_to_windows(table, "mean_cosine", "windows")
    assert found.value == pytest.approx((0.25 + 0.5) / 2) and found.n == 2


def test_the_smallest_budget_that_is_as_good_counts() -> None:
    table = rows(
        {"planner": "uniform", "estimate": 0.6, "tokens": 1000.0},
        {"draws": 256, "estimate": 0.7, "tokens": 50.0},
        {"draws": 512, "estimate": 0.55, "tokens": 100.0},
        {"draws": 1024, "estimate": 0.55, "tokens": 200.0},
        {"planner": "uniform", "student": "hard", "estimate": 0.5, "tokens": 1000.0},
        {"draws": 256, "student": "hard", "estimate": 0.7, "tokens": 50.0},  # none is: the whole of it
    )
    found = tokens_against_uniform(table)
    assert found.value == pytest.approx((0.1 + 1.0) / 2) and found.n == 2


def ranked(planner: str, tokens: float, right: list[bool], **more: Any) -> list[dict[str, Any]]:
    score = {"rank": "rank gain", "windows": "mean_cosine"}[planner]
    return [
        {
            "planner": planner,
            "score": score,
            "run": run,
            "teacher": teacher,
            "own": {"good": 0.9, "fair": 0.5}[teacher],
            "estimate": 0.7 if (teacher == "good") == ok else 0.1,
            "tokens": tokens,
            **more,
        }
        for run, ok in enumerate(right)
        for teacher in ("good", "fair")
    ]


def test_how_often_the_best_is_first() -> None:
    found = first_right(
        rows(*ranked("rank", 10.0, [True, True, False, True], draws=0), *ranked("windows", 99.0, [False]))
    )
    by_planner = {row["planner"]: row for row in found.iter_rows(named=True)}
    assert by_planner["rank"]["right"] == 0.75 and by_planner["rank"]["tokens"] == 10.0
    assert by_planner["rank"]["agreement"] == pytest.approx(0.5) and by_planner["windows"]["right"] == 0


def test_a_teacher_of_whom_nothing_is_known_is_last() -> None:
    given = [{**row, "estimate": None if row["teacher"] == "good" else -0.5} for row in ranked("rank", 1.0, [True])]
    assert first_right(rows(*given))["right"].to_list() == [0.0]


def test_tokens_that_a_ranking_needs_over_those_of_windows() -> None:
    sure, unsure = [True] * 20, [True] * 18 + [False] * 2
    table = rows(
        *ranked("rank", 10.0, unsure, rollouts=2),
        *ranked("rank", 20.0, sure, rollouts=4),
        *ranked("rank", 40.0, sure, rollouts=8),
        *ranked("windows", 1000.0, sure, draws=100),
        *ranked("windows", 2000.0, sure, draws=200),
        *ranked("rank", 20.0, sure, student="hard"),
        *ranked("windows", 4000.0, unsure, student="hard"),  # its largest budget stands
        *ranked("rank", 20.0, unsure, signal="weak"),
        *ranked("windows", 4000.0, sure, signal="weak"),  # no rank is enough
    )
    found = tokens_to_rank(table)
    assert found.value == pytest.approx((20 / 1000 + 20 / 4000 + 1.0) / 3) and found.n == 3


def test_cost_that_grows_as_the_length_does_is_1() -> None:
    table = rows(
        *(
            {"length": n, "run": r, "estimate": 0.5 + (0.1 if r else 0.2), "tokens": 10.0 * n}
            for n in (64, 256)
            for r in range(2)
        )
    )
    found = growth(table)
    assert found.value == pytest.approx(1.0) and found.n == 1 and "64 to 256 tokens" in found.name
    assert found.error is not None and found.error > 0


Q = make_question(Family(64, "clear", "even"), 0, 0)


def provider(**change: Any) -> OracleProvider:
    config = Setting(Family(64, "clear", "even"), "forced", 256).config(0).model_copy(update=change)
    chains = {name: Chains(Q.student, Q.teachers) for name in ("q", "r")}
    return OracleProvider(config, chains, np.random.default_rng(0))


TREES = [None, AdaptiveTree(draws=512), WindowsTree(draws=200, min_visits=3)]


@pytest.mark.parametrize("tree", TREES, ids=lambda t: getattr(t, "kind", "forced"))
def test_the_oracle_gives_what_stages_declare_and_counts_its_tokens(tree: Any) -> None:
    oracle = provider(sampling=Sampling(rollouts=3), **({} if tree is None else {"tree": tree}))
    rollouts = oracle.rollouts("q")
    check_layout("rollouts", PIPELINE["rollouts"].arrays, rollouts)
    assert oracle.decoded == 3 * (Q.student.length + 1) and len(rollouts["correct"]) == 3
    made = oracle.tree("q", rollouts)
    check_layout("trees", PIPELINE["trees"].arrays, made)
    assert oracle.decoded > 3 * (Q.student.length + 1) and (made["successes"] <= made["draws"]).all()
    good = Source("good", "none")
    shown = oracle.distillation("q", {good: {"a": ReverseKL(), "b": ReverseKL()}}, rollouts, made, {})
    a, b = (Signal(*good, name) for name in "ab")
    assert list(shown) == [a, b] and np.array_equal(shown[a]["d"], shown[b]["d"])
    check_layout("distillation", PIPELINE["distillation"].arrays, shown[a])


def test_what_the_oracle_was_not_asked_before_it_does_not_know() -> None:
    oracle = provider()
    with pytest.raises(KeyError):
        oracle.tree("q", {})
    rollouts = oracle.rollouts("q")
    with pytest.raises(KeyError):
        oracle.distillation("q", {Source("nobody", "none"): {"a": ReverseKL()}}, rollouts, {}, {})
    with pytest.raises(NotImplementedError, match="does not estimate values"):
        oracle.values("q", rollouts)
    assert oracle.texts([3, 1]) == {3: "#3", 1: "#1"} and set(FAMILY) < set(rows().columns)
    assert set(Q.teachers) == set(TEACHERS)


def test_one_generator_makes_the_same_run_again() -> None:
    one, other = provider(), provider()
    for question in ("q", "r"):
        a, b = one.rollouts(question), other.rollouts(question)
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(one.rolled["q"].arrays["tokens"], one.rolled["r"].arrays["tokens"])
