"""Outcomes and teachers from tables: the same scores as the trees they were written from, and clear errors."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from flows.command.configuration import ConfigurationError, checked
from schemas.config import Branching, ReverseKL
from schemas.pipeline import diagnosis_stages
from tasks.calibration.chain import directions
from tasks.calibration.simulate import Rolled, draw, roll
from tasks.calibration.suite import Family, OracleQuestion, make_question
from tasks.inputs.errors import InputError
from tasks.run.keys import RunKeys
from tasks.run.session import start_session
from tasks.stages.trees.design import design_round, tree_of
from tasks.stages.trees.planner import CompletedRound
from tasks.statistics.csr import owners
from tests.helpers.command import Command
from tests.helpers.places import ROOT


def question_rows(q: OracleQuestion, rolled: Rolled, draws: int, seed: int) -> tuple[list[Any], dict[str, list[Any]]]:
    """A node at every decision, all of its tokens drawn, as rows of a table; and those of each teacher."""
    chain = rolled.chain
    nodes = np.flatnonzero(rolled.frame.leverage > 1e-3)
    everything = Branching(head=chain.tokens, tail=2, tail_limit=0.0, allocation="equal")
    design = design_round(rolled.frame, nodes, np.ones(len(nodes)), everything, draws)
    launches = design.launches(rolled.frame.offsets)
    outcome = draw(rolled, launches, np.random.default_rng(seed))
    tree = tree_of(rolled.frame, [CompletedRound(design, launches, outcome)])
    at = tree["node"][owners(tree["branch_offsets"])]
    rollout, depth, state = at // chain.length, rolled.depth[at], rolled.state[at]
    rows = [
        {
            "question_id": q.id,
            "rollout_id": int(r),
            "position": int(t),
            "token_id": int(token),
            "student_prob": float(p),
            "successes": int(s),
            "draws": int(n),
            "correct": bool(rolled.arrays["correct"][r]),
            "token": f"t{token}",
            "sampled": bool(rolled.arrays["tokens"][place] == token),
        }
        for r, t, token, p, s, n, place in zip(
            rollout, depth, tree["branch_token"], tree["branch_prob"], tree["successes"], tree["draws"], at, strict=True
        )
    ]
    teachers = {
        name: [
            {**{k: row[k] for k in ("question_id", "rollout_id", "position", "token_id")}, "teacher_prob": float(t)}
            for row, t in zip(rows, teacher.rows[teacher.kinds[depth], state, tree["branch_token"]], strict=True)
        ]
        for name, teacher in q.teachers.items()
    }
    return rows, teachers


@pytest.fixture(scope="module")
def recorded() -> tuple[list[OracleQuestion], list[Rolled], list[Any], dict[str, list[Any]]]:
    family = Family(64, "clear", "even")
    questions = [make_question(family, n, 0) for n in range(6)]
    rolled = [roll(q.student, q.id, 3, 0, np.random.default_rng(n)) for n, q in enumerate(questions)]
    rows: list[Any] = []
    teachers: dict[str, list[Any]] = {}
    for n, (q, r) in enumerate(zip(questions, rolled, strict=True)):
        own, theirs = question_rows(q, r, 800, n)
        rows += own
        for name, probs in theirs.items():
            teachers.setdefault(name, []).extend(probs)
    return questions, rolled, rows, teachers


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    table = pl.DataFrame(rows, infer_schema_length=None)
    if path.suffix == ".parquet":
        table.write_parquet(path)
    elif path.suffix == ".csv":
        table.write_csv(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def configuration(tmp_path: Path, rows: list[Any], teachers: dict[str, list[Any]], kind: str) -> dict[str, Any]:
    return {
        "name": "recorded",
        "store": str(tmp_path / "store"),
        "tree": {"kind": "recorded", "path": write(tmp_path / f"outcomes.{kind}", rows)},
        "teachers": [
            {"kind": "recorded", "name": name, "path": write(tmp_path / f"{name}.{kind}", teachers[name])}
            for name in ("good", "wrong")
        ],
        "losses": ["reverse_kl", {"kind": "jsd", "beta": 0.3}],
        "scores": {"bootstrap": 300, "posterior": 100},
    }


def test_recorded_outcomes_need_no_model(recorded: Any, prefect_environment: dict[str, str], tmp_path: Path) -> None:
    _, _, rows, teachers = recorded
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(configuration(tmp_path, rows, teachers, "jsonl")))
    code = (
        "import sys; from flows.cli import main; sys.argv[1:] = ['run', sys.argv[1]]\n"
        "try: main()\n"
        "finally: assert 'tasks.engines.transformers.scorer' not in sys.modules"
    )
    environment = {**prefect_environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_recorded_outcomes_are_scored(kind: str, recorded: Any, cli: Command, tmp_path: Path) -> None:
    questions, rolled, rows, teachers = recorded
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(configuration(tmp_path, shuffled, teachers, kind)))
    done = cli("run", str(path))
    assert done.exit_code == 0, done.stderr
    run = tmp_path / "store" / "runs" / "recorded"
    tokens, summary = (pl.read_parquet(run / f"{name}.parquet") for name in ("tokens", "summary"))
    assert tokens.height == 2 * 2 * tokens.select("question_id", "rollout_id", "position").unique().height
    assert set(tokens["token"].unique()) <= {f"t{i}" for i in range(14)}
    for name in ("good", "wrong"):
        inner = g_sq = d_sq = 0.0
        for q, r in zip(questions, rolled, strict=True):
            nodes = np.flatnonzero(r.frame.leverage > 1e-3)
            d = directions(q.student, q.teachers[name], ReverseKL())[r.depth[nodes], r.state[nodes]]
            g = q.student.gradients[r.depth[nodes], r.state[nodes]]
            inner, g_sq, d_sq = inner + (g * d).sum(), g_sq + (g * g).sum(), d_sq + (d * d).sum()
        row = summary.filter(
            (pl.col("group") == "all") & (pl.col("teacher") == name) & (pl.col("loss") == "reverse_kl")
        ).row(0, named=True)
        assert row["d_sq"] == pytest.approx(d_sq, rel=1e-6)
        assert row["alignment"] == pytest.approx(inner / np.sqrt(g_sq * d_sq), abs=0.05)
        rollouts = sum(len(r.frame.correct) for r in rolled)
        assert row["gain"] == pytest.approx(inner / np.sqrt(rollouts * d_sq), abs=0.1 / np.sqrt(rollouts))


def broken(rows: list[Any], number: int, **change: Any) -> list[Any]:
    return [{**row, **change} if i == number else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"student_prob": 0.999}, "column 'student_prob': the probabilities of this node's branches sum to"),
        ({"student_prob": 1.5}, "row 6, column 'student_prob': 1.5 is not a probability"),
        ({"successes": 10_000}, "row 6, column 'successes': 10000 is above the row's draws"),
        ({"draws": 1, "successes": 0}, "row 6, column 'draws': 1 is too small"),
        ({"rollout_id": None}, "row 6, column 'rollout_id': missing; every row needs an integer"),
        ({"rollout_id": 9}, "column 'rollout_id': question"),
        ({"position": 1.5}, "row 6, column 'position': 1.5 is not an integer"),
        ({"correct": "maybe"}, "row 6, column 'correct': 'maybe' is not true or false"),
        ({"position": -1}, "row 6, column 'position': -1 is negative"),
    ],
)
def test_bad_outcomes_are_refused_by_row_and_column(
    change: dict[str, Any], line: str, recorded: Any, tmp_path: Path
) -> None:
    _, _, rows, teachers = recorded
    data = configuration(tmp_path, rows, teachers, "jsonl")
    write(tmp_path / "outcomes.jsonl", broken(rows, 5, **change))
    with pytest.raises(InputError) as error:
        start_session(checked(data))
    assert line in str(error.value) and str(error.value).startswith("tree.path: ")


def test_other_bad_tables_are_refused(recorded: Any, tmp_path: Path) -> None:
    _, _, rows, teachers = recorded
    data = configuration(tmp_path, rows, teachers, "jsonl")

    def refused(file: str, content: list[Any], line: str) -> None:
        good = (tmp_path / file).read_text()
        write(tmp_path / file, content)
        with pytest.raises(InputError) as error:
            start_session(checked(data))
        assert line in str(error.value)
        (tmp_path / file).write_text(good)

    refused("outcomes.jsonl", [*rows, rows[3]], f"row {len(rows) + 1}, column 'token_id'")
    flipped = broken(rows, 5, correct=not rows[5]["correct"])
    refused("outcomes.jsonl", flipped, "column 'correct': rollout 0 of question")
    refused("outcomes.jsonl", [{k: v for k, v in r.items() if k != "draws"} for r in rows], "has no column 'draws'")
    refused("good.jsonl", teachers["good"][1:], "has no row for question")
    refused("good.jsonl", broken(teachers["good"], 2, teacher_prob=0.9999), "column 'teacher_prob': the probabilities")
    refused("good.jsonl", [*teachers["good"], teachers["good"][0]], "repeats the branch of row 1")
    refused("wrong.jsonl", broken(teachers["wrong"], 0, teacher_prob="much"), "teachers.1.path")
    start_session(checked(data))


def test_recorded_and_made_do_not_mix(recorded: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    _, _, rows, teachers = recorded
    data = configuration(tmp_path, rows, teachers, "jsonl")
    for change, line in (
        ({"student": {"path": "x"}}, "student: given, but recorded outcomes need none"),
        ({"teachers": [{"name": "self"}]}, "teachers.0.kind: 'model', but the tree is recorded"),
        ({"losses": [{"kind": "top_k"}]}, "losses.0: 'top_k' needs whole distributions"),
    ):
        with pytest.raises(ConfigurationError) as error:
            checked({**data, **change})
        assert line in str(error.value)
    with pytest.raises(ConfigurationError, match=r"teachers\.0\.kind: 'recorded', but the tree is forced"):
        checked({**settings, "teachers": data["teachers"]})
    with pytest.raises(ConfigurationError, match="student: missing"):
        checked({name: value for name, value in settings.items() if name != "student"})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(data))
    refused = CliRunner().invoke(app, ["rank", str(path)])
    assert refused.exit_code == 2 and "a ranking needs rollouts of a model" in refused.output


def test_keys_follow_the_rows_and_not_their_place(recorded: Any, tmp_path: Path) -> None:
    _, _, rows, teachers = recorded
    data = configuration(tmp_path, rows, teachers, "jsonl")

    def keys() -> RunKeys:
        return start_session(checked(data)).keys

    def signals_of(found: RunKeys, question: str) -> dict[Any, str]:
        return found.of_stage("distillation", question)

    before = keys()
    write(tmp_path / "outcomes.jsonl", rows[::-1])
    assert sorted(keys().references(diagnosis_stages())) == sorted(before.references(diagnosis_stages()))
    write(tmp_path / "outcomes.jsonl", broken(rows, 5, successes=rows[5]["successes"] - 1))
    changed = keys()
    first = rows[0]["question_id"]
    assert changed.key("trees", first) != before.key("trees", first)
    others = [i for i in before.questions if i != first]
    assert all(changed.key("trees", i) == before.key("trees", i) for i in others)
    write(tmp_path / "outcomes.jsonl", rows)
    write(tmp_path / "good.jsonl", broken(teachers["good"], 0, teacher_prob=1e-9))
    changed = keys()
    assert changed.key("trees", first) == before.key("trees", first)
    a, b = signals_of(before, first), signals_of(changed, first)
    assert {s for s in a if a[s] != b[s]} == {s for s in a if s.teacher == "good"}


def test_the_temperature_of_recorded_outcomes_is_in_the_keys(recorded: Any, tmp_path: Path) -> None:
    """Gradients are divided by it, and no rollouts' key of a recorded run tells it."""
    _, _, rows, teachers = recorded
    data = configuration(tmp_path, rows, teachers, "jsonl")
    one, half = (start_session(checked({**data, "sampling": {"temperature": t}})) for t in (1.0, 0.5))
    ids = one.keys.questions
    assert one.keys.aggregate(ids) != half.keys.aggregate(ids)
    for i in ids:
        assert one.keys.key("ideal", i) != half.keys.key("ideal", i)
        assert not set(one.keys.of_stage("alignment", i).values()) & set(half.keys.of_stage("alignment", i).values())
        for stage in ("rollouts", "trees", "prior", "distillation"):  # none of these reads it
            assert one.keys.of_stage(stage, i) == half.keys.of_stage(stage, i)
