"""opdscope from Python: configurations, runs and their tables, as with the commands; scores within a trainer's loop."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.command.environment import make_home, set_prefect

set_prefect()  # before anything imports Prefect

from flows.command.configuration import (  # noqa: E402
    ConfigurationError,
    checked,
    merged,
    parse_overrides,
    read_configuration,
)
from schemas.config import RunConfig  # noqa: E402
from schemas.tables import RUN_TABLES  # noqa: E402

if TYPE_CHECKING:
    import polars as pl

    from flows.diagnose import QuestionsFailedError
    from tasks.engines.protocol import EngineError
    from tasks.inputs.errors import InputError
    from tasks.outputs.loading import LoadedRun, load_run
    from tasks.stages.held import Rollouts, TopLogprobs
    from tasks.stages.score import score
    from tasks.store.store import StoreError

__all__ = [
    "ConfigurationError",
    "EngineError",
    "InputError",
    "LoadedRun",
    "QuestionsFailedError",
    "Rollouts",
    "StoreError",
    "TopLogprobs",
    "configuration",
    "diagnose",
    "export",
    "load_run",
    "rank",
    "score",
    "table",
]

_ON_USE = {
    "EngineError": "tasks.engines.protocol",
    "InputError": "tasks.inputs.errors",
    "LoadedRun": "tasks.outputs.loading",
    "QuestionsFailedError": "flows.diagnose",
    "Rollouts": "tasks.stages.held",
    "StoreError": "tasks.store.store",
    "TopLogprobs": "tasks.stages.held",
    "load_run": "tasks.outputs.loading",
    "score": "tasks.stages.score",
}
"""Module of each name that is imported on first use, as torch or Prefect come with it."""


def __getattr__(name: str) -> Any:
    if name not in _ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ON_USE[name]), name)


def configuration(source: str | Path | Mapping[str, Any], assignments: str | Sequence[str] = ()) -> RunConfig:
    """A validated configuration.

    Args:
        source: a YAML file, or its content.
        assignments: one or more overrides as `--set` takes them, such as `tree.draws=4096`.

    Raises:
        ConfigurationError: names every wrong field.
    """
    fields = dict(source) if isinstance(source, Mapping) else read_configuration(Path(source))
    overrides = [assignments] if isinstance(assignments, str) else list(assignments)
    return checked(merged(fields, parse_overrides(overrides)))


def diagnose(config: RunConfig) -> dict[str, Any]:
    """Run a diagnosis, on the configured Prefect server if any, else on a temporary one.

    Returns:
        the content of `run.json`.

    Raises:
        QuestionsFailedError: some questions failed; outputs cover the others.
        InputError: names the field and the value.
        EngineError: a model, a device or a server cannot do what is requested.
        StoreError: the store cannot be used.
        ConfigurationError: the folder of Prefect's state cannot be created.
    """
    make_home()
    from flows.diagnose import diagnose as flow
    from flows.service.own_server import server_of_command

    with server_of_command():
        return flow(config)


def rank(config: RunConfig) -> dict[str, Any]:
    """Rank teachers, contexts and losses from rollouts alone.

    Returns:
        the content of `rank.json`, with statistics of its stages.

    Raises:
        ConfigurationError: there is nothing to rank.
        QuestionsFailedError, InputError, EngineError, StoreError: as for `diagnose`.
    """
    make_home()
    from flows.rank import rank as flow
    from flows.service.own_server import server_of_command

    with server_of_command():
        return flow(config)


def export(
    run: str,
    to: str,
    *,
    store: str = ".opdscope",
    signal: str | None = None,
    choose: str = "run",
    mask: bool = False,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Write what a trainer needs of a finished run, as `opdscope export` does: weights of its tokens, rules for others.

    Args:
        run: its name under the store.
        to: a trainer, jsonl or parquet.
        signal: TEACHER/CONTEXT/LOSS; the first by forecast unless given.
        choose: run, question or token: how far teacher and context may differ.
        mask: weights of 0 and 1.
        output: folder; RUN-TO in the working folder unless given.

    Returns:
        the content of `export.json`, with the path of the folder as `folder`.

    Raises:
        InputError: names the argument, the value and what would be right.
        StoreError: an artefact or table is missing or damaged.
    """
    from tasks.outputs.export.make import export_run

    return export_run(store, run, to, signal=signal, choose=choose, mask=mask, output=output)


def table(config: RunConfig, name: str) -> "pl.DataFrame":
    """A table of an existing run: one of `schemas.tables.RUN_TABLES`, or ranks.

    Raises:
        ConfigurationError: there is no table of this name.
        StoreError: it is missing, or another run is writing it.
    """
    if name not in (tables := (*RUN_TABLES, "ranks")):
        raise ConfigurationError(f"name: {name!r} is no table of a run; give one of {', '.join(tables)}")
    from tasks.outputs.files import read_table
    from tasks.store.store import Store

    return read_table(Store(config.store), config.name, name)
