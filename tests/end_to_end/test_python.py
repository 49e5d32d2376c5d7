"""opdscope as a Python module."""

from typing import Any

import pytest

import opdscope
from flows.command.configuration import ConfigurationError
from tasks.store.store import StoreError


@pytest.mark.usefixtures("prefect_here")
def test_a_ranking_and_its_table(settings: dict[str, Any]) -> None:
    settings["questions"]["limit"] = 2
    config = opdscope.configuration(settings, ["sampling.rollouts=2"])
    assert config.sampling.rollouts == 2
    with pytest.raises(StoreError, match="missing"):
        opdscope.table(config, "ranks")
    result = opdscope.rank(config)
    ranks = opdscope.table(config, "ranks")
    assert result["name"] == "small" and len(ranks) == 6 and "gain_deficit" in ranks.columns


def test_a_wrong_field_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"sampling\.rollouts"):
        opdscope.configuration(settings, ["sampling.rollouts=none"])
