"""The commands of one configuration: what they refuse, what they show of a run, and how they end."""

import io
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from rich.console import Console

from flows.command import guarded as guarded_module
from flows.command import run as module
from flows.command.configuration import ConfigurationError
from flows.command.guarded import BAD_INPUT, FAILED, OK, guarded
from flows.command.places import check_place, on_store
from flows.command.run import load, plan_file, rank_file, run_demo, run_file
from flows.command.terminal import number, rank_table, score, show_table, what_losses_keep, what_would_settle
from flows.diagnose import QuestionsFailedError
from schemas.tables import FORECASTS, SUCCESS
from tasks.engines.protocol import EngineAwayError, EngineError
from tasks.inputs.errors import InputError
from tasks.outputs.files import parquet_bytes
from tasks.stages.aggregate.tables import frame
from tasks.store.outages import StoreAwayError
from tasks.store.store import Store, StoreError


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a server nor files in the folder of the tests."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setattr("flows.service.own_server.server_of_command", nullcontext)
    monkeypatch.setattr(guarded_module, "prepare", lambda: None)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ConfigurationError("a: 1\nb: 2"), BAD_INPUT, "a: 1\nb: 2\n"),
        (InputError("field", "[red]x[/red]"), BAD_INPUT, "field: [red]x[/red]\n"),
        (EngineError("no such device"), BAD_INPUT, "no such device\n"),
        (EngineAwayError("a:on:b"), BAD_INPUT, "a:on:b\n"),  # and no emoji
        (StoreError("s3://user:secret@host is gone"), BAD_INPUT, "s3://...@host is gone\n"),
        (PermissionError(13, "Permission denied", "x"), BAD_INPUT, "[Errno 13] Permission denied: 'x'\n"),
        (StoreError("\x1b[2J\u202e"), BAD_INPUT, "\\x1b[2J\\u202e\n"),
        (StoreError("x" * 5000), BAD_INPUT, "x" * 1000 + "\n"),
        (OSError(28, "No space left on device"), FAILED, "completed work is kept, run again to continue\n"),
        (StoreAwayError("away"), FAILED, "away; completed work is kept, run again to continue\n"),
    ],
)
def test_what_the_user_can_put_right_is_told_in_lines(
    error: Exception, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def action() -> int:
        raise error

    assert guarded(action) == code
    assert capsys.readouterr().err.endswith(told)


def test_a_mistake_of_this_project_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)
    assert guarded(lambda: 7) == 7


def test_overrides_are_laid_over_the_file(config_file: Path, settings: dict[str, Any]) -> None:
    config = load(config_file, ["sampling.rollouts=2", "losses.0=jsd"])
    assert config.sampling.rollouts == 2 and [loss.kind for loss in config.losses] == ["jsd", "forward_kl"]
    with pytest.raises(ConfigurationError, match=r"losses has 2 entries"):
        load(config_file, ["losses.5=jsd"])
    assert load(config_file, []).name == settings["name"]


@pytest.mark.parametrize(
    ("command", "assignments", "told"),
    [
        (run_file, ["sampling.rollouts=0"], "sampling.rollouts: "),
        (run_file, ["student.path=./gone"], "student.path: './gone' is not there"),
        (rank_file, ["sampling.rollouts=1"], "a ranking needs at least two rollouts per question"),
        (partial(plan_file, probe=True), ["questions.path=gone.jsonl"], "questions.path: 'gone.jsonl' does not exist"),
        (partial(plan_file, probe=True), ["nme=x"], "nme: unknown field, given 'x'; did you mean name?"),
        (run_file, ["x"], "--set: 'x' is not of the form field.field=value"),
    ],
)
def test_a_wrong_configuration_ends_before_anything_is_started(
    command: Any, assignments: list[str], told: str, config_file: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "_run_and_show", lambda *_: pytest.fail("a flow was started"))
    assert command(config_file, assignments) == BAD_INPUT
    assert told in capsys.readouterr().err
    assert command(config_file.with_name("gone.yaml"), []) == BAD_INPUT
    assert "gone.yaml' does not exist; give a YAML file" in capsys.readouterr().err


