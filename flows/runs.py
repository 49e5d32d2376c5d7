"""What the commands do: check, run the flow, show."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from flows.configuration import ConfigurationError, checked, merged, parse_overrides, read_configuration
from flows.environment import prepare
from schemas.config import RunConfig

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
    from tasks.store.artefact import Store

    began = time.monotonic()
    with progress(_errors):
        result = run()
    import polars as pl

    config = result["configuration"]
    store = Store(config["store"])
    data = store.get_bytes("runs", config["name"], "summary.parquet")
    if data is None:
        raise ConfigurationError(f"store: the outputs of run {config['name']!r} are gone from {config['store']!r}")
    _console.print(score_table(pl.read_parquet(io.BytesIO(data)), config["scores"]["level"]))
    for question, reason in result["failed"].items():
        _console.print(f"left out: question {escape(question)}: {escape(reason)}")
    made = sum(stage["made"] for stage in result["stages"].values())
    cached = sum(stage["cached"] for stage in result["stages"].values())
    tokens = sum(stage["decoded_tokens"] for stage in result["stages"].values())
    _console.print(
        f"{made} artefacts made, {cached} from the store, {tokens:,} tokens decoded, "
        f"{time.monotonic() - began:.0f} s\n{escape(store.path('runs', config['name'], 'report.html'))}",
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
