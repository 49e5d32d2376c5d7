"""`opdscope export`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.command.export import what_it_is_worth


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_export_says_what_it_wrote_and_what_that_is_worth(finished: Path, here: Path) -> None:
    result = run("export", "small", "--to", "trl", "--store", str(finished), "--signal", "large/none/reverse_kl")
    assert result.exit_code == 0, result.output
    assert "large/none by reverse_kl: " in result.output and " tokens weighted by their draws" in result.output
    for name in ("equal weights", "rule: full", "rule: sampled", "rule: student", "draws, else rule: full"):
        assert name in result.output
    assert "as chosen" not in result.output
    for line in (
        "these rollouts: the weighting ",
        "fresh rollouts, rule full: the rule ",
        "small-trl: weights.parquet, ",
    ):
        assert line in result.output
    assert (here / "small-trl" / "opdscope_trl.py").is_file()
    again = run("export", "small", "--to", "trl", "--store", str(finished), "--choose", "token", "--mask")
    assert again.exit_code == 0
    assert "of the tokens follow another teacher or context" in again.output
    assert "choice by token: the choice " in again.output and "equal weights, as chosen" in again.output


SHORT = "; it leaves 0.28 of the signal's length, as the rest has no weight or meets the limit"


@pytest.mark.parametrize(
    ("length", "better", "said"),
    [
        (1.0, True, ""),
        (0.28, True, f"{SHORT}: raise the learning rate"),
        (0.28, False, SHORT),
        (0.0, False, "; all weights are 0"),
        (1.31, True, "; it makes the signal 1.3 times as long: lower the learning rate"),
    ],
)
def test_lengths_are_told_where_they_matter(length: float, better: bool, said: str) -> None:
    of = {"better": better, "verdict": "it is so", "length": length}
    told = {"weighted": {"better": better, "verdict": "it is so"}, "length": length, "rule": {"full": of}}
    lines = what_it_is_worth({**told, "choose": "run"})
    assert lines == [f"these rollouts: it is so{said}", f"fresh rollouts, rule full: it is so{said}"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["none", "--to", "trl"], "RUN: 'none' is not in"),
        (["small", "--to", "trainer"], "--to: 'trainer' is not one of verl, trl"),
        (["small", "--to", "trl", "--signal", "\x1b[31m"], "--signal: '\\x1b[31m' is no signal of 'small'; there are"),
        (["small", "--to", "trl", "--output", "."], "--output: '.' contains other files; give a new folder"),
        (["small", "--to", "trl", "--store", "ftp://user:secret@host/x"], "--store: "),
    ],
)
def test_what_cannot_be_exported_is_one_line(finished: Path, here: Path, given: list[str], message: str) -> None:
    (here / "notes.txt").write_text("mine")
    result = run("export", "--store", str(finished), *given)
    assert result.exit_code == 2
    assert message in result.output and len(result.output.strip().splitlines()) == 1
    assert "secret" not in result.output
