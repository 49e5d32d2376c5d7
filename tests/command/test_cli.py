"""The commands as a user calls them: bad input, plan, run, and what a second run does."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from flows.command.configuration import merged
from schemas.tables import RANKS, RUN_TABLES
from tests.helpers.command import Command
from tests.helpers.places import ROOT

CLI = [sys.executable, "-m", "flows.cli"]


def invoke(settings: dict[str, Any], tmp_path: Path, override: dict[str, Any], command: str = "run") -> Any:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(merged(settings, override)))
    return CliRunner().invoke(app, [command, str(path)])


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from flows.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'prefect', 'zarr', 'polars', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def tables(questions: Path, tmp_path: Path) -> dict[str, str]:
    """Files of questions that cannot be used."""
    rows = [json.loads(line) for line in questions.read_text().splitlines()]

    def write(name: str, rows: list[dict[str, Any]]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(tmp_path / name)

    (tmp_path / "broken.jsonl").write_text('{"id": 1')
    return {
        "twice": write("twice.jsonl", [*rows, rows[0]]),
        "no summary": write("lacking.jsonl", [{k: v for k, v in r.items() if k != "summary"} for r in rows]),
        "no answer": write("unanswered.jsonl", [{**rows[0], "answer": None}, *rows[1:]]),
        "words": write("words.jsonl", [{**rows[0], "answer": "seven"}]),
        "empty": write("empty.jsonl", []),
        "broken": str(tmp_path / "broken.jsonl"),
    }


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ({"sampling": {"rolouts": 3}}, "sampling.rolouts: unknown field, given 3; did you mean rollouts?"),
        ({"tree": {"nodes": "many"}}, "tree.nodes: input should be a valid integer"),
        ({"tree": {"draws": 9}}, "tree.draws: 9 is too small for two draws per branch"),
        ({"questions": {"path": "/nowhere/q.jsonl"}}, "questions.path: '/nowhere/q.jsonl' does not exist"),
        ({"questions": {"path": "q.txt"}}, "questions.path: 'q.txt' has none of the endings .jsonl, .parquet, .csv"),
        ({"questions": {"path": "<empty>"}}, "is empty; it needs at least one row"),
        ({"questions": {"path": "<broken>"}}, "is not a readable .jsonl file"),
        ({"questions": {"path": "<twice>"}}, "questions.id: 'chain-001' appears twice"),
        ({"questions": {"id": "key"}}, "questions.id: 'key' is not a column"),
        ({"questions": {"path": "<no answer>"}}, "has no 'answer'"),
        (
            {"questions": {"path": "<words>"}},
            "questions.answer: 'seven' of question 'chain-001' is not a finite number",
        ),
        ({"prompt": {"template": "{{ ask }}"}}, "prompt.template: needs {{ ask }}, which question 'chain-001' lacks"),
        (
            {"questions": {"path": "<no summary>"}, "teachers": {"1": {"contexts": ["summary"]}}},
            "teachers[1].contexts[0] (self, summary): needs {{ summary }}, which question 'chain-001' lacks",
        ),
        ({"execution": {"gpu_limit": "gpus"}}, "execution.gpu_limit: 'gpus' needs a running Prefect server"),
        ({"store": "s3://me:word@bucket/x"}, "store: the URL contains a password"),
        ({"student": {"path": "/nowhere/model"}}, "student.path: '/nowhere/model' is not there"),
        ({"student": {"path": "nobody/nothing"}}, "student.path: 'nobody/nothing' is neither a local folder nor a"),
        ({"teachers": {"0": {"model": {"path": "<other>"}}}}, "has a different tokenizer from the student"),
        ({"store": "/proc/nowhere"}, "store: cannot write to '/proc/nowhere'"),
        ({"store": "nosuch://bucket"}, "store: cannot open 'nosuch://bucket'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(
    settings: dict[str, Any],
    tables: dict[str, str],
    models: Path,
    tmp_path: Path,
    override: dict[str, Any],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_model(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("tasks.engines.transformers.loading.load_transformers", no_model)
    text = json.dumps(override)
    for name, path in {**tables, "other": str(models / "other")}.items():
        text = text.replace(f"<{name}>", path)
    result = invoke(settings, tmp_path, json.loads(text))
    assert result.exit_code == 2
    assert line in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_a_missing_or_broken_configuration_file(tmp_path: Path) -> None:
    for name, content, line in (
        ("missing.yaml", None, "does not exist"),
        ("list.yaml", "- a", "not a mapping of fields"),
        ("broken.yaml", "a: [", "is not YAML"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        result = CliRunner().invoke(app, ["run", str(tmp_path / name)])
        assert result.exit_code == 2 and line in result.stderr


def test_run_twice_and_change_a_loss(settings: dict[str, Any], config_file: Path, cli: Command, tmp_path: Path) -> None:
    store = Path(settings["store"])
    first = cli("run", str(config_file))
    assert first.exit_code == 0, first.stderr
    run = json.loads((store / "runs" / "small" / "run.json").read_text())
    assert list(run["stages"]) == ["rollouts", "trees", "ideal", "prior", "distillation", "alignment", "aggregate"]
    assert run["stages"]["trees"]["made"] == 6 and run["stages"]["trees"]["decoded_tokens"] > 0
    outputs = {p.name: p.read_bytes() for p in (store / "runs" / "small").iterdir()}
    tables = {f"{name}.parquet" for name in RUN_TABLES}
    assert set(outputs) == tables | {"report.html", "run.json", "references-diagnose.json"}

    read = {name: pl.read_parquet(store / "runs" / "small" / f"{name}.parquet") for name in RUN_TABLES}
    assert {name: table.columns for name, table in read.items()} == {n: list(c) for n, c in RUN_TABLES.items()}
    tokens, summary = read["tokens"], read["summary"]
    assert tokens.height == 6 * 6 * 3 * 2
    control = tokens.filter((pl.col("teacher") == "self") & (pl.col("context") == "none"))
    assert control["cosine"].is_null().all() and (control["d_sq"] == 0).all()
    whole = summary.filter((pl.col("group") == "all") & (pl.col("context") == "none") & (pl.col("teacher") == "self"))
    assert whole["alignment"].is_null().all() and whole["gain"].is_null().all()
    assert "large" in first.stdout and "undefined" in first.stdout

    second = cli("run", str(config_file))
    assert second.exit_code == 0, second.stderr
    assert "0 artefacts made" in second.stdout and "0 tokens decoded" in second.stdout
    for name in (*tables, "report.html"):
        assert (store / "runs" / "small" / name).read_bytes() == outputs[name]

    changed = cli(
        "run",
        str(config_file),
        "--set",
        "losses.1=total_variation",
        "--name",
        "changed",
    )
    assert changed.exit_code == 0, changed.stderr
    stages = json.loads((store / "runs" / "changed" / "run.json").read_text())["stages"]
    assert [stages[s]["made"] for s in ("rollouts", "trees", "ideal")] == [0, 0, 0]
    assert stages["distillation"]["made"] == stages["alignment"]["made"] == 6 * 3
    assert all(s["decoded_tokens"] == 0 for s in stages.values())

    plan = cli(
        "plan",
        str(config_file),
        "--set",
        "losses.1=total_variation",
        "--set",
        "sampling.rollouts=5",
    )
    assert plan.exit_code == 0 and "rollouts" in plan.stdout and "30" in plan.stdout


def test_a_run_without_a_single_node_ends_in_tables(
    config_file: Path, settings: dict[str, Any], cli: Command, tmp_path: Path
) -> None:
    tree = ["--set", "tree.kind=windows", "--set", "tree.draws=40", "--set", "tree.min_visits=1000"]
    done = cli("run", str(config_file), *tree)
    assert done.exit_code == 0, done.stderr
    folder = Path(settings["store"]) / "runs" / "small"
    assert pl.read_parquet(folder / "tokens.parquet").height == 0
    selection = pl.read_parquet(folder / "selection.parquet")
    assert selection.height > 0 and selection["gain"].is_null().all()
    assert "no position was drawn from: raise tree.draws, or lower tree.min_visits" in done.stdout


def test_rank_and_rank_again(config_file: Path, settings: dict[str, Any], cli: Command, tmp_path: Path) -> None:
    """From outcomes alone, then with values along the rollouts; nothing is made twice, and no tree at all."""
    runs = []
    for name, more in (("one", []), ("two", []), ("three", ["--set", "ranking.segments=3"])):
        done = cli("rank", str(config_file), "--name", name, *more)
        assert done.exit_code == 0, done.stderr
        runs.append(done.stdout)
    store = Path(settings["store"])
    ranks = pl.read_parquet(store / "runs" / "one" / "ranks.parquet")
    assert ranks.columns == list(RANKS) and ranks.height == 3 * 2
    assert ranks["gain"].drop_nulls().is_sorted(descending=True)
    assert ranks.filter((pl.col("teacher") == "self") & (pl.col("context") == "none"))["gain"].is_null().all()
    assert "undefined" in runs[0] and "settled" in runs[0]
    assert "0 artefacts made" in runs[1] and "0 tokens decoded" in runs[1]
    assert "6 artefacts made" in runs[2] and not (store / "trees").exists()


def test_prefect_shows_every_task_of_a_second_run_as_cached(
    config_file: Path, settings: dict[str, Any], cli: Command, prefect_environment: dict[str, str], tmp_path: Path
) -> None:
    for _ in range(2):
        done = cli("run", str(config_file), "--name", "twice")
        assert done.exit_code == 0, done.stderr
    code = """
