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
        compare(f"{name} {table}", made.summed_up(frame))


@pytest.mark.parametrize("planner", made.PLANNERS)
def test_tables_of_the_oracle_are_what_they_were(planner: str) -> None:
    compare(f"oracle {planner}", made.summed_up(made.oracle_table(planner)))


def compare(name: str, found: made.Summary) -> None:
    """Texts alike, and numbers but for the rounding of other processors and libraries."""
    expected = made.read("tables")[name]
    assert found["rows"] == expected["rows"] and list(found["columns"]) == list(expected["columns"]), name
    for column, value in found["columns"].items():
        wanted = expected["columns"][column]
        if isinstance(value, str):
            assert value == wanted, (name, column)
        else:
            assert value == pytest.approx(wanted, rel=1e-6, abs=1e-6), (name, column)
