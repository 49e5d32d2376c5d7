"""What an export writes: weights that are aligned and reproducible, a rule that any Python can read, and its folder."""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from schemas.signals import Signal
from schemas.token_weights import WEIGHTS
from tasks.inputs.errors import InputError
from tasks.outputs.export import folder as folders
from tasks.outputs.export import make as made
from tasks.outputs.export.glue import TARGETS, TRAINERS, python_files
from tasks.outputs.export.make import export_run, verdict
from tasks.outputs.export.source import _named, open_run
from tasks.stages.aggregate import token_choice, token_weights
from tasks.stages.aggregate.token_rule_fit import FEATURES, RULES, Rule, design, known, weights
from tasks.store.atomic import write_whole
from tasks.store.store import Store, StoreError
from tests.helpers.places import ROOT

LARGE = Signal("large", "none", "reverse_kl")


@pytest.fixture
def scratch(finished: Path, tmp_path: Path) -> Path:
    """A copy of the store that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "scratch"))


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def artefacts(store: Path, question: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for stage, key in json.loads((store / "runs/small/run.json").read_text())["artefacts"][question]:
        found.setdefault(stage, []).append(key)
    return found


@pytest.mark.parametrize("to", TARGETS)
def test_every_target_has_its_files(finished: Path, tmp_path: Path, to: str) -> None:
    told = export_run(str(finished), "small", to, output=tmp_path / "out")
    index = json.loads((tmp_path / "out" / "export.json").read_text())
    assert index == {name: value for name, value in told.items() if name != "folder"}
    assert index["finished"] and (index["to"], index["run"], index["schema"]) == (to, "small", 1)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*index["files"], "export.json"}
    for name, digest in index["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert ("weights.parquet" in index["files"]) == (to != "jsonl")
    assert ("weights.jsonl" in index["files"]) == (to != "parquet")
    assert set(index["files"]) & set(TRAINERS.values()) == ({TRAINERS[to]} if to in TRAINERS else set())
    for name in index["files"]:
        if name.endswith(".py"):
            compile((tmp_path / "out" / name).read_bytes(), name, "exec")


def test_weights_belong_to_the_tokens_of_the_rollouts(finished: Path, tmp_path: Path) -> None:
    told = export_run(str(finished), "small", "trl", signal="large/none/reverse_kl", output=tmp_path)
    table = pl.read_parquet(tmp_path / "weights.parquet")
    assert table.columns == list(WEIGHTS)
    assert pl.read_parquet_metadata(tmp_path / "weights.parquet")["opdscope_schema"] == "1"
    assert [str(dtype) for dtype in table.dtypes] == [column.dtype for column in WEIGHTS.values()]
    lines = [json.loads(line) for line in (tmp_path / "weights.jsonl").read_text().splitlines()]
    opened = Store(str(finished))
    for question, part in table.group_by("question_id", maintain_order=True):
        keys = artefacts(finished, str(question[0]))
        rollouts = opened.need("rollouts", keys["rollouts"][0]).arrays
        tree = opened.need("trees", keys["trees"][0]).arrays
        assert part["token_id"].to_list() == rollouts["tokens"].tolist()
        assert part["entropy"].to_list() == pytest.approx(tree["entropy"].tolist())
        nodes = set(np.unique(tree["node"][np.diff(tree["branch_offsets"]) > 1]).tolist())
        assert set(np.flatnonzero(part["source"] == "drawn").tolist()) == nodes
        of_question = [row for row in lines if row["question_id"] == question[0]]
        for row, start, end in zip(of_question, rollouts["offsets"][:-1], rollouts["offsets"][1:], strict=True):
            assert row["prompt_ids"] == rollouts["prompt"].tolist()
            assert row["token_ids"] == rollouts["tokens"][start:end].tolist()
            assert row["weights"] == part["weight"][start:end].to_list()
    inside = table.filter(pl.col("estimate").is_not_null())
    assert (inside["estimate_low"] <= inside["estimate"]).all() and (
        inside["estimate"] <= inside["estimate_high"]
    ).all()
    assert inside["weight"].to_list() == pytest.approx(inside["estimate"].clip(0, 10).to_list())
    assert told["drawn"] + told["predicted"] + told["none"] == table.height
    assert (table["p_positive"].is_not_null() == (table["source"] == "drawn")).all()
    assert set(zip(table["teacher"], table["context"], table["loss"], strict=True)) == {tuple(LARGE)}


def test_the_gain_of_equal_weights_is_that_of_the_summary(finished: Path, tmp_path: Path) -> None:
    told = export_run(str(finished), "small", "parquet", signal="self/answer/reverse_kl", output=tmp_path)
    summary = pl.read_parquet(finished / "runs/small/summary.parquet").filter(
        (pl.col("group") == "all") & (pl.col("teacher") == "self") & (pl.col("context") == "answer")
    )
    found = told["gains"][0]
    expected = summary.filter(pl.col("loss") == "reverse_kl").row(0, named=True)
    assert found["tokens"] == "all" and found["gain"] == pytest.approx(expected["gain"])
    # the same replicates, of questions; the summary resamples rollouts where few questions carry signal
    if expected["carrying"] == told["questions"]:
        assert found["gain_low"] == pytest.approx(expected["gain_low"])


def test_predicted_weights_are_those_of_the_rule_beside_them(finished: Path, tmp_path: Path) -> None:
    told = export_run(str(finished), "small", "jsonl", signal="large/none/reverse_kl", output=tmp_path / "a")
    export_run(str(finished), "small", "parquet", signal="large/none/reverse_kl", output=tmp_path / "b")
    rule, table = module(tmp_path / "a" / "opdscope_rule.py"), pl.read_parquet(tmp_path / "b" / "weights.parquet")
    place = pl.col("position") / pl.len().over("question_id", "rollout_id")
    part = table.with_columns(place.alias("place")).filter(pl.col("source") == "predicted")
    columns = {"entropy": "entropy", "log_ratio": "log_ratio", "divergence": "divergence"}
    columns |= {"position": "place", "probability": "student_prob"}
    values = {name: part[column].to_list() for name, column in columns.items()}
    estimate = np.array(
        [rule.estimate("full", **dict(zip(values, row, strict=True))) for row in zip(*values.values(), strict=True)]
    )
    assert part["estimate"].to_numpy() == pytest.approx(estimate, rel=1e-9)  # one scale for both
    assert told["scale"] == json.loads((tmp_path / "b" / "rule.json").read_text())["rules"]["full"]["scale"]


@dataclass(frozen=True)
class Sums:
    """What a rule is fitted to and judged by, of one question, read from the artefacts by hand."""

    features: Any
    d_sq: Any
    node: Any
    inner: Any
    rollouts: int

    @classmethod
    def of(cls, q: Any) -> "Sums":
        d, tree, offsets = q.distillation[LARGE], q.tree, np.asarray(q.rollouts["offsets"])
        ratio = np.log(d["teacher_token_prob"]) - np.log(tree["token_prob"])
        lengths = np.diff(offsets)
        columns = {
            "one": np.ones(offsets[-1]),
            "entropy": tree["entropy"] / (1 + tree["entropy"]),
            "log_ratio": ratio / (1 + np.abs(ratio)),
            "divergence": d["kl"] / (1 + d["kl"]),
            "position": np.concatenate([np.arange(n) / n for n in lengths]),
            "probability": tree["token_prob"],
        }
        inner = np.nan_to_num(q.alignment[LARGE]["inner"]) * q.weight
        return cls(columns, np.asarray(d["d_sq"]), np.asarray(tree["node"]), inner, len(lengths))

    def x(self, names: Sequence[str]) -> Any:
        return np.stack([self.features[name] for name in ("one", *names)], axis=1)


def by_hand(questions: Sequence[Sums], names: Sequence[str]) -> Any:
    """Coefficients, times the scale at which the estimates leave sum |d|^2 as it is."""
    norm = sum(q.x(names).T @ (q.x(names) * q.d_sq[:, None]) for q in questions)
    inner = sum(q.x(names)[q.node].T @ q.inner for q in questions)
    ridge = 0.01 * np.diag([0.0] + [np.trace(norm[1:, 1:]) / len(names)] * len(names))
    beta = np.linalg.solve(norm + ridge, inner)
    return beta * np.sqrt(norm[0, 0] / (beta @ norm @ beta))


def test_judged_and_exported_rules_have_one_scale(finished: Path, tmp_path: Path) -> None:
    export_run(str(finished), "small", "parquet", signal="large/none/reverse_kl", output=tmp_path)
    told = json.loads((tmp_path / "rule.json").read_text())["rules"]
    every = [Sums.of(q) for q in open_run(Store(str(finished)), "small").scores([LARGE])]
    for name, features in RULES.items():
        whole, inner, norm = by_hand(every, features), 0.0, 0.0
        assert [told[name]["constant"], *told[name]["coefficients"].values()] == pytest.approx(list(whole))
        length = sum((q.d_sq * np.clip(q.x(features) @ whole, 0, 10) ** 2).sum() for q in every)
        assert told[name]["length"] == pytest.approx(np.sqrt(length / sum(q.d_sq.sum() for q in every)))
        for i, q in enumerate(every):
            of_fold = by_hand([other for j, other in enumerate(every) if j % 5 != i % 5], features)
            w = np.clip(q.x(features) @ of_fold, 0, 10)
            inner, norm = inner + (w[q.node] * q.inner).sum(), norm + (w**2 * q.d_sq).sum()
        assert told[name]["gain"] == pytest.approx(inner / np.sqrt(norm * sum(q.rollouts for q in every)))


def test_lengths_are_those_of_the_weights(finished: Path, tmp_path: Path) -> None:
    for mask in (False, True):
        told = export_run(str(finished), "small", "parquet", mask=mask, output=tmp_path)
        table = pl.read_parquet(tmp_path / "weights.parquet")
        squares = table.select((pl.col("weight").fill_null(0) ** 2 * pl.col("d_sq")).sum(), total=pl.col("d_sq").sum())
        assert told["length"] == pytest.approx(np.sqrt(squares["weight"][0] / squares["total"][0]))
        assert not mask or told["length"] < 1


def test_spread_is_of_the_signal_that_a_token_follows(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_turns(x: Any, *_: Any) -> Any:
        return np.arange(x.shape[1]) % len(x)

    monkeypatch.setattr(token_choice, "by_token", by_turns)
    told = export_run(str(finished), "small", "parquet", choose="token", output=tmp_path / "all")
    assert len(told["spread"]) > 1
    table = pl.read_parquet(tmp_path / "all" / "weights.parquet").filter(pl.col("source") == "predicted")
    for name, spread in told["spread"].items():
        alone = export_run(str(finished), "small", "parquet", signal=name, output=tmp_path / "one")
        assert spread / told["scale"] == pytest.approx(alone["spread"][name] / alone["scale"])
        of_signal = table.filter(pl.concat_str("teacher", "context", "loss", separator="/") == name)
        half = of_signal.select((pl.col("estimate_high") - pl.col("estimate_low")) / 2).to_series()
        assert len(half) and half.to_list() == pytest.approx([1.959964 * spread] * len(half), rel=1e-6)
    assert len({round(value, 9) for value in told["spread"].values()}) == len(told["spread"])


def test_an_export_is_the_same_every_time(finished: Path, tmp_path: Path) -> None:
    one, two = (export_run(str(finished), "small", "trl", choose="token", output=tmp_path / n) for n in ("a", "b"))
    assert one["files"] == two["files"] and one["gains"] == two["gains"]


def test_the_python_module_is_the_fit_whatever_it_is_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rules = {name: Rule(of, 0.0, (3.0, *rng.standard_normal(len(of) - 2), -4.0), 1.0) for name, of in RULES.items()}
    values = {
        "entropy": rng.exponential(size=200),
        "log_ratio": 20 * rng.standard_normal(200),
        "divergence": rng.exponential(size=200),
        "position": rng.random(200),
        "probability": rng.random(200),
    }
    for mask in (False, True):
        files = python_files("jsonl", "run", LARGE, rules, mask, 1.0)
        (tmp_path / "opdscope_rule.py").write_bytes(files["opdscope_rule.py"])
        found = module(tmp_path / "opdscope_rule.py")
        assert LARGE._asdict() == found.SIGNAL and mask is found.MASK and found.MOST == 10.0
        for name, rule in rules.items():
            of = {f: values[f] for f in rule.features}
            expected = weights(rule.estimate(design(values, rule.features)), mask)
            assert 0 < (expected > 0).sum() < 200
            assert np.abs(np.array(found.weights(name, **of)) - expected).max() < 1e-12
            assert np.abs(found.weight(name, **of) - expected).max() < 1e-12
            tensors = {f: torch.from_numpy(v) for f, v in of.items()}
            assert (found.weight(name, **tensors) - torch.from_numpy(expected)).abs().max() < 1e-12
    with pytest.raises(TypeError, match="rule 'student' needs entropy, position, probability; given are entropy"):
        found.weight("student", entropy=1.0)
    with pytest.raises(ValueError, match="differ in length"):
        found.weights("student", entropy=[1.0], position=[0.0], probability=[0.5, 0.5])
    assert found.positions(4) == [0, 0.25, 0.5, 0.75]


def test_the_module_needs_nothing_but_python() -> None:
    for name, content in python_files("trl", "run", LARGE, {}, False, 1.0).items():
        imported = [line for line in content.decode().splitlines() if line.startswith(("import ", "from "))]
        allowed = {"opdscope_rule.py": [], "opdscope_replay.py": ["import json", "from pathlib import Path"]}
        assert imported == allowed.get(name, imported)


@pytest.mark.parametrize("name", ['"""\nimport os', "\\", 'a" + "b', "{{ x }}", "ü '", "'''"])
def test_names_stay_text_in_python(name: str, tmp_path: Path) -> None:
    rules = {n: Rule(of, 1.0, (0.5,) * len(of), 1.0) for n, of in RULES.items()}
    signal = Signal(name, name, "reverse_kl")
    for to in TRAINERS:
        for file, content in python_files(to, name, signal, rules, False, 1.0).items():
            compile(content, file, "exec")
    (tmp_path / "opdscope_rule.py").write_bytes(
        python_files("jsonl", name, signal, rules, False, 1.0)["opdscope_rule.py"]
    )
    found = module(tmp_path / "opdscope_rule.py")
    assert signal._asdict() == found.SIGNAL and not hasattr(found, "os")
    assert name.strip().splitlines()[-1] in (found.__doc__ or "")


def test_rule_json_says_what_the_rule_is_worth(finished: Path, tmp_path: Path) -> None:
    told = export_run(str(finished), "small", "jsonl", mask=True, output=tmp_path)
    rule = json.loads((tmp_path / "rule.json").read_text())
    run = json.loads((finished / "runs/small/run.json").read_text())
    assert (rule["schema"], rule["aggregate"], rule["mask"]) == (1, run["aggregate"], True)
    assert rule["student"]["path"] == run["configuration"]["student"]["path"]
    assert list(rule["features"]) == list(FEATURES) and rule["signal"] == told["signal"]
    for name, of in rule["rules"].items():
        assert list(of["coefficients"]) == list(RULES[name])
        assert {"gain", "additional_gain_low", "correlation", "correlation_high", "share", "better"} <= set(of)
        assert of["verdict"] == told["rule"][name]["verdict"]
    assert set(pl.Series([json.loads(line)["weights"] for line in (tmp_path / "weights.jsonl").open()]).explode()) <= {
        0.0,
        1.0,
        None,
    }


def row(**figures: float) -> dict[str, Any]:
    return {"gain": 0.1, "gain_low": 0.05, "additional_gain_low": 0.01, "additional_gain_high": 0.03} | figures


@pytest.mark.parametrize(
    ("figures", "better", "said"),
    [
        ({}, True, "is better than equal weights on other questions"),
        ({"gain_low": -0.01}, False, "avoids harm, but is not shown to help: give another signal"),
        ({"additional_gain_low": -0.01}, False, "is not shown to be better than equal weights on other questions"),
        ({"additional_gain_low": -0.03, "additional_gain_high": -0.01}, False, "is worse than equal weights on other"),
        ({"gain": float("nan")}, False, "keeps no token that is known to help"),
        ({"additional_gain_low": float("nan")}, False, "is not judged: too few questions carry signal"),
    ],
)
def test_verdicts_are_plain(figures: dict[str, float], better: bool, said: str) -> None:
    found = verdict(row(**figures), "it")
    assert found["better"] is better and found["verdict"].startswith(f"it {said}")


@pytest.mark.parametrize("choose", ["question", "token"])
def test_choices_are_written_by_token(finished: Path, tmp_path: Path, choose: str) -> None:
    told = export_run(str(finished), "small", "parquet", choose=choose, output=tmp_path)
    table = pl.read_parquet(tmp_path / "weights.parquet")
    assert set(table["loss"]) == {"reverse_kl"} and "is" in told["chosen"]["verdict"]
    assert [r["tokens"] for r in told["gains"]] == ["all", "chosen", *RULES, "replay"]
    by_question = table.group_by("question_id").agg(pl.col("teacher", "context").n_unique())
    if choose == "question":
        assert by_question["teacher"].to_list() == by_question["context"].to_list() == [1] * 6


def test_a_folder_of_someone_else_is_left_alone(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for given, why in ((tmp_path, "contains other files"), (tmp_path / "notes.txt", "is a file")):
        with pytest.raises(InputError, match=f"--output: .*{why}; give a"):
            export_run(str(finished), "small", "jsonl", output=given)
    for content in ("{}", "[1]", "not json", '{"kind": "other"}'):
        (tmp_path / "export.json").write_text(content)
        with pytest.raises(InputError, match="contains other files"):
            export_run(str(finished), "small", "jsonl", output=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_earlier_export_is_replaced(finished: Path, tmp_path: Path) -> None:
    export_run(str(finished), "small", "trl", output=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    told = export_run(str(finished), "small", "jsonl", output=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {*told["files"], "export.json", "notes.txt"}
    assert "opdscope_trl.py" not in told["files"]


def test_a_killed_export_says_that_it_is_not_finished(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_run(str(finished), "small", "trl", output=tmp_path)
    put = write_whole

    def killed(path: Path, content: bytes) -> None:
        if path.name == "rule.json":
            (path.parent / f".rule.json.{'0' * 32}").write_bytes(content[:10])
            raise KeyboardInterrupt
        put(path, content)

    monkeypatch.setattr(f"{folders.__name__}.write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        export_run(str(finished), "small", "jsonl", output=tmp_path)
    index = json.loads((tmp_path / "export.json").read_text())
    assert (index["finished"], index["files"]) == (False, {})
    monkeypatch.undo()
    told = export_run(str(finished), "small", "jsonl", output=tmp_path)
    assert told["finished"] and {p.name for p in tmp_path.iterdir()} == {*told["files"], "export.json"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "none"}, "RUN: 'none' is not in .*; runs there: small"),
        ({"name": "../runs/small"}, "RUN: '../runs/small' is not in"),
        ({"to": "grpo"}, "--to: 'grpo' is not one of verl, trl, prime-rl, miles, nemo-rl, tinker, jsonl, parquet"),
        ({"choose": "best"}, "--choose: 'best' is not one of run, question, token"),
        (
            {"signal": "large/none"},
            "--signal: 'large/none' is no signal of 'small'; there are large/none/reverse_kl, self/",
        ),
        ({"signal": "large/none/minillm"}, "--signal: 'large/none/minillm' needs draws"),
        ({"signal": "self/none/reverse_kl"}, "--signal: 'self/none/reverse_kl' equals the student"),
    ],
)
def test_bad_arguments_are_named(finished: Path, tmp_path: Path, given: dict[str, str], message: str) -> None:
    told: dict[str, Any] = {"name": "small", "to": "jsonl", "output": tmp_path / "out", **given}
    with pytest.raises(InputError, match=message):
        export_run(str(finished), **told)
    assert not (tmp_path / "out").exists()


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--store: .* does not exist; give the store of a run"):
        export_run(str(tmp_path / "none"), "small", "jsonl", output=tmp_path / "out")


def edit(store: Path, **fields: Any) -> None:
    path = store / "runs/small/run.json"
    run = json.loads(path.read_text())
    run["configuration"] |= fields.pop("configuration", {})
    path.write_text(json.dumps(run | fields))


def test_runs_that_tell_no_weights(scratch: Path, tmp_path: Path) -> None:
    whole = (scratch / "runs/small/run.json").read_bytes()
    windows = {"tree": {"kind": "windows"}, "losses": [{"kind": "reverse_kl"}]}
    for fields, message in (
        ({"configuration": windows}, "tree.kind of 'small' is windows, whose nodes are no sample of all tokens"),
        ({"configuration": {"seed": "x"}}, "run.json of 'small' is of another version: seed: .*; run it again"),
        ({"questions": ["chain-001"]}, "'small' has fewer than 2 questions"),
        ({"questions": ["chain-001", "gone"]}, "run.json of 'small' lacks 'gone'; run it again"),
        ({"artefacts": {"chain-001": []}}, "run.json of 'small' lacks 'rollouts'"),
        ({"configuration": {"losses": [{"kind": "reverse_kl"}]}}, "run.json of 'small' lacks 'distillation of chain-"),
        ({"configuration": {"losses": [{"kind": "minillm"}, {"kind": "dr_grpo"}]}}, "all losses of 'small' need draws"),
    ):
        edit(scratch, **fields)
        with pytest.raises(InputError, match=f"RUN: {message}"):
            export_run(str(scratch), "small", "jsonl", output=tmp_path / "out")
        (scratch / "runs/small/run.json").write_bytes(whole)
    (scratch / "runs/small/run.json").write_text("{")
    with pytest.raises(InputError, match="RUN: 'small' is not done, or damaged; run it again"):
        export_run(str(scratch), "small", "jsonl", output=tmp_path / "out")
    (scratch / "runs/small/run.json").unlink()
    (scratch / "runs/small/rank.json").write_text("{}")
    with pytest.raises(InputError, match="RUN: 'small' is a ranking, which has no nodes; run it with opdscope run"):
        export_run(str(scratch), "small", "jsonl", output=tmp_path / "out")


def test_damage_is_told(scratch: Path, tmp_path: Path) -> None:
    table = scratch / "runs/small/summary.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole[:-5])
    with pytest.raises(StoreError, match=r"summary.parquet of run 'small' .* does not match its digest"):
        export_run(str(scratch), "small", "jsonl", output=tmp_path / "out")
    table.write_bytes(whole)
    key = artefacts(scratch, "chain-003")["alignment"][0]
    (scratch / "alignment" / key / "artefact.zarr.zip").write_bytes(b"gone")
    with pytest.raises(StoreError, match=f"alignment/{key} is missing; run again to make it"):
        export_run(str(scratch), "small", "jsonl", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_tells_nothing_is_named(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(token_weights), "known", nothing_of(known))
    with pytest.raises(InputError, match=r"--signal: .* has no token of which entropy, log_ratio, .* are known"):
        export_run(str(finished), "small", "jsonl", output=tmp_path / "out")


def nothing_of(of: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """What is known of tokens, without the teacher's part."""
    return lambda q, signal: (found := of(q, signal)) | {"log_ratio": np.full_like(found["entropy"], np.nan)}


def test_no_model_is_loaded(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_: pytest.fail("a model was run"))
    assert made.export_run(str(finished), "small", "verl", output=tmp_path / "out")["finished"]


def test_the_readme_lists_every_column() -> None:
    page = (ROOT / "tasks/outputs/export/README.md").read_text()
    for name, column in WEIGHTS.items():
        meaning = column.meaning.replace("|", "&#124;")
        assert f"| `{name}` | {column.dtype} | {meaning} |" in page


def test_the_rule_of_a_token_that_the_teacher_leaves_out_is_finite(finished: Path, tmp_path: Path) -> None:
    export_run(str(finished), "small", "parquet", output=tmp_path / "out")
    rule = module(tmp_path / "out" / "opdscope_rule.py")
    rest = {"entropy": 0.5, "position": 0.1, "probability": 0.3}
    infinite = rule.estimate("full", log_ratio=-float("inf"), divergence=float("inf"), **rest)
    assert infinite == pytest.approx(rule.estimate("full", log_ratio=-1e15, divergence=1e15, **rest), rel=1e-12)
    tensors = {name: torch.tensor([value]) for name, value in rest.items()}
    both = torch.tensor([-torch.inf]), torch.tensor([torch.inf])
    weight = rule.weight("full", log_ratio=both[0], divergence=both[1], **tensors)
    assert torch.isfinite(weight).all()


def test_two_exports_do_not_write_one_folder_at_once(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, put, seen = tmp_path / "out", write_whole, []

    def second(path: Path, content: bytes) -> None:
        put(path, content)
        monkeypatch.setattr(f"{folders.__name__}.write_whole", put)
        with pytest.raises(InputError, match="another export is writing into") as refused:
            export_run(str(finished), "small", "jsonl", output=out)
        seen.append(refused)

    monkeypatch.setattr(f"{folders.__name__}.write_whole", second)
    told = export_run(str(finished), "small", "trl", output=out)
    assert seen and told["finished"]
    for name, digest in told["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest


def test_a_signal_that_names_may_mean_twice_is_not_guessed(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(Store(str(finished)), "small")
    twice = [Signal("a/b", "c", "kl"), Signal("a", "b/c", "kl")]
    monkeypatch.setattr("tasks.outputs.export.source.signals", lambda config: twice)
    with pytest.raises(InputError, match="stands for several signals of 'small'; there are a/b / c / kl, a / b/c / kl"):
        _named(run, "a/b/c/kl", twice)
    run = replace(run, usable=twice)
    assert _named(run, "a/b / c / kl", twice) == twice[0]