import asyncio, json
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterName
from prefect.client.schemas.sorting import FlowRunSort
async def main():
    async with get_client() as client:
        for _ in range(100):
            runs = await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=["twice"])),
                sort=FlowRunSort.EXPECTED_START_TIME_ASC)
            tasks = [[(t.name, t.state_name) for t in await client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[r.id])))] for r in runs]
            states = {s for t in tasks for _, s in t}
            if len(tasks) == 2 and len(tasks[0]) == len(tasks[1]) and states <= {"Cached", "Completed"}:
                break
            await asyncio.sleep(0.2)
        print(json.dumps(tasks))
asyncio.run(main())
"""
    shown = subprocess.run(
        [sys.executable, "-c", code], env=prefect_environment, capture_output=True, text=True, check=True
    )
    first, second = json.loads(shown.stdout.splitlines()[-1])
    assert {state for _, state in first} == {"Completed"}
    assert {state for _, state in second} == {"Cached"}
    assert "trees, questions 1-3 of 6" in [name for name, _ in second]

    # one artefact damaged: its task is not cached, nor is what came from it untouched
    store = Path(settings["store"])
    tree = sorted((store / "trees").iterdir())[0] / "artefact.zarr.zip"
    whole = tree.read_bytes()
    tree.write_bytes(whole[:-1] + b"!")
    again = cli("run", str(config_file), "--name", "twice")
    assert again.exit_code == 0 and "1 artefacts made" in again.stdout
    assert json.loads((store / "runs" / "twice" / "run.json").read_text())["stages"]["trees"]["made"] == 1


def test_a_question_whose_rollouts_fail_is_left_out(
    settings: dict[str, Any], models: Path, cli: Command, tmp_path: Path
) -> None:
    """Question 1's prompt makes every rollout hit the limit, by a limit that only its short ones keep."""
    path = tmp_path / "config.yaml"
    override = {"sampling": {"rollouts": 2, "max_tokens": 6}, "name": "failing"}
    path.write_text(yaml.safe_dump(merged(settings, override)))
    done = cli("run", str(path))
    run = json.loads((Path(settings["store"]) / "runs" / "failing" / "run.json").read_text())
    assert done.exit_code == 0, done.stderr
    assert run["left_out"] and len(run["questions"]) + len(run["left_out"]) == 6
    question, reason = next(iter(run["left_out"].items()))
    assert reason == "all 2 rollouts hit the length limit; raise sampling.max_tokens"
    assert f"left out: question {question}" in done.stdout
    tokens = pl.read_parquet(Path(settings["store"]) / "runs" / "failing" / "tokens.parquet")
    assert set(tokens["question_id"]) == set(run["questions"])
    assert question in (Path(settings["store"]) / "runs" / "failing" / "report.html").read_text()


def test_interrupted_by_the_keyboard(config_file: Path, prefect_environment: dict[str, str], tmp_path: Path) -> None:
    here = str(ROOT)
    child = subprocess.Popen(
        [*CLI, "run", str(config_file), "--set", "tree.draws=4000"],
        env={**prefect_environment, "PYTHONPATH": here},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("draws"):
            break
    time.sleep(1)
    child.send_signal(2)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "run again to continue" in errors


def test_environment_keeps_what_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flows.command.environment import prepare

    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "mine"))
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    prepare()
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "mine") and os.environ["DO_NOT_TRACK"] == "1"
