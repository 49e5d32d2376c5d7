"""opdscope as a Python module."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import opdscope
from schemas.tables import RUN_TABLES


@pytest.mark.usefixtures("prefect_here")
def test_a_ranking_and_its_table(settings: dict[str, Any]) -> None:
    settings["questions"]["limit"] = 2
    config = opdscope.configuration(settings, ["sampling.rollouts=2"])
    assert config.sampling.rollouts == 2
    with pytest.raises(opdscope.StoreError, match="missing"):
        opdscope.table(config, "ranks")
    result = opdscope.rank(config)
    ranks = opdscope.table(config, "ranks")
    assert result["name"] == "small" and len(ranks) == 6 and "gain_deficit" in ranks.columns


def test_a_wrong_field_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(opdscope.ConfigurationError, match=r"sampling\.rollouts"):
        opdscope.configuration(settings, ["sampling.rollouts=none"])
    assert opdscope.configuration(settings, "sampling.rollouts=3").sampling.rollouts == 3


def test_a_table_that_no_run_has_is_refused_by_name(settings: dict[str, Any]) -> None:
    names = ", ".join((*RUN_TABLES, "ranks"))
    with pytest.raises(opdscope.ConfigurationError, match=f"name: 'rank' is no table of a run; give one of {names}"):
        opdscope.table(opdscope.configuration(settings), "rank")


def test_all_that_it_offers_is_there() -> None:
    assert {name for name in opdscope.__all__ if getattr(opdscope, name, None) is None} == set()
    assert not hasattr(opdscope, "nothing")


def test_the_import_changes_nothing_of_the_process(tmp_path: Path) -> None:
    """A trainer's own bars and warnings stay, and nothing is written where it is imported."""
    code = "import os, opdscope; opdscope.load_run; opdscope.score; print(os.environ.get('TQDM_DISABLE'))"
    without = {name: value for name, value in os.environ.items() if name not in ("TQDM_DISABLE", "PREFECT_HOME")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=without, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None" and list(tmp_path.iterdir()) == []
