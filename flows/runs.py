"""What the commands do: check, run the flow, show."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from flows.configuration import (
    ConfigurationError,
    checked,
    explain,
    merged,
    parse_overrides,
    read_configuration,
)
from flows.environment import prepare
from schemas.config import CalibrateConfig, RunConfig

OK, BAD_INPUT, INTERRUPTED = 0, 2, 130

_console = Console(highlight=False)
if not _console.is_terminal:
    _console = Console(highlight=False, width=112)  # a file or a pipe has no width of its own
_errors = Console(stderr=True, highlight=False)


def guarded(action: Callable[[], None]) -> int:
    """Run a command; what the user can put right becomes lines on stderr and exit code 2."""
    try:
        prepare()  # before anything reads the environment
    except ConfigurationError as error:
        _errors.print(escape(str(error)), style="red", soft_wrap=True)
        return BAD_INPUT
    from tasks.engines.protocol import EngineError
    from tasks.questions import InputError
    from tasks.store.artefact import StoreError

    try:
        action()
    except (ConfigurationError, InputError, EngineError, StoreError) as error:
        _errors.print(escape(str(error)), style="red", soft_wrap=True)
        return BAD_INPUT
    except KeyboardInterrupt:
        _errors.print("interrupted; what is done is kept, run again to continue")
        return INTERRUPTED
    return OK


def load(path: Path, assignments: list[str]) -> RunConfig:
    """The checked configuration of a file with overrides."""
    return checked(merged(read_configuration(path), parse_overrides(assignments)))


def run_file(path: Path, assignments: list[str]) -> int:
    """`opdscope run`."""

    def action() -> None:
        config = load(path, assignments)
        from tasks.job import open_job

        open_job(config)  # before Prefect's server is started
        from flows.diagnose import diagnose

        _follow(lambda: diagnose(config))

    return guarded(action)


def rank_file(path: Path, assignments: list[str]) -> int:
    """`opdscope rank`."""

    def action() -> None:
        config = load(path, assignments)
        if config.student is None:
            raise ConfigurationError(
                "tree.kind: 'recorded', but a ranking is made from rollouts of a model; give questions and student"
            )
        if config.sampling.rollouts < 2:
            raise ConfigurationError(
                f"sampling.rollouts: {config.sampling.rollouts}, but a ranking needs two rollouts a question or more"
            )
        from tasks.job import open_job

        open_job(config)
        from flows.rank import rank
        from flows.terminal import progress, rank_table, what_would_settle

        began = time.monotonic()
        with progress(_errors):
            result = rank(config)
        ranks, store = _table(result["configuration"], "ranks")
        _console.print(rank_table(ranks, config.scores.level))
        _console.print(what_would_settle(ranks, result), soft_wrap=True)
        _tell(result, store.path("runs", config.name, "ranks.parquet"), began)

    return guarded(action)


def run_calibration(fields: dict[str, object]) -> int:
    """`opdscope calibrate`; exit code 1 where a figure is not what it must be."""
    failed: list[str] = []

    def action() -> None:
        try:
            config = CalibrateConfig.model_validate(fields)
        except ValidationError as error:
            raise ConfigurationError("\n".join(explain(error, CalibrateConfig))) from error
        from flows.calibrate import calibrate
        from flows.terminal import figure_table, planner_table, progress, ranking_shares
        from tasks.calibration.judge import by_planner, figures, ranking_table
        from tasks.store.artefact import Store

        store = Store(config.store)
        store.check_writable()
        began = time.monotonic()
        with progress(_errors):
            rows = calibrate(config)
        judged = figures(rows)
        failed.extend(f.name for f in judged if f.holds is False)
        for table in (figure_table(judged), planner_table(by_planner(rows)), ranking_shares(ranking_table(rows))):
            _console.print(table)
        _console.print(
            f"{time.monotonic() - began:.0f} s\n{escape(store.path('runs', config.name, 'calibration.html'))}",
            soft_wrap=True,
        )

    code = guarded(action)
    return 1 if code == OK and failed else code


def run_demo(assignments: list[str], *, questions: int, seed: int) -> int:
    """`opdscope demo`."""

    def action() -> None:
        fields = parse_overrides(assignments)
        store = str(fields.get("store", ".opdscope"))
        root = Path(".opdscope" if "://" in store else store).expanduser().resolve()
        from schemas.config import DemoConfig
        from tasks.demo.models import demo_configuration

        settings = DemoConfig(questions=questions, seed=seed)
        checked(merged(demo_configuration(root, settings), fields))  # a wrong override, before any training
        from flows.demo import demo

        _follow(lambda: demo(settings, str(root), fields))

    return guarded(action)


def _follow(run: Callable[[], dict[str, Any]]) -> None:
    """Run a flow with its progress shown, then show its scores."""
    from flows.terminal import progress, score_table

    began = time.monotonic()
    with progress(_errors):
        result = run()
    config = result["configuration"]
    summary, store = _table(config, "summary")
    _console.print(score_table(summary, config["scores"]["level"]))
    _tell(result, store.path("runs", config["name"], "report.html"), began)


def _table(config: dict[str, Any], name: str) -> tuple[Any, Any]:
    """A table of a run, and its store."""
    import polars as pl

    from tasks.store.artefact import Store

    store = Store(config["store"])
    data = store.get_bytes("runs", config["name"], f"{name}.parquet")
    if data is None:
        raise ConfigurationError(f"store: the outputs of run {config['name']!r} are gone from {config['store']!r}")
    return pl.read_parquet(io.BytesIO(data)), store


def _tell(result: dict[str, Any], output: str, began: float) -> None:
    """Questions left out, what was made, and where the output is."""
    for question, reason in result["failed"].items():
        _console.print(f"left out: question {escape(question)}: {escape(reason)}")
    made, cached, tokens = (
        sum(stage[name] for stage in result["stages"].values()) for name in ("made", "cached", "decoded_tokens")
    )
    _console.print(
        f"{made} artefacts made, {cached} from the store, {tokens:,} tokens decoded, "
        f"{time.monotonic() - began:.0f} s\n{escape(output)}",
        soft_wrap=True,
    )


def plan_file(path: Path, assignments: list[str]) -> int:
    """`opdscope plan`."""

    def action() -> None:
        config = load(path, assignments)
        from flows.plan import cost, cost_table
        from tasks.job import open_job

        _console.print(cost_table(cost(open_job(config))))

    return guarded(action)
