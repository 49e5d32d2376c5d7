"""The report's file on hostile and on empty input; `test_page.py` opens it in a browser."""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from schemas.config import Scores
from schemas.tables import FORECASTS, SUCCESS
from tasks.outputs.diagnosis import make_tables
from tasks.outputs.report import bundle, rollouts
from tasks.outputs.report.facts import Told
from tasks.outputs.report.overview import THRESHOLDS
from tasks.outputs.report.packing import UNIT, Column, packed
from tasks.outputs.report.page import render
from tasks.outputs.report.rollouts import Rollouts
from tasks.stages.aggregate.tables import frame, tokens_table
from tasks.statistics.estimators import pool_rounds
from tasks.statistics.prior import fit
from tests.helpers.made import made_page, made_question, made_signals
from tests.helpers.oracle import OracleModels, oracle_config, oracle_rollouts, oracle_tree, random_chain, teacher_of
from tests.helpers.places import ROOT
from tests.stages.test_estimators import scored

HOSTILE = "<script>alert(1)</script>\"'&"


def page(texts: str, left_out: dict[str, str], why: str | None = None, lines: Sequence[str] = (), **names: Any) -> str:
    chain = random_chain(3, length=10)
    models = OracleModels(chain, oracle_config(chain, rollouts=6, nodes=30, head=4, tail=2, draws=40))
    taken = oracle_rollouts(models)
    q = scored(models, names.get("teacher", teacher_of(chain, 4, 2.0, 0.5)), taken, oracle_tree(models, taken))
    by_id = dict.fromkeys(range(chain.tokens), texts)
    scores = Scores(bootstrap=200)
    config = models.config.model_copy(update={"scores": scores, "name": "run"})
    shown = Rollouts(list(q.distillation), 1, lambda _: by_id, lambda runs: [texts * len(r) for r in runs], 1.0)
    tables, facts = make_tables(config, [q], lambda _: by_id, fit([pool_rounds(q.tree).outcomes]), shown.add)
    assert np.isfinite(tables["tokens"]["weight"].to_numpy()).all()
    tables |= {"success": frame([], SUCCESS), "forecasts": frame([], FORECASTS)}
    return render(config, facts, tables, shown, left_out, Told(why, lines, "train with t/none by kl"))


def data(html: str, name: str) -> tuple[dict[str, Any], dict[str, list[Any]], bytes]:
    """What the page holds: what its header says besides, places of columns, and their bytes."""
    (text,) = re.findall(rf'<script type="text/plain" id="data-{name}">([^<]*)</script>', html)
    return unpacked(text)


def unpacked(text: str) -> tuple[dict[str, Any], dict[str, list[Any]], bytes]:
    content = gzip.decompress(base64.b64decode(text))
    size = int.from_bytes(content[:4], "little")
    header = json.loads(content[4 : 4 + size])
    return header["meta"], header["columns"], content[4 + size :]


def test_model_output_is_escaped_and_nothing_is_fetched() -> None:
    html = page(HOSTILE, {f"q {HOSTILE}": "all rollouts hit the length limit"})
    assert "<b>Unresolved:</b> <bdi>always wrong" in page("x", {}, "always wrong")
    assert "<script>" not in html and "&lt;script&gt;alert(1)" in html
    for address in ("src=", 'href="http', "@import", "url("):
        assert address not in html
    assert "1 left out" in html
    assert "<bdi>no signal: [1] &lt;b&gt;</bdi>" in page("x", {}, lines=["no signal: [1] <b>"])


def test_the_policy_allows_the_pages_own_script_and_styles_only() -> None:
    html = page("x", {})
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html.replace("&#39;", "'"))
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for kind, found in (
        ("script", re.findall(r'<script type="module">(.*?)</script>', html, re.DOTALL)),
        ("style", re.findall(r"<style>(.*?)</style>", html, re.DOTALL)),
    ):
        (text,) = found
        assert f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert len(re.findall("<script", html)) == 3  # the overview, one question, the module


