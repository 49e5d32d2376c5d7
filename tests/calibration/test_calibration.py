"""The calibration itself: the oracle's short cuts follow its law, and its judgement can fail."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from flows.calibrate import families, settings_of
from flows.cli import app
from schemas.config import Branching, CalibrateConfig, ForwardKL, ReverseKL
from tasks.calibration.chain import exact_scores, expected, walk
from tasks.calibration.comparisons import share
from tasks.calibration.figure import COVERS, WITHIN_01, Figure, Range
from tasks.calibration.judge import by_planner, figures, judged_as, ranking_table
from tasks.calibration.measure import EQUAL_COSINE, Setting, measure
from tasks.calibration.report import calibration_page
from tasks.calibration.simulate import draw, roll
from tasks.calibration.suite import Family, equal_teacher, make_question
from tasks.stages.trees.design import design_round
from tasks.stages.trees.planner import CompletedRound
from tests.helpers.places import ROOT
from tests.helpers.prefect_server import Server


def test_a_jump_to_the_end_has_the_law_of_a_walk() -> None:
    q = make_question(Family(64, "clear", "even"), 0, 0)
    rng = np.random.default_rng(0)
    rolled = roll(q.student, "q", 2, 0, rng)
    node = np.flatnonzero(rolled.frame.leverage > 1e-2)[:1]
    design = design_round(rolled.frame, node, np.ones(1), Branching(head=4, tail=2), 40_000)
    launches = design.launches(rolled.frame.offsets)
    completed = CompletedRound(design, launches, draw(rolled, launches, rng))
    depth, state = rolled.depth[node], rolled.state[node]
    after = q.student.follow[q.student.kinds[depth], state, launches.token]
    for b, s in enumerate(after):
        walked, _ = walk(q.student, np.repeat(depth + 1, 20_000), np.repeat(s, 20_000), rng)
        exact = q.student.values[int(depth[0]) + 1, s]
        n = launches.draws[b]
        for rate, many in ((completed.successes[b] / n, n), ((walked[:, -1] == q.student.passes).mean(), 20_000)):
            assert abs(rate - exact) <= 4 * np.sqrt(exact * (1 - exact) / many) + 1e-9
    assert completed.tokens == completed.draws * (q.student.length - int(depth[0]) - 1)


def test_expected_sums_are_the_means_of_many_rollouts() -> None:
    q = make_question(Family(64, "clear", "hard"), 2, 0)
    teacher = q.teachers["fair"]
    scores = exact_scores(q.student, teacher, ReverseKL())
    rolled = roll(q.student, "q", 4000, 0, np.random.default_rng(0))
    by_rollout = scores.inner[rolled.depth, rolled.state].reshape(4000, -1).sum(axis=1)
    correct = rolled.arrays["correct"]
    sums = expected(q.student, scores)
    for group, weight in (("all", np.ones(4000)), ("correct", correct), ("incorrect", ~correct)):
        values = by_rollout * weight
        assert abs(values.mean() - sums[group].inner) <= 4 * values.std() / np.sqrt(4000)


def test_the_equal_teacher_is_aligned_alike_everywhere() -> None:
    q = make_question(Family(64, "weak", "easy"), 1, 0)
    teacher = equal_teacher(q.student, EQUAL_COSINE, np.random.default_rng(0))
    assert (teacher.step >= 0).all() and teacher.step.sum(axis=-1) == pytest.approx(1)
    scores = exact_scores(q.student, teacher, ForwardKL())
    real = scores.g_sq[:-1] > 1e-15
    cosine = scores.inner[:-1][real] / np.sqrt(scores.g_sq[:-1] * scores.d_sq[:-1])[real]
    assert cosine == pytest.approx(EQUAL_COSINE, abs=1e-6)
    sums = expected(q.student, scores)
    assert sums["correct"].alignment == pytest.approx(sums["incorrect"].alignment, abs=1e-6)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    family = Family(64, "clear", "even")
    settings = [s for s in settings_of(family) if s.rollouts <= 8 and s.draws != 1024]
    measured = [row for setting in settings for run in range(2) for row in measure(setting, 0, run)]
    return pl.DataFrame(measured, infer_schema_length=None).with_columns(pl.col(pl.Float64).fill_nan(None))


def test_every_figure_is_there_and_the_page_shows_them(rows: pl.DataFrame) -> None:
    found = {f.name: f for f in figures(rows)}
    for name in ("bias of alignment, adaptive", "coverage, teacher difference", "wrong signs", "node coverage"):
        assert found[name].value is not None, name
    assert found["node coverage"].n > 100
    planners = by_planner(rows)
    assert planners["planner"].to_list() == ["adaptive", "forced", "uniform", "windows"]
    assert planners["error"].is_not_null().all()
    shares = ranking_table(rows)
    assert shares.filter(pl.col("planner") == "rank")["rollouts"].to_list() == [2, 4, 8]
    page = calibration_page(rows, CalibrateConfig(runs=2, lengths=[64]))
    assert "<svg" in page and "<script" not in page and "node coverage" in page


def test_a_biased_estimate_fails(rows: pl.DataFrame) -> None:
    shifted = rows.with_columns(
        pl.when(pl.col("score") == "gain").then(pl.col("estimate") + 0.3).otherwise("estimate").alias("estimate"),
        pl.when(pl.col("score") == "alignment").then(pl.col("truth") + 9).otherwise("high").alias("low"),
    )
    found = {f.name: f.verdict for f in figures(shifted)}
    assert found["bias of gain, adaptive"] == "fail" and found["coverage, alignment"] == "fail"


def test_families_and_bad_lengths() -> None:
    names = [f.name for f in families(CalibrateConfig())]
    assert len(names) == len(set(names)) == 13 and "4096 weak easy" in names
    bad = CliRunner().invoke(app, ["calibrate", "--lengths", "8"])
    assert bad.exit_code == 2 and "lengths: 8 is too short" in bad.output
    bad = CliRunner().invoke(app, ["calibrate", "--lengths", "64,many"])
    assert bad.exit_code == 2 and "lengths.1: input should be a valid integer" in bad.output


def test_windows_rows_say_what_it_is() -> None:
    found = measure(Setting(Family(64, "clear", "even"), "windows", 600), 0, 0)
    assert {row["planner"] for row in found} == {"windows"}
    assert all(row["estimate"] is not None for row in found)


def test_figures_that_fail_are_named() -> None:
    judged = [Figure("bias of gain", 0.5, 0.01, 20, WITHIN_01), Figure("resolved", None, None, 0)]
    assert judged_as("fail", judged) == ["bias of gain: 0.500 ± 0.010, must be within .01"]
    assert judged_as("inconclusive", judged) == judged_as("pass", judged) == []


@pytest.mark.parametrize(
    ("value", "error", "wanted", "verdict"),
    [
        (0.95, 0.01, COVERS, "pass"),
        (0.965, 0.013, COVERS, "inconclusive"),  # inside, but no nearer told than its error
        (0.990, 0.025, COVERS, "inconclusive"),
        (0.990, 0.005, COVERS, "fail"),
        (0.90, 0.01, COVERS, "fail"),
        (2.1, 1.1, Range(-np.inf, 1.0, "at most 1"), "inconclusive"),
        (2.1, 0.5, Range(-np.inf, 1.0, "at most 1"), "fail"),
        (0.5, 1.1, Range(-np.inf, 1.0, "at most 1"), "inconclusive"),
        (0.5, 0.2, Range(-np.inf, 1.0, "at most 1"), "pass"),
        (0.0, None, WITHIN_01, "pass"),
        (None, None, WITHIN_01, None),
        (0.5, 0.1, None, None),
    ],
)
def test_verdicts_look_at_the_error_both_ways(
    value: float | None, error: float | None, wanted: Range | None, verdict: str | None
) -> None:
    assert Figure("a figure", value, error, 20, wanted).verdict == verdict


def testshares_have_the_error_that_runs_show() -> None:
    """Counts of one run hang together: the error is that of as many runs, not of as many counts."""
    blank = {"length": 64, "signal": "clear", "student": "even", "decisions": "fixed"}
    rng = np.random.default_rng(0)
    rows = [{**blank, "run": r, "estimate": float(p), "count": 1000} for r, p in enumerate(rng.uniform(0.9, 1, 50))]
    found = share("a share", pl.DataFrame(rows), COVERS)
    assert found.value == pytest.approx(0.95, abs=0.01) and found.error == pytest.approx(
        0.1 / 12**0.5 / 50**0.5, rel=0.2
    )
    alike = share("a share", pl.DataFrame([{**row, "estimate": 1.0} for row in rows[:2]]), COVERS)
    assert alike.error == pytest.approx(1 / 3) and alike.verdict == "inconclusive"


@pytest.mark.slow
def test_calibrate_as_a_user_calls_it(
    prefect_server: Server, prefect_environment: dict[str, str], tmp_path: Path
) -> None:
    """Too few runs to judge by, but all of the command: rows, page, table; the second time from the store."""
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "calibrate",
        "--lengths",
        "64",
        "--runs",
        "2",
        "--store",
        str(tmp_path),
    ]
    environment = {**prefect_environment, "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr
        assert "wrong signs" in done.stdout and "calibration.html" in done.stdout
    assert len(list((tmp_path / "calibration").glob("*/rows.parquet"))) == 4
    assert pl.read_parquet(tmp_path / "runs" / "calibrate" / "calibration.parquet")["run"].n_unique() == 2
    artifacts = prefect_server.artifacts()
    assert artifacts["progress-calibrate"]["data"] == 100.0
    assert "wrong signs" in artifacts["calibrate-figures"]["data"]
    assert "calibration.html" in artifacts["calibrate-calibration-html"]["data"]
    assert artifacts["calibrate-verdict"]["type"] == "markdown"
