"""compare and figures on finished runs: what they print and write, and what they refuse, in one line."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from prefect.logging import disable_run_logger
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.command.comparisons import comparison_tables, what_changed
from flows.command.configuration import checked
from schemas.pipeline import diagnosis_stages
from schemas.question_tables import COMPARISON
from tasks.outputs.comparison.differences import Value
from tasks.outputs.comparison.rows import comparison_table
from tasks.outputs.diagnosis import make_outputs
from tasks.outputs.files import write_files, write_run
from tasks.run.session import start_session
from tasks.run.shells import run_stage
from tests.helpers.small import small_settings
from tests.outputs.test_comparison import ALIGNMENT, SIGNAL, two

NAME = r"a_b%&${x}~^\|#<i>=1"


@pytest.fixture(scope="module")
def store(models: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one store: all questions, and the first four."""
    folder = tmp_path_factory.mktemp("runs") / "store"
    settings = small_settings(models, questions, folder)
    teachers = [{**settings["teachers"][0], "name": NAME}, settings["teachers"][1]]
    common: dict[str, Any] = {"success": {"rollouts": 2}, "teachers": teachers, "scores": {"bootstrap": 200}}
    finish({**settings, **common})
    finish({**settings, **common, "name": "few", "questions": {**settings["questions"], "limit": 4}})
    return folder


def finish(settings: dict[str, Any]) -> None:
    """What a flow does."""
    session = start_session(checked(settings))
    ids = session.keys.questions
    for stage in diagnosis_stages():
        run_stage(session, stage, ids)
    with disable_run_logger():
        outputs = make_outputs(session, ids, {})
        written: dict[str, Any] = {"files": write_files(session, outputs.files), "advice": outputs.advice}
        write_run(session, ids, {}, [], written, {})
    session.provider.close()