def test_modules_are_put_together_without_a_name_twice() -> None:
    modules = bundle.modules()
    declared = [
        name
        for source in modules.values()
        for name in re.findall(r"^(?:export )?(?:async )?(?:function|const|class|let) (\w+)", source, re.MULTILINE)
    ]
    assert len(declared) == len(set(declared)) and list(modules)[-1] == bundle.FIRST
    text = bundle.script()
    assert not re.search(r"^(import|export) ", text, re.MULTILINE) and "innerHTML" not in text and "eval(" not in text
    assert "</script" not in text and "</style" not in bundle.style()
    room = ROOT / "tasks" / "outputs" / "report" / "app"
    assert {f"{name}.js" for name in modules} == {p.name for p in room.glob("*.js")}
    for name, source in modules.items():  # each uses what it imports
        body = re.sub(r"^import .*\n", "", source, flags=re.MULTILINE)
        for names, _ in re.findall(r"^import \{([^}]*)\} from \"\./(\w+)\.js\"", source, re.MULTILINE):
            for imported in names.split(", "):
                assert re.search(rf"\b{imported}\b", body), f"{name} imports {imported}"


def test_a_page_of_undefined_scores() -> None:
    html = page("x", {}, teacher=random_chain(3, length=10))
    assert "nan" not in html.split("data-overview")[0].lower()
    meta, _, _ = data(html, "overview")
    assert all(row["alignment"] is None and row["d_sq"] == 0 for row in meta["summary"])


def test_numbers_are_kept_as_precisely_as_said() -> None:
    rng = np.random.default_rng(0)
    rough = rng.normal(0, 1, 999)
    unit, real = rng.uniform(-1, 1, 999), rng.normal(0, 1, 999) * 10.0 ** rng.integers(-9, 9, 999)
    unit[:3], real[:3] = (np.nan, 1.0, -1.0), (np.nan, 0.0, -0.0)
    whole = rng.integers(-(2**31), 2**31 - 1, 999)
    text = packed(
        {"w": Column("int", whole), "u": Column("unit", unit), "r": Column("real", real), "c": Column("rough", rough)},
        {"a": "b"},
    )
    meta, columns, content = unpacked(text)
    assert meta == {"a": "b"}

    def planes(name: str, width: int) -> np.ndarray[Any, Any]:
        start = columns[name][2]
        part = np.frombuffer(content[start : start + 999 * width], np.uint8).reshape(width, 999).T
        return np.ascontiguousarray(part)

    assert (planes("w", 4).view("<i4")[:, 0] == whole).all()
    steps = planes("u", 2).view("<i2")[:, 0]
    assert steps[0] == -32768 and np.abs(steps[1:] / UNIT - unit[1:]).max() <= 0.5 / UNIT + 1e-12
    wide = np.concatenate([np.zeros((999, 1), np.uint8), planes("r", 3)], axis=1)
    floats = np.ascontiguousarray(wide).view("<f4")[:, 0]
    assert np.isnan(floats[0]) and (floats[1:3] == 0).all()
    assert (np.abs(floats[3:] / real[3:] - 1) <= 2**-16).all()
    coarse = (planes("c", 2).view("<u2")[:, 0].astype(np.uint32) << 16).view(np.float32)
    assert (np.abs(coarse / rough - 1) <= 2**-8).all()


def test_thresholds_keep_shares_of_tokens_and_of_the_signal() -> None:
    made = made_page(5, 1, 2, rollouts=2, tokens=20, nodes=10, branches=3)
    meta, _, _ = data(made.html, "overview")
    rows = made.tables["tokens"].filter(made.tables["tokens"]["loss"] == "loss_1")
    shares = meta["thresholds"]["kept"][1]
    for i in (0, 20, 50):
        kept = rows.filter(rows["p_positive"] >= THRESHOLDS[i])
        for found, mass in zip(shares, (pl.col("weight"), pl.col("weight") * pl.col("d_sq")), strict=True):
            part, whole = (float(table.select(mass).to_numpy().sum()) for table in (kept, rows))
            assert np.isclose(found[i], part / whole)