@pytest.mark.parametrize("assignment", ["store=s3://user:secret@host/x", "losses.9=jsd", "sampling.rollouts=-1"])
def test_a_wrong_override_of_the_demo_ends_before_any_training(
    assignment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_follow", lambda _: pytest.fail("the demo was started"))
    assert run_demo([assignment], validate_forecast=False, questions=5, seed=0) == BAD_INPUT
    assert "secret" not in capsys.readouterr().err


def test_a_plan_is_shown_without_a_server(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_file(config_file, [], probe=False) == OK
    out = capsys.readouterr().out
    cells = [line.replace("│", " ").split() for line in out.splitlines()]
    assert ["rollouts", "0", "6", "24", "576", "0"] in cells and ["trees", "0", "6", "432", "9,936", "48"] in cells
    assert ["ranking", "0", "36", "0", "0", "96"] in cells


def test_a_plan_tells_time_and_memory_where_models_are_here(
    config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan_file(config_file, [], probe=True) == OK
    told = capsys.readouterr()
    cells = [line.replace("│", " ").split() for line in told.out.splitlines()]
    assert any(row[:6] == ["trees", "0", "6", "432", "9,936", "48"] and row[7] == "s" for row in cells)
    assert re.search(r"with models: about [\d.]+ s for rank, about [\d.]+ s for run, [\d.]+ GiB of memory", told.out)
    assert "probe: 4 of 4" in told.err
    monkeypatch.setattr("tasks.run.throughput.weights", lambda model: None)
    assert plan_file(config_file, [], probe=True) == OK
    assert "no estimate of time and memory: the weights of a model are not on this machine" in capsys.readouterr().out


SUMMARY = pl.DataFrame(
    [
        {
            "group": "all",
            "bin": "all",
            "teacher": "[bold]t[/bold]",
            "context": "none",
            "loss": "kl",
            "alignment": 0.5,
            "alignment_low": 0.4,
            "alignment_high": 0.6,
            "mean_cosine": None,
            "d_sq": 1.0,
        }
    ]
)


NAMES = ["loss", "covered", "student_kept", "teacher_kept", "without_gradient"]
KEPT = pl.DataFrame([("kl", 1.0, 0.9, 0.8, 0.25)], schema=NAMES, orient="row")
OWN = frame(
    [
        {
            **dict.fromkeys(SUCCESS, 0.0),
            **{"teacher": "[bold]t[/bold]", "context": "none", "own": 0.75, "own_low": 0.5, "own_high": 1.0},
            **{"copied": 0.25, "copied_low": 0.125, "copied_high": 0.5, "answers": 4, "questions": 1},
        }
    ],
    SUCCESS,
)


FORECAST = frame(
    [
        {
            **dict.fromkeys(FORECASTS, 0.0),
            **{"place": 1, "teacher": "[bold]t[/bold]", "context": "none", "loss": "kl", "base": 0.25},
            **{"forecast": 0.5, "forecast_low": 0.375, "forecast_high": 0.75, "p_best": 1.0},
            **{"verdict": "helps", "remark": "copies [bold]much[/bold]"},
        }
    ],
    FORECASTS,
)


def outputs(store: str, **more: Any) -> dict[str, Any]:
    """What a run gives, its tables being there."""
    Store(store).put_bytes(parquet_bytes(SUMMARY), "runs", "small", "summary.parquet")
    Store(store).put_bytes(parquet_bytes(KEPT), "runs", "small", "losses.parquet")
    Store(store).put_bytes(parquet_bytes(OWN), "runs", "small", "success.parquet")
    Store(store).put_bytes(parquet_bytes(FORECAST), "runs", "small", "forecasts.parquet")
    stage = {"made": 1000, "cached": 2, "decoded_tokens": 1234567, "seconds": 1.0}
    return {
        "name": "small",
        "configuration": {"store": store, "scores": {"level": 0.9, "forecast_level": 0.9}},
        "advice": "train with [bold]t[/bold]/none by kl",
        "left_out": {},
        "stages": {"rollouts": stage, "trees": stage},
        "why_unresolved": None,
        "without_signal": ["no signal: 1 of 2 questions [x]"],
        "generated_texts": ["self / summary: 1 of 2 generated texts are kept"],
        **more,
    }


def test_scores_and_figures_of_a_run_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = outputs(str(tmp_path), left_out={"[q] :on:": "cut [x]"}, why_unresolved="few [questions]")
    assert module._follow(lambda: result) == OK
    out = capsys.readouterr().out
    assert "90 % interval" in out and "[bold]t[/bold]" in out and ".50 [.40, .60]" in out
    assert "no signal: 1 of 2 questions [x]\n" in out and ".75 [.50, 1.00]" in out
    assert out.startswith("train with [bold]t[/bold]/none by kl\n") and "helps: copies [bold]much[/bold]" in out
    assert "copied: [bold]t[/bold]/none is right .25 [.12, .50] more often" in out
    assert "kl looks at 90 % of the student's probability" in out
    assert "left out: question [q] :on:: cut [x]\n" in out and "unresolved: few [questions]\n" in out
    assert "2000 artefacts made, 4 from the store, 2,469,134 tokens decoded, 0 s\n" in out
    assert out.endswith(f"{tmp_path}/runs/small/report.html\n")


def test_a_run_of_which_some_questions_failed_is_shown_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> dict[str, Any]:
        raise QuestionsFailedError({"[q]": "ValueError: x"}, outputs(str(tmp_path)))

    assert module._follow(run) == FAILED
    told = capsys.readouterr()
    assert ".50 [.40, .60]" in told.out
    assert told.err == "1 questions failed, run again to try them: [q]: ValueError: x\n"


def test_a_run_of_which_every_question_failed_has_nothing_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> dict[str, Any]:
        raise QuestionsFailedError({f"q{i}": "x" for i in range(7)})

    assert module._follow(run) == FAILED
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("7 questions failed") and told.err.endswith("; and 2 more\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, ".00"), (0.5, ".50"), (-0.5, "-.50"), (0.999, "1.00"), (-1.0, "-1.00"), (10.04, "10.04")],
)
def test_numbers_have_two_decimals(value: float | None, text: str) -> None:
    assert number(value) == text


def test_scores_that_are_none_say_which_kind_of_none() -> None:
    assert score(None) == "no nodes"
    assert score({"alignment": None, "d_sq": 0.0}) == "undefined"
    assert score({"alignment": None, "d_sq": 1.0}) == "unresolved"
    assert score({"alignment": 0.1, "alignment_low": None, "alignment_high": None}) == ".10 [-, -]"


def signal(rank: int | None, teacher: str, **known: float) -> dict[str, Any]:
    names = ("gain", "gain_low", "gain_high", "p_best", "gain_deficit", "gain_deficit_low", "gain_deficit_high")
    updates = ("update_gain", "update_gain_low", "update_gain_high")
    plain = {"rank": rank, "teacher": teacher, "context": "none", "loss": "kl", "questions": 4, "rollouts": 32}
    return {**plain, **dict.fromkeys((*names, *updates)), **known}


RANKS = pl.DataFrame(
    [
        signal(1, "a", gain=0.5, gain_low=0.25, gain_high=0.75, p_best=0.875, gain_deficit=0.0),
        signal(2, "[b]", gain=0.25, gain_deficit=0.25),
        signal(None, "c"),
    ]
)


def test_a_ranking_without_intervals_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    guarded_module.CONSOLE.print(rank_table(RANKS, 0.95))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "a", "none", "kl", "0.5000", "[0.2500,", "0.7500]", "88", "%"] in lines
    assert ["2", "[b]", "none", "kl", "0.2500", "0.2500"] in lines and ["c", "none", "kl", "undefined"] in lines


def test_update_gains_are_shown_where_there_are_some(capsys: pytest.CaptureFixture[str]) -> None:
    known = {"update_gain": -0.25, "update_gain_low": -0.5, "update_gain_high": 0.125}
    ranks = pl.DataFrame([signal(1, "a", gain=0.5, gain_deficit=0.0, **known), signal(None, "c")])
    guarded_module.CONSOLE.print(rank_table(ranks, 0.95))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "a", "none", "kl", "0.5000", "-.25", "[-.50,", ".12]"] in lines and [
        "c",
        "none",
        "kl",
        "undefined",
        "-",
    ] in lines


@pytest.mark.parametrize("terminal", [True, False])
def test_numbers_are_whole_however_long_the_names_are(terminal: bool) -> None:
    """In a terminal of 80 columns names are folded; a file is as wide as it takes."""
    name = "Qwen3-30B-A3B-Instruct-2507-with-a-long-name"
    known = {"gain": 0.1668, "gain_low": 0.0779, "gain_high": 0.2612, "p_best": 0.58}
    ranks = pl.DataFrame([signal(1, name, **known), signal(2, "b", **known, gain_deficit=0.0043)])
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)
    show_table(console, rank_table(ranks, 0.95))
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert told.count("0.1668 [0.0779, 0.2612]") == 2 and "0.0043" in told and "58 %" in told and "\u2026" not in told
    assert (max(map(len, told.splitlines())) <= 80) == terminal and (name in told) != terminal


