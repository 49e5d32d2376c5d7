"""Scores over the nights, against a comparison by hand; what a night without work leaves, and how slow is slower."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.tables import HISTORY
from tasks.outputs.files import parquet_bytes
from tasks.outputs.history import SCHEMA, SCORE, compared, no_history, slower, tonight, unchanged

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def at(night: int) -> datetime:
    return FIRST + timedelta(days=night)


def rows(night: int, *scores: tuple[str, float | None, float], key: str = "k", **more: Any) -> pl.DataFrame:
    """Of a run, by loss: value and half-width."""
    made = [
        {
            "night": at(night),
            "run": "run",
            "key": key,
            "teacher": "t",
            "context": "none",
            "loss": loss,
            "rollouts": "all",
            "alignment": value,
            "alignment_low": None if value is None else value - half,
            "alignment_high": None if value is None else value + half,
            "machine": "here",
            **more,
        }
        for loss, value, half in scores
    ]
    return pl.DataFrame(made, schema=SCHEMA)


def summary(*found: dict[str, Any]) -> pl.DataFrame:
    plain = {"group": "all", "bin": "all", "teacher": "t", "context": "none", "loss": "kl"}
    values = {"alignment": 0.5, "alignment_low": 0.4, "alignment_high": 0.6}
    return pl.DataFrame([{**plain, **values, **row} for row in found], infer_schema_length=None)


WRONG = {"group": "outcome", "bin": "incorrect", **dict.fromkeys(("alignment", "alignment_low", "alignment_high"))}


def test_a_night_has_a_row_for_each_score_that_was_told() -> None:
    table = summary({}, WRONG, {"group": "entropy", "bin": "0-50 %"}, {"loss": "jsd", "alignment": 0.7})
    made = tonight(at(3), "run", "k", table, {"trees": {"decoded_tokens": 300, "seconds": 2.0}}, "here")
    assert made.select("loss", "rollouts", "alignment").rows() == [
        ("kl", "all", 0.5),
        ("kl", "incorrect", None),  # unresolved is told, and not 0
        ("jsd", "all", 0.7),
    ]
    assert list(made.columns) == list(HISTORY) and made["tokens_per_second"].unique().to_list() == [150.0]
    assert made["change"].null_count() == made["reference"].null_count() == 3


@pytest.mark.parametrize(
    "trees", [None, {}, {"decoded_tokens": 0, "seconds": 5.0}, {"decoded_tokens": 5, "seconds": 0}]
)
def test_a_night_that_decoded_nothing_has_no_speed(trees: dict[str, Any] | None) -> None:
    made = tonight(at(0), "run", "k", summary({}), {} if trees is None else {"trees": trees}, "here")
    assert made["tokens_per_second"].to_list() == [None]


def test_a_run_without_scores_has_no_rows() -> None:
    empty = summary({}).clear()
    made = tonight(at(0), "run", "k", empty, {}, "here")
    assert made.is_empty() and made.schema == no_history().schema
    assert compared(no_history(), made, 7).is_empty()


VALUES = st.none() | st.integers(-8, 8).map(lambda n: n / 8)
HALVES = st.sampled_from([0.0, 0.125, 0.25])


@given(st.lists(st.tuples(VALUES, HALVES), max_size=8), VALUES, HALVES, st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_a_change_is_what_it_is_by_hand(
    before: list[tuple[float | None, float]], now: float | None, half: float, nights: int
) -> None:
    history = no_history()
    for night, (value, width) in enumerate(before):
        history = pl.concat([history, compared(history, rows(night, ("kl", value, width)), nights)])
    found = compared(history, rows(20, ("kl", now, half)), nights).row(0, named=True)
    last = [(v, h) for v, h in before if v is not None][-nights:]
    if not last:
        expected = "new"
        assert found["reference"] is None and found["reference_error"] is None
    else:
        reference, error = (float(np.mean([pair[i] for pair in last])) for i in (0, 1))
        assert found["reference"] == pytest.approx(reference) and found["reference_error"] == pytest.approx(error)
        if now is None:
            expected = "lost"
        else:
            limit = (half**2 + error**2) ** 0.5
            expected = "up" if now - reference > limit else "down" if reference - now > limit else "steady"
    assert found["change"] == expected


def test_each_score_is_compared_with_its_own_past() -> None:
    history = compared(no_history(), rows(0, ("kl", 0.1, 0.01), ("jsd", 0.9, 0.01)), 7)
    other = rows(0, ("kl", 0.9, 0.01)).with_columns(run=pl.lit("other"))
    history = pl.concat([history, compared(no_history(), other, 7)])
    found = compared(history, rows(1, ("jsd", 0.9, 0.01), ("kl", 0.9, 0.01), ("tv", 0.9, 0.01)), 7)
    assert dict(found.select("loss", "change").iter_rows()) == {"jsd": "steady", "kl": "up", "tv": "new"}


@given(st.permutations(range(5)))
@settings(deadline=None, max_examples=15)
def test_nights_count_by_their_time_and_not_by_their_place(order: list[int]) -> None:
    history = pl.concat(
        [compared(no_history(), rows(n, ("kl", n / 10, 0.01)), 7) for n in order]  # all of them measurements
    )
    found = compared(history, rows(9, ("kl", 0.0, 0.01)), 2)
    assert found["reference"].to_list() == [pytest.approx(0.35)]


def test_an_interval_that_is_not_known_marks_nothing() -> None:
    history = compared(no_history(), rows(0, ("kl", 0.1, 0.01)), 7)
    wide = rows(1, ("kl", 0.9, 0.01)).with_columns(pl.lit(None, pl.Float64).alias("alignment_low"))
    assert compared(history, wide, 7)["change"].to_list() == ["steady"]


def test_history_survives_its_own_file() -> None:
    history = pl.concat([no_history(), compared(no_history(), rows(0, ("kl", 0.1, 0.1), ("j", None, 0.1)), 7)])
    read = pl.read_parquet(parquet_bytes(history))
    assert read.equals(history) and read.schema == history.schema == no_history().schema
    assert set(SCORE) <= set(SCHEMA)


def test_a_night_without_work_repeats_the_last_one_and_says_so() -> None:
    history = pl.concat(
        [
            compared(no_history(), rows(0, ("kl", 0.1, 0.1), key="old", tokens_per_second=9.0), 7),
            compared(no_history(), rows(1, ("kl", 0.2, 0.1), ("jsd", 0.3, 0.1), tokens_per_second=9.0), 7),
        ]
    )
    again = unchanged(history, "run", "k", at(2))
    assert again is not None and again.schema == history.schema
    assert again["alignment"].to_list() == [0.2, 0.3] and again["night"].unique().to_list() == [at(2)]
    assert again["change"].unique().to_list() == ["unchanged"] and again["tokens_per_second"].null_count() == 2
    assert unchanged(history, "run", "old", at(2)) is None  # the last night was of another key
    assert unchanged(no_history(), "run", "k", at(2)) is None


def test_a_night_whose_rows_are_of_two_keys_is_not_repeated() -> None:
    mixed = pl.concat([rows(0, ("kl", 0.1, 0.1)), rows(0, ("jsd", 0.1, 0.1), key="other")])
    assert unchanged(mixed, "run", "k", at(1)) is None


def speeds(*values: float | None) -> pl.DataFrame:
    made = [rows(n, ("kl", 0.1, 0.1), ("jsd", 0.1, 0.1), tokens_per_second=v) for n, v in enumerate(values)]
    return pl.concat([no_history(), *made])


@pytest.mark.parametrize(
    ("before", "now", "nights", "told"),
    [
        ([], 1.0, 7, None),
        ([None, None], 1.0, 7, None),
        ([100.0], 75.0, 7, None),  # by the limit, and not by more
        ([100.0], 74.9, 7, "25 % below the last nights' 100"),
        ([100.0], 200.0, 7, None),
        ([100.0, 1.0, 100.0], 50.0, 7, "50 % below the last nights' 100"),  # the median, not the mean
        ([1000.0, 10.0, 10.0], 9.0, 2, None),  # the last two
        ([10.0, 1000.0, 1000.0], 500.0, 2, "50 % below the last nights' 1,000"),
        ([100.0, None, None], 50.0, 1, "50 %"),  # nights that decoded nothing are no measurement
    ],
)
def test_slower_is_below_the_median_of_the_last_nights(
    before: list[float | None], now: float, nights: int, told: str | None
) -> None:
    found = slower(speeds(*before), rows(99, ("kl", 0.1, 0.1), tokens_per_second=now), nights, 0.25)
    assert found is None if told is None else told in str(found)


def test_another_run_or_machine_tells_nothing_of_a_speed() -> None:
    tonight_ = rows(9, ("kl", 0.1, 0.1), tokens_per_second=1.0)
    for other in ("run", "machine"):
        assert slower(speeds(100.0).with_columns(pl.lit("x").alias(other)), tonight_, 7, 0.25) is None
    assert slower(speeds(100.0), tonight_.clear(), 7, 0.25) is None
    assert str(slower(speeds(100.0), tonight_, 7, 0.25)).startswith("run: 1 tokens/s on here, 99 % below")