def test_the_most_telling_rollouts_are_kept_where_room_is_scarce(monkeypatch: Any) -> None:
    signals = made_signals(1, 2)
    whole = made_page(6, 1, 2, rollouts=8, tokens=60, nodes=30, branches=4)
    meta, _, _ = data(whole.html, "overview")
    assert meta["left_out"] == {"questions": 0, "rollouts": 0, "nodes": 0}
    for question in meta["questions"]:
        order = [(-known, -nodes) for known, nodes in zip(question["resolved"], question["nodes"], strict=True)]
        assert order == sorted(order) and len(order) == 8

    monkeypatch.setattr(rollouts, "MOST_BYTES", 9_000)
    monkeypatch.setattr(rollouts, "LEAST_BYTES", 2_500)
    small = made_page(6, 1, 2, rollouts=8, tokens=60, nodes=30, branches=4)
    meta, _, _ = data(small.html, "overview")
    left, kept = meta["left_out"], meta["questions"]
    assert left["questions"] + len(kept) == 6 and left["rollouts"] + sum(len(q["rollout"]) for q in kept) == 48
    assert 0 < len(kept) < 6 and len(small.html) < len(whole.html)
    by_id = {q["id"]: q for q in data(whole.html, "overview")[0]["questions"]}
    for question in kept:
        shown = len(question["rollout"])
        assert question["rollout"] == by_id[question["id"]]["rollout"][:shown]

    total = sum(len(text) for text in re.findall(r'id="data-[0-9]+">([^<]*)<', small.html))
    assert total <= 9_000

    monkeypatch.setattr(rollouts, "LEAST_BYTES", 100)  # not even the text of one
    monkeypatch.setattr(rollouts, "MOST_BYTES", 100)
    none = Rollouts(signals, 1, lambda ids: dict.fromkeys(ids, "x"), lambda runs: ["x" for _ in runs], 1.0)
    q = made_question("q", signals, rollouts=2, tokens=60, nodes=5, branches=3, seed=0)
    none.add(q, tokens_table(q, signals, lambda ids: dict.fromkeys(ids, "x"), 0.95))
    assert none.questions == [] and none.left_out == {"questions": 1, "rollouts": 2, "nodes": 0}


def test_what_small_questions_leave_is_for_others(monkeypatch: Any) -> None:
    signals = made_signals(1, 2)
    sizes = [{"rollouts": 1, "tokens": 20, "nodes": 4}, {"rollouts": 8, "tokens": 200, "nodes": 60}]
    made = [made_question(f"q{i}", signals, branches=4, seed=i, **size) for i, size in enumerate(sizes)]

    def shown() -> Rollouts:
        of = Rollouts(signals, 2, lambda ids: dict.fromkeys(ids, "x"), lambda runs: ["x" for _ in runs], 1.0)
        for q in made:
            of.add(q, tokens_table(q, signals, lambda ids: dict.fromkeys(ids, "x"), 0.95))
        return of

    whole = sum(len(question.data) for question in shown().questions)
    monkeypatch.setattr(rollouts, "LEAST_BYTES", 100)
    monkeypatch.setattr(rollouts, "MOST_BYTES", whole + 10)
    assert shown().left_out == {"questions": 0, "rollouts": 0, "nodes": 0}


def test_parts_of_a_character_are_shown_where_it_is_whole() -> None:
    parts = {0: "a", 1: rollouts.BROKEN, 2: rollouts.BROKEN, 3: rollouts.BROKEN}
    signals = made_signals(1, 1)

    def decode(runs: Sequence[Sequence[int]]) -> list[str]:
        return ["é" if list(run) == [1, 2] else rollouts.BROKEN for run in runs]

    shown = Rollouts(signals, 1, lambda ids: {i: parts[i] for i in ids}, decode, 1.0)
    assert shown._pieces([0, 1, 2, 0, 3, 1, 2], [7]) == {1: "", 2: "é", 5: "", 6: "é"}
    assert shown._pieces([0, 1, 2, 0, 3, 1, 2], [2, 7]) == {5: "", 6: "é"}  # no character of two rollouts