def test_truncated_losses_say_what_they_look_at() -> None:
    all_of_it = ("jsd", 1.0, 1.0, 1.0, 0.0)
    some = [("[b]k[/b]", 1.0, 0.9, share, 0.25) for share in (0.8, 0.954)]
    kept = pl.DataFrame([all_of_it, *some, ("k", 1.0, 0.5, None, 0.0)], schema=NAMES, orient="row")
    first, second = what_losses_keep(kept)
    assert first == (
        "\\[b]k\\[/b] looks at 90 % of the student's probability and 80-95.4 % of the teachers', "
        "and has no gradient at 25 % of the positions"
    )
    assert second.startswith("k looks at 50 % of the student's probability and an unknown part of the teachers'")
    apart = pl.DataFrame([("kl", 0.75, 1.0, 1.0, 0.0), all_of_it], schema=NAMES, orient="row")
    assert what_losses_keep(apart) == ["kl: with tokenizers of their own, teachers cover 75 % of the positions"]


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"why_unresolved": "always [wrong]", "settled": None}, "not settled: always \\[wrong]"),
        ({"settled": None}, "there are no two signals to compare"),
        ({"settled": True}, "settled: a/none by kl and \\[b]/none by kl are distinguished"),
        ({"settled": False}, "do not differ at all"),
        (
            {"settled": False, "additional_questions": 1200},
            "about 1,200 more questions with 8 rollouts each",
        ),
        (
            {"settled": False, "additional_questions": 12, "additional_rollouts": 3000},
            "or about 3,000 more rollouts of each",
        ),
    ],
)
def test_what_would_settle_a_ranking(result: dict[str, Any], told: str) -> None:
    plain = {"why_unresolved": None, "additional_questions": None, "additional_rollouts": None}
    assert told in what_would_settle(RANKS, {**plain, **result})