@pytest.fixture
def own(store: Path, tmp_path: Path) -> Path:
    """A copy of the runs that a test may change."""
    shutil.copytree(store / "runs", tmp_path / "copy" / "runs")
    return tmp_path / "copy"


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_runs_side_by_side(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.parquet"
    for other in ("few", store / "runs" / "few", f"{store}/runs/few/", f"{store}#few"):
        found = invoke("compare", "small", other, "--store", store, "--output", out)
        assert found.exit_code == 0, found.stderr
        assert "few against small: success of the student: " in found.stdout
        assert "4 common questions of 6 and 4" in found.stdout
    table = pl.read_parquet(out)
    assert {name: str(kind) for name, kind in table.schema.items()} == {k: c.dtype for k, c in COMPARISON.items()}
    later = table.filter((pl.col("run") == "few") & pl.col("difference").is_not_null())
    assert (later["difference"].abs() < 1e-12).all() and (later["paired"] <= 4).all()  # the same draws of the same
    assert later["difference_low"].is_null().all()  # of four questions
    for name, score in (("summary", "gain"), ("success", "own")):
        told = pl.read_parquet(store / "runs" / "small" / f"{name}.parquet")
        expected = told.filter(pl.col("group") == "all")[score] if score == "gain" else told[score]
        rows = table.filter((pl.col("score") == score) & (pl.col("run") == "small"))
        assert rows["value"].to_list() == expected.to_list()
    assert "undefined" in found.stdout and NAME in found.stdout


def test_a_run_and_itself(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.csv"
    found = invoke("compare", "small", "small", "small", "small", "--store", store, "--output", out)
    assert found.exit_code == 0, found.stderr
    assert "small (4) against small" in found.stdout and "clearly changed for none" in found.stdout
    table = pl.read_csv(out)
    known = table.filter(pl.col("difference").is_not_null())
    assert known.height and (known["difference"] == 0).all() and (known["difference_low"].drop_nulls() == 0).all()
    assert {*table["teacher"].drop_nulls().unique()} == {NAME, "self"}


def test_what_changed_is_said_in_words() -> None:
    a, b = two(60)
    lines = what_changed(comparison_table([a, b]), [a, b])
    success = lines[0].partition("; ")[0]
    assert re.fullmatch(
        r"b against a: success of the student: (.+) -> (.+) \((.+) \[.+\], 60 common questions\)", success
    )
    assert "highest forecast stays that of t/none by kl" in lines[0]
    assert lines[2] == "  alignment clearly up for t/none by kl, of 1 signal (by chance alone, about 0.05)"
    down = what_changed(comparison_table([b, a]), [b, a])
    assert down[2] == lines[2].replace("up", "down")
    apart = two(60, ids=[f"r{i}" for i in range(60)])
    assert "not paired: no common questions" in what_changed(comparison_table(apart), apart)[0]
    assert comparison_table(apart).filter(pl.col("run") == "b")["paired"].unique().to_list() == [0]


def test_an_unknown_alignment_is_told_from_an_undefined_one() -> None:
    a, b = two()
    lost = {**b.values, ALIGNMENT: Value(np.nan, np.nan, np.nan)}
    silent = {SIGNAL: {**b.columns[SIGNAL], "d_sq": np.zeros(24)}}
    for other, word in (
        (replace(b, values=lost), "unresolved"),
        (replace(b, values=lost, columns=silent), "undefined"),
    ):
        shown = comparison_tables(comparison_table([a, other]), [a, other])
        alignment = next(table for table in shown if "alignment" in str(table.title))
        assert [next(iter(column.cells)) for column in alignment.columns][4:] == [word, "-"]


@pytest.mark.parametrize("suffix", ["md", "tex"])
def test_comparisons_in_a_paper(store: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"c.{suffix}"
    assert invoke("compare", "small", "few", "--store", store, "--output", out).exit_code == 0
    text = out.read_text()
    assert NAME not in text and r"a\_b%\&\$" in text.replace(r"\%", "%")


def test_figures_and_tables_of_a_run(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = invoke("figures", "small", "--store", store, "--format", "svg")
    assert found.exit_code == 0, found.stderr
    written = {path.name for path in (tmp_path / "small-figures").iterdir()}
    assert {
        line.removeprefix("small-figures/") for line in found.stdout.splitlines() if "small-figures/" in line
    } == written
    assert {"forecast.svg", "success.svg", "summary.tex", "summary.md", "forecasts.tex", "success.md"} <= written
    assert re.search(r"^no alignment-[a-z]+: fewer than two bins", found.stdout, re.MULTILINE)
    success = pl.read_parquet(store / "runs" / "small" / "success.parquet")
    shown = f"{success['own'][0]:.2f}".replace("0.", ".", 1)
    for suffix in ("tex", "md"):
        text = (tmp_path / "small-figures" / f"success.{suffix}").read_text()
        assert NAME not in text and shown in text
    svg = (tmp_path / "small-figures" / "success.svg").read_bytes()
    kept = tmp_path / "small-figures" / "mine.txt"
    kept.write_text("x")
    assert invoke("figures", f"{store}#small", "--format", "svg,svg").exit_code == 0
    assert (tmp_path / "small-figures" / "success.svg").read_bytes() == svg and kept.read_text() == "x"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("compare", "small"), "RUN: 'small' is one run; give two or more"),
        (
            ("compare", "small", "nobody"),
            "there is no finished run 'nobody' in <store>; finished runs there: few, small",
        ),
        (("compare", "small", "../x"), "RUN: '../x' is not the folder of a run; give STORE/runs/NAME"),
        (("compare", "small", "#x"), "RUN: '#x' lacks its store or its name; give STORE#NAME"),
        (("compare", "small", "x#a/b"), "RUN: 'x#a/b' lacks its store or its name; give STORE#NAME"),
        (("compare", "small", "/nowhere/runs/x"), "RUN: '/nowhere/runs/x': there is no store '/nowhere'"),
        (
            ("compare", "small", "few", "--output", "x.pdf"),
            "--output: 'x.pdf' ends with none of .md, .tex, .csv, .parquet",
        ),
        (("compare", "small", "few", "--output", "/no/x.md"), "--output: the folder of '/no/x.md' does not exist"),
        (("compare", "s3://u:p@h/b#x", "few"), "password"),
        (("figures", "small", "--format", "svg,gif"), "--format: 'gif' is no format; give some of svg,png,pdf"),
        (("figures", "nobody"), "there is no finished run 'nobody'"),
        (("figures", "small", "--output", "/no/x"), "--output: the folder of '/no/x' does not exist"),
        (("figures", "small", "--output", "/dev/null"), "--output: '/dev/null' is a file; give a folder"),
    ],
)
def test_what_is_refused(store: Path, arguments: tuple[str, ...], line: str) -> None:
    found = invoke(*arguments, "--store", store)
    assert found.exit_code == 2 and found.stdout == ""
    assert len(found.stderr.strip().splitlines()) == 1
    assert line.replace("<store>", repr(str(store))) in found.stderr


def edited(run: Path, **changes: Any) -> None:
    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**told, **changes}))


