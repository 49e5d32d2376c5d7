"""opdscope from Python: configurations, runs and their tables, as with the commands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.command.environment import prepare

prepare()  # before anything reads the environment

from flows.command.configuration import checked, merged, parse_overrides, read_configuration  # noqa: E402
from schemas.config import RunConfig  # noqa: E402

if TYPE_CHECKING:
    import polars as pl

__all__ = ["configuration", "diagnose", "rank", "table"]


def configuration(source: str | Path | Mapping[str, Any], assignments: Sequence[str] = ()) -> RunConfig:
    """A validated configuration.

    Args:
        source: a YAML file, or its content.
        assignments: overrides as `--set` takes them, such as `tree.draws=4096`.

    Raises:
        ConfigurationError: names every wrong field.
    """
    fields = dict(source) if isinstance(source, Mapping) else read_configuration(Path(source))
    return checked(merged(fields, parse_overrides(list(assignments))))


def diagnose(config: RunConfig) -> dict[str, Any]:
    """Run a diagnosis, on the configured Prefect server if any, else on a temporary one.

    Returns:
        the content of `run.json`.

    Raises:
        QuestionsFailedError: some questions failed; outputs cover the others.
        InputError: names the field and the value.
    """
    from flows.diagnose import diagnose as flow
    from flows.service.own_server import server_of_command

    with server_of_command():
        return flow(config)


def rank(config: RunConfig) -> dict[str, Any]:
    """Rank teachers, contexts and losses from rollouts alone.

    Returns:
        the content of `rank.json`, with statistics of its stages.

    Raises:
        QuestionsFailedError, InputError: as for `diagnose`.
    """
    from flows.rank import rank as flow
    from flows.service.own_server import server_of_command

    with server_of_command():
        return flow(config)


def table(config: RunConfig, name: str) -> "pl.DataFrame":
    """A table of an existing run: tokens, summary, differences, predictors, selection or ranks.

    Raises:
        StoreError: it is missing, or another run is writing it.
    """
    from tasks.outputs.files import read_table
    from tasks.store.store import Store

    return read_table(Store(config.store), config.name, name)