@pytest.mark.parametrize("place", ["", " ", "s3://user:secret@bucket", "https://h/x?token=secret", "~nobody-here/x"])
def test_places_that_no_configuration_may_name(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"^--store: ") as error:
        check_place(place)
    assert "secret" not in str(error.value)
    assert on_store(place, lambda *_: pytest.fail("opened")) == BAD_INPUT
    assert "secret" not in capsys.readouterr().err


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone, file = tmp_path / "gone", tmp_path / "file"
    file.write_text("x")
    for place, told in (
        (gone, "does not exist; give the store of a run"),
        (file, "is a file; give the folder of a store"),
    ):
        assert on_store(str(place), lambda *_: pytest.fail("opened")) == BAD_INPUT
        assert told in capsys.readouterr().err.replace("\n", " ")
    assert not gone.exists()
    assert on_store(str(tmp_path), lambda store, console: 5 if store.url == str(tmp_path) else 0) == 5


def test_each_run_of_a_suite_is_planned(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [{**settings, "name": name} for name in ("first", "second")]
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"name": "both", "store": settings["store"], "runs": runs}))
    assert plan_file(path, [], probe=False) == OK
    said = capsys.readouterr().out
    assert said.index("first") < said.index("second") and said.count("what this run would cost") == 2
    assert plan_file(path, ["seed=1"], probe=False) == BAD_INPUT
    assert "is a suite; change its runs" in capsys.readouterr().err
