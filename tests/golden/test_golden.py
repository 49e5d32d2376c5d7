"""Keys and tables are what they were: a change of code that is not meant to change a number changes none."""

from pathlib import Path
from typing import Any

import pytest

from tests.golden import made


@pytest.mark.parametrize("name", ["forced", "adaptive", "windows", "recorded"])
def test_keys_are_what_they_were(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    assert made.keys(made.configurations(settings, tmp_path)[name]) == made.read("keys")[name]


@pytest.mark.parametrize("name", ["forced", "adaptive", "windows", "recorded"])
def test_tables_of_a_run_are_what_they_were(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    for table, frame in made.run_tables(made.configurations(settings, tmp_path)[name]).items():
        compare(f"{name} {table}", made.summed_up(frame), RECORDED if name == "recorded" else MODELS)


@pytest.mark.parametrize("planner", made.PLANNERS)
def test_tables_of_the_oracle_are_what_they_were(planner: str) -> None:
    compare(f"oracle {planner}", made.summed_up(made.oracle_table(planner)), RECORDED)


RECORDED, MODELS = 1e-6, 5e-5
"""Rounding of other processors, libraries and numbers of threads: of sums in double, and of models in float32."""


def compare(name: str, found: made.Summary, rounding: float) -> None:
    """Texts alike, and numbers but for rounding."""
    expected = made.read("tables")[name]
    assert found["rows"] == expected["rows"] and list(found["columns"]) == list(expected["columns"]), name
    for column, value in found["columns"].items():
        wanted = expected["columns"][column]
        if isinstance(value, str):
            assert value == wanted, (name, column)
        else:
            assert value == pytest.approx(wanted, rel=rounding, abs=rounding), (name, column)
