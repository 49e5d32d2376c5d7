"""What the commands do: check, run the flow, show."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from flows.command.configuration import (
    ConfigurationError,
    check_execution,
    check_ranked,
    checked,
    explain,
    merged,
    parse_overrides,
    read_configuration,
)
from flows.command.environment import prepare
from flows.command.signals import signals_first
from schemas.config import CalibrateConfig, NightlyConfig, RunConfig, place_problem
from schemas.text import reason, shown, visible, without_user

_MOST_LINE = 1_000
OK, FAILED, BAD_INPUT = 0, 1, 2

_console = Console(highlight=False)
if not _console.is_terminal:
    _console = Console(highlight=False, width=112)  # a file or a pipe has no width of its own
_errors = Console(stderr=True, highlight=False)


def guarded(action: Callable[[], int]) -> int:
    """Run a command; what the user can put right becomes lines on stderr and exit code 2, what may pass 1."""
    try:
        prepare()  # before anything reads the environment
    except ConfigurationError as error:
        _refuse(error)
        return BAD_INPUT
    from tasks.engines.protocol import EngineError
    from tasks.inputs.questions import InputError
    from tasks.store.outages import LASTING
    from tasks.store.store import StoreError

    try:
        with signals_first():
            return action()
    except (ConfigurationError, InputError, EngineError, StoreError) as error:
        _refuse(error)
        return BAD_INPUT
    except LASTING as error:
        _refuse(ValueError(reason(error)))
        return BAD_INPUT
    except OSError as error:
        _errors.print(
            f"{escape(reason(error))}; what is done is kept, run again to continue", style="red", soft_wrap=True
        )
        return FAILED


def _refuse(error: Exception) -> None:
    """The lines of an error, each within bounds, without control characters and secrets, whoever wrote it."""
    for line in str(error).split("\n"):
        _errors.print(escape(visible(without_user(line))[:_MOST_LINE]), style="red", soft_wrap=True)


def load(path: Path, assignments: list[str]) -> RunConfig:
    """The checked configuration of a file with overrides."""
    return checked(merged(read_configuration(path), parse_overrides(assignments)))


def run_file(path: Path, assignments: list[str]) -> int:
    """`opdscope run`."""

    def action() -> int:
        config = load(path, assignments)
        check_execution(config.execution)
        from tasks.run.session import open_session

        open_session(config)  # before Prefect's server is started
        from flows.diagnose import diagnose

        return _follow(lambda: diagnose(config))

    return guarded(action)


def rank_file(path: Path, assignments: list[str]) -> int:
    """`opdscope rank`."""

    def action() -> int:
        config = load(path, assignments)
        check_ranked(config)
        check_execution(config.execution)
        from tasks.run.session import open_session

        open_session(config)
        from flows.command.terminal import rank_table, what_would_settle
        from flows.rank import rank
        from tasks.outputs.run import read_table

        def show(result: dict[str, Any], store: Any) -> str:
            ranks = read_table(store, config.name, "ranks")
            _console.print(rank_table(ranks, config.scores.level))
            _console.print(what_would_settle(ranks, result), soft_wrap=True)
            return "ranks.parquet"

        return _shown(lambda: rank(config), show)

    return guarded(action)


def run_calibration(fields: dict[str, object]) -> int:
    """`opdscope calibrate`; exit code 1 where a figure is not what it must be."""

    def action() -> int:
        try:
            config = CalibrateConfig.model_validate(fields)
        except ValidationError as error:
            raise ConfigurationError("\n".join(explain(error, CalibrateConfig))) from error
        from flows.calibrate import calibrate
        from flows.command.terminal import figure_table, planner_table, progress, ranking_shares
        from flows.service.own_server import server_of_command
        from tasks.calibration.judge import by_planner, figures, judged_as, ranking_table
        from tasks.store.store import Store

        store = Store(config.store)
        store.check_writable()
        began = time.monotonic()
        with server_of_command(), progress(_errors):
            rows = calibrate(config)
        judged = figures(rows)
        for table in (figure_table(judged), planner_table(by_planner(rows)), ranking_shares(ranking_table(rows))):
            _console.print(table)
        _console.print(
            f"{time.monotonic() - began:.0f} s\n{escape(store.path('runs', config.name, 'calibration.html'))}",
            soft_wrap=True,
        )
        return FAILED if judged_as("fail", judged) else OK

    return guarded(action)


def run_demo(assignments: list[str], *, questions: int, seed: int) -> int:
    """`opdscope demo`."""

    def action() -> int:
        fields = parse_overrides(assignments)
        store = str(fields.get("store", ".opdscope"))
        check_place(store)
        root = Path(".opdscope" if "://" in store else store).expanduser().resolve()
        from schemas.config import DemoConfig
        from tasks.demo.models import demo_configuration

        settings = DemoConfig(questions=questions, seed=seed)
        checked(merged(demo_configuration(root, settings), fields))  # a wrong override, before any training
        from flows.demo import demo

        return _follow(lambda: demo(settings, str(root), fields))

    return guarded(action)


def _follow(run: Callable[[], dict[str, Any]]) -> int:
    """Run a diagnosis and show its scores."""

    def show(result: dict[str, Any], store: Any) -> str:
        from flows.command.terminal import score_table
        from tasks.outputs.run import read_table

        summary = read_table(store, result["name"], "summary")
        _console.print(score_table(summary, result["configuration"]["scores"]["level"]))
        if result["why_unresolved"] is not None:
            _console.print(escape(f"unresolved: {result['why_unresolved']}"), soft_wrap=True)
        return "report.html"

    return _shown(run, show)


def _shown(run: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any], Any], str]) -> int:
    """Run a flow with its progress, then show what came of it, also where some questions failed.

    Args:
        show: prints the result; returns the name of the output to point at.
    """
    from flows.command.terminal import progress
    from flows.diagnose import QuestionsFailedError
    from flows.service.own_server import server_of_command
    from tasks.store.store import Store

    began = time.monotonic()
    failed: QuestionsFailedError | None = None
    try:
        with server_of_command(), progress(_errors):
            result = run()
    except QuestionsFailedError as error:
        if error.run is None:
            _errors.print(escape(str(error)), style="red", soft_wrap=True)
            return FAILED
        failed, result = error, error.run
    store = Store(result["configuration"]["store"])
    _tell(result, store.path("runs", result["name"], show(result, store)), began)
    if failed is not None:
        _errors.print(escape(str(failed)), style="red", soft_wrap=True)
    return FAILED if failed is not None else OK


def _tell(result: dict[str, Any], output: str, began: float) -> None:
    """Questions left out, what was made, and where the output is."""
    for question, why in result["left_out"].items():
        _console.print(f"left out: question {escape(question)}: {escape(why)}")
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

    def action() -> int:
        config = load(path, assignments)
        from flows.plan import cost, cost_table
        from tasks.run.session import open_session

        _console.print(cost_table(cost(open_session(config))))
        return OK

    return guarded(action)


def read_suite(path: Path, store: str | None = None) -> dict[str, Any]:
    """The fields of a suite; runs that are given as paths are read, relative to the suite.

    Args:
        store: of a suite that names none; runs that name none take the suite's.

    Raises:
        ConfigurationError: a file that cannot be read.
    """
    fields = {**({} if store is None else {"store": store}), **read_configuration(path)}
    runs = fields.get("runs")
    if isinstance(runs, list):
        fields["runs"] = [read_configuration(path.parent / run) if isinstance(run, str) else run for run in runs]
        if "store" in fields:
            fields["runs"] = [{"store": fields["store"], **r} if isinstance(r, dict) else r for r in fields["runs"]]
    return fields


def absolute(store: str) -> str:
    """A store that means the same wherever a run works.

    Raises:
        ConfigurationError: it is no place for a store.
    """
    check_place(store)
    return store if "://" in store else str(Path(store).expanduser().resolve())


def check_place(store: str) -> None:
    """Refuse a store that no configuration may name.

    Raises:
        ConfigurationError: a URL with a password, or no path.
    """
    problem = place_problem(store)
    if problem is not None:
        raise ConfigurationError(f"--store: {problem if problem.startswith('the ') else f'{shown(store)} {problem}'}")


def checked_suite(fields: dict[str, Any]) -> NightlyConfig:
    """A suite's configuration.

    Raises:
        ConfigurationError: naming every field that is wrong.
    """
    try:
        return NightlyConfig.model_validate(fields)
    except ValidationError as error:
        raise ConfigurationError("\n".join(explain(error, NightlyConfig))) from error


def run_nightly(path: Path) -> int:
    """`opdscope nightly`; exit code 1 where something got worse."""

    def action() -> int:
        config = checked_suite(read_suite(path))
        from flows.command.terminal import progress
        from flows.nightly import message, nightly
        from flows.service.own_server import server_of_command

        with server_of_command(), progress(_errors):
            result = nightly(config)
        _console.print(f"computed: {', '.join(result['computed']) or 'nothing, as nothing has changed'}")
        for line in result["moved"]:
            _console.print(f"moved: {escape(line)}", soft_wrap=True)
        if result["regressions"]:
            _errors.print(escape(message(result)), style="red", soft_wrap=True)
        return FAILED if result["regressions"] else OK

    return guarded(action)


def serve_all(config: Path | None, suite: Path | None, *, cron: str | None, **settings: Any) -> int:
    """`opdscope serve`."""

    def action() -> int:
        if suite is None and cron is not None:
            raise ConfigurationError(f"--cron: {cron!r} given, but no suite; name one with --suite")
        store = settings["store"] = absolute(settings["store"])
        # whole, as forms tell kinds apart by their fields
        fields = checked({"store": store, **read_configuration(config)}).model_dump(mode="json") if config else {}
        nights = checked_suite(read_suite(suite, store)).model_dump(mode="json") if suite else {}
        from flows.service.serve import ServeSettings, serve
        from tasks.store.store import Store, StoreError

        try:
            Store(store).check_writable()
        except StoreError as error:
            raise ConfigurationError(f"--store: {error}") from error

        serve(
            ServeSettings(config=fields, suite=nights, cron=cron, **settings), lambda line: _console.print(escape(line))
        )
        return OK

    return guarded(action)


def on_store(url: str, act: Callable[[Any, Console], int]) -> int:
    """`opdscope store`.

    Args:
        act: does it to an open store; returns the exit code.
    """

    def action() -> int:
        from tasks.store.store import Store

        check_place(url)
        store = Store(url)
        if not store.exists():
            raise ConfigurationError(f"--store: {shown(url)} is not there; give the store of a run")
        if store.is_file():
            raise ConfigurationError(f"--store: {shown(url)} is a file; give the folder of a store")
        return act(store, _console)

    return guarded(action)