def test_runs_that_cannot_be_compared(own: Path) -> None:
    run = own / "runs" / "few"

    def refused(line: str, command: str = "compare") -> None:
        others = ("small",) if command == "compare" else ()
        found = invoke(command, *others, "few", "--store", own)
        assert found.exit_code == 2 and line in found.stderr, found.stderr
        assert len(found.stderr.strip().splitlines()) == 1

    original = json.loads((run / "run.json").read_text())
    files = {name: digest for name, digest in original["files"].items() if name != "questions.parquet"}
    edited(run, files=files)
    refused("has no questions.parquet, as it was made before this version; run it again: nothing is decoded")
    edited(run, files=original["files"], configuration={**original["configuration"], "seed": "x"})
    refused("the configuration of run 'few'")
    edited(run, configuration=original["configuration"])
    whole = (run / "success.parquet").read_bytes()
    (run / "success.parquet").write_bytes(whole[:-9])
    refused("success.parquet of run 'few'")
    refused("success.parquet of run 'few'", "figures")
    (run / "success.parquet").write_bytes(whole)
    (run / "run.json").write_text("{")
    refused("run.json of run 'few' in")
    (run / "run.json").rename(run / "rank.json")
    refused("is a ranking; give one of `opdscope run`")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", {"artefacts": []}),
        ("run.json", {"files": 5}),
        ("summary", ["alignment"]),
        ("forecasts", ["forecast"]),
        ("success", ["own"]),
        ("questions", ["own"]),
    ],
)
def test_outputs_of_another_version_are_said_as_such(own: Path, name: str, content: Any) -> None:
    folder = own / "runs" / "small"
    told = json.loads((folder / "run.json").read_text())
    if name == "run.json":
        told |= content
    else:
        told["files"].pop(f"{name}.parquet")  # without a digest
        table = pl.read_parquet(folder / f"{name}.parquet").drop(content)
        table.write_parquet(folder / f"{name}.parquet")
        told["files"][f"{name}.parquet"] = hashlib.sha256((folder / f"{name}.parquet").read_bytes()).hexdigest()
    (folder / "run.json").write_text(json.dumps(told))
    found = invoke("compare", "few", "small", "--store", own)
    assert found.exit_code == 2 and "run it again" in found.stderr and "Traceback" not in found.stderr


def test_a_file_is_written_whole_and_over_no_ones_else(own: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious.csv"
    precious.write_text("mine")
    (tmp_path / "c.csv").symlink_to(precious)
    found = invoke("compare", "small", "few", "--store", own, "--output", tmp_path / "c.csv")
    assert found.exit_code == 0 and precious.read_text() == "mine" and not (tmp_path / "c.csv").is_symlink()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_intervals_of_different_levels_are_named() -> None:
    a, b = two()
    b = replace(b, level=0.8)
    titles = [str(shown.title) for shown in comparison_tables(comparison_table([a, b]), [a, b])]
    assert "the student's success, intervals of 95 %, 80 %; of differences 95 %" in titles
