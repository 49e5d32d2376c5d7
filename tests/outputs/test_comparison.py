"""Differences of runs: intervals that hold what they should, and none where nothing is known."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from schemas.config import ReverseKL
from schemas.question_tables import COMPARISON
from schemas.signals import Signal
from tasks.outputs.comparison.differences import Compared, Key, Value, differences, pooled_replicates, rate_replicates
from tasks.outputs.comparison.rows import comparison_table
from tasks.statistics.bootstrap import LEAST_UNITS, resample
from tasks.statistics.csr import Floats

SIGNAL = Signal("t", "none", "kl")
SUCCESS, ALIGNMENT, GAIN, OWN, FORECAST = (
    *(Key("success"), Key("alignment", *SIGNAL), Key("gain", *SIGNAL)),
    *(Key("own", *SIGNAL.source), Key("forecast", *SIGNAL)),
)


def drawn(rng: np.random.Generator, shared: Floats, cosine: float = 0.5, rate: float = 0.5) -> dict[str, Floats]:
    """Sums of questions: of nodes whose cosine is known but for noise, more at what both runs have in common, [Q]."""
    n, size = len(shared), np.exp(shared / 2)
    g_sq, d_sq = size * rng.gamma(4, 0.25, n), size * rng.gamma(4, 0.25, n)
    inner = cosine * np.sqrt(g_sq * d_sq) + 0.3 * size * rng.standard_normal(n)
    correct = rng.binomial(8, 1 / (1 + np.exp(-shared - np.log(rate / (1 - rate)))))
    own = rng.binomial(4, np.full(n, 0.8)) / 4
    columns = {"rollouts": np.full(n, 8.0), "nonempty": np.full(n, 8.0), "correct": correct, "truncated": np.zeros(n)}
    columns |= {"inner": inner, "g_sq": g_sq, "d_sq": d_sq, "nodes": np.full(n, 9.0), "open": np.full(n, 5.0)}
    return columns | {"own": own, "handover": own, "update_inner": np.full(n, np.nan)}


def compared(
    name: str, columns: Mapping[str, Floats], ids: Sequence[str] | None = None, made: str = "", **more: Any
) -> Compared:
    """A run of one signal whose own tables say what its questions do."""
    n = len(columns["inner"])
    ids = ids or [f"q{i}" for i in range(n)]
    ones = np.ones((1, n))
    values = {
        key: Value(pooled_replicates(columns, np.ones((40, n)), 0.95, key.score).value, np.nan, np.nan)
        for key in (ALIGNMENT, GAIN)
    }
    values[SUCCESS] = Value(rate_replicates(columns["correct"] / columns["rollouts"], ones).value, np.nan, np.nan)
    values[OWN] = Value(rate_replicates(columns["own"], ones).value, np.nan, np.nan)
    keys = {i: {stage: frozenset({f"{made or name}{i}"}) for stage in ("rollouts", "answers", "handover")} for i in ids}
    fields: dict[str, Any] = {"level": 0.95, "forecast_level": 0.9, "replicates": 400, "losses": {"kl": ReverseKL()}}
    return Compared(
        **{**fields, "name": name, "ids": ids, "columns": {SIGNAL: columns}, "values": values}, artefacts=keys, **more
    )


def with_forecast(run: Compared, value: float) -> Compared:
    return Compared(**{**vars(run), "values": {**run.values, FORECAST: Value(value, value - 0.1, value + 0.1)}})


def two(n: int = 24, seed: int = 0, **other: Any) -> tuple[Compared, Compared]:
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 1, n)
    a, b = drawn(rng, shared), drawn(rng, shared, 0.7, 0.6)
    return with_forecast(compared("a", a), 0.8), with_forecast(compared("b", b, **other), 0.85)


RUNS = (("a", (0.5, 0.5)), ("b", (0.7, 0.6)))
SIMULATED = 300


def test_intervals_of_paired_differences_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    many = rng.normal(0, 1, 200_000)
    large = [compared(name, drawn(rng, many, *of)) for name, of in RUNS]
    truth = {key: large[1].values[key].value - large[0].values[key].value for key in (SUCCESS, ALIGNMENT, GAIN)}
    held = dict.fromkeys(truth, 0)
    for _ in range(SIMULATED):
        shared = rng.normal(0, 1, 24)
        found = differences(*(compared(name, drawn(rng, shared, *of)) for name, of in RUNS))
        for key, value in truth.items():
            assert found[key].paired == 24
            held[key] += found[key].low <= value <= found[key].high
    for key, times in held.items():
        assert 0.92 <= times / SIMULATED <= 0.985, (key, times / SIMULATED)


def test_pairing_takes_away_what_questions_have_in_common() -> None:
    paired, apart = differences(*two(60)), differences(*two(60, ids=[f"r{i}" for i in range(60)]))
    widths = [found[SUCCESS].high - found[SUCCESS].low for found in (paired, apart)]
    assert widths[0] < 0.75 * widths[1] and [found[SUCCESS].paired for found in (paired, apart)] == [60, 0]
    a, b = two(60)
    alone = [
        rate_replicates(run.at(run.ids, SIGNAL)["correct"] / 8, resample(60, 400, 1)).drawn.std() for run in (a, b)
    ]
    assert widths[1] / 2 / 1.96 == pytest.approx(np.hypot(*alone), rel=0.15)  # of independent runs variances add up


def test_a_run_and_itself_differ_by_nothing() -> None:
    run, _ = two()
    found = differences(run, run)
    assert set(found) == set(run.values)
    assert all(of == (0.0, 0.0, 0.0, 24) for of in found.values())


def test_in_the_other_order_differences_are_negated() -> None:
    for ids in (None, [f"r{i}" for i in range(24)]):
        a, b = two(ids=ids)
        there, back = differences(a, b), differences(b, a)
        for key, of in there.items():
            assert (of.value, of.low, of.high) == pytest.approx((-back[key].value, -back[key].high, -back[key].low))
        assert np.isfinite([of.low for of in there.values()]).all()


def test_order_of_the_questions_is_of_no_account() -> None:
    a, b = two()
    turned = {name: values[::-1] for name, values in b.columns[SIGNAL].items()}
    other = Compared(**{**vars(b), "ids": b.ids[::-1], "columns": {SIGNAL: turned}})
    assert differences(a, b) == differences(a, other)


@pytest.mark.parametrize("common", [1, LEAST_UNITS - 1, LEAST_UNITS, 10])
def test_only_common_questions_count_and_too_few_have_no_interval(common: int) -> None:
    a, b = two(24, ids=[f"q{i}" if i < common else f"r{i}" for i in range(24)])
    found = differences(a, b)
    rates = [run.at([f"q{i}" for i in range(common)], SIGNAL) for run in (a, b)]
    by_hand = (rates[1]["correct"].mean() - rates[0]["correct"].mean()) / 8
    assert found[SUCCESS].value == pytest.approx(by_hand) and found[SUCCESS].paired == common
    known = common >= LEAST_UNITS
    assert np.isfinite(found[SUCCESS].low) == known and np.isfinite(found[GAIN].low) == known
    assert np.isfinite(found[ALIGNMENT].low) == known


def test_what_one_run_does_not_know_has_no_difference() -> None:
    a, b = two()
    lost = Compared(**{**vars(b), "values": {**b.values, ALIGNMENT: Value(np.nan, np.nan, np.nan)}})
    assert set(differences(a, lost)) == set(a.values) - {ALIGNMENT}
    renamed = Signal("other", "none", "kl")
    values = {SUCCESS: b.values[SUCCESS], Key("gain", *renamed): b.values[GAIN]}
    other = Compared(**{**vars(b), "columns": {renamed: b.columns[SIGNAL]}, "values": values})
    table = comparison_table([a, other])
    assert table.columns == list(COMPARISON)
    assert {k: str(v) for k, v in table.schema.items()} == {k: c.dtype for k, c in COMPARISON.items()}
    gains = table.filter(pl.col("score") == "gain").select("teacher", "run", "value", "difference", "paired").rows()
    assert [(t, run, value is None) for t, run, value, *_ in gains] == [
        ("t", "a", False),
        ("t", "b", True),
        ("other", "a", True),
        ("other", "b", False),
    ]
    assert all(difference is paired is None for *_, difference, paired in gains)


def test_without_spread_there_is_an_interval_only_of_the_same_artefacts() -> None:
    a, _ = two()
    for made, known in (("", False), ("a", True)):
        right = {**a.columns[SIGNAL], "own": np.ones(24)}
        runs = [compared(name, right, made=of) for name, of in (("a", "a"), ("b", made))]
        found = differences(*runs)
        assert found[OWN].value == 0 and (found[OWN].low == found[OWN].high == 0) == known
        assert np.isnan(found[OWN].low) != known


def test_rates_are_paired_where_both_are_known() -> None:
    a, b = two()
    columns = {**a.columns[SIGNAL], "own": np.where(np.arange(24) < 10, np.nan, a.columns[SIGNAL]["own"])}
    part = compared("a", columns)
    found = differences(part, b)[OWN]
    assert found.paired == 14 and np.isfinite(found.low)


def test_differences_are_those_of_the_tables_where_all_questions_are_common() -> None:
    a, b = two()
    assert differences(a, b)[FORECAST].value == pytest.approx(0.05)
    low, high = differences(a, b)[FORECAST][1:3]
    assert low < 0.05 < high
    assert differences(with_forecast(a, 0.7), b)[FORECAST][1:3] == pytest.approx((low + 0.1, high + 0.1))


def test_the_same_artefacts_differ_by_nothing_whatever_the_tables_say() -> None:
    """Tables of one configuration may differ by the chance of their replicates, where signals have another order."""
    first, _ = two()
    again = with_forecast(compared("again", first.columns[SIGNAL], made="a"), 0.81)
    first = with_forecast(compared("a", first.columns[SIGNAL], made="a"), 0.8)
    found = differences(first, again)[FORECAST]
    assert found[:3] == (0.0, 0.0, 0.0)


def test_rates_that_are_known_for_some_questions_only_are_compared_where_both_are() -> None:
    rng = np.random.default_rng(0)
    columns = drawn(rng, rng.normal(0, 1, 24))
    some = {**columns, "own": np.where(np.arange(24) < 15, columns["own"], np.nan)}
    shifted = {**columns, "own": columns["own"] + 0.004}
    found = differences(compared("a", some), compared("b", shifted))[OWN]
    assert found.value == pytest.approx(0.004) and found.paired == 15


def test_an_alignment_of_few_questions_has_a_difference_without_an_interval() -> None:
    a, b = two(LEAST_UNITS - 1)
    found = differences(a, b)[ALIGNMENT]
    assert np.isfinite(found.value) and np.isnan(found.low)
