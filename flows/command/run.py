"""The commands of one configuration: run, rank, plan, demo."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
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
from flows.command.guarded import CONSOLE, ERRORS, FAILED, OK, guarded
from flows.command.places import absolute, check_place
from schemas.config import RunConfig


def load(path: Path, assignments: list[str]) -> RunConfig:
    """The validated configuration of a file with overrides."""
    return checked(merged(read_configuration(path), parse_overrides(assignments)))


def run_file(path: Path, assignments: list[str]) -> int:
    """`opdscope run`."""

    def action() -> int:
        config = load(path, assignments)
        check_execution(config.execution)
        from tasks.run.session import open_session

        open_session(config)  # reports errors before Prefect's server starts
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
        from flows.command.terminal import (
            rank_table,
            show_table,
            what_is_not_ranked,
            what_losses_keep,
            what_would_settle,
        )
        from flows.rank import rank
        from tasks.outputs.files import read_table

        def show(result: dict[str, Any], store: Any) -> str:
            ranks = read_table(store, config.name, "ranks")
            _show_forecast(result, result["forecasts"])
            show_table(CONSOLE, rank_table(ranks, config.scores.level))
            _print_lines(what_losses_keep(ranks))
            _show_success(result["success"], config.scores.level)
            _print_lines(what_is_not_ranked(result["not_ranked"], result["need_draws"]))
            CONSOLE.print(what_would_settle(ranks, result), soft_wrap=True)
            _print_lines([escape(line) for line in (*result["without_signal"], *result["generated_texts"])])
            return "ranks.parquet"

        return _run_and_show(lambda: rank(config), show)

    return guarded(action)


def validate_file(path: Path, assignments: list[str]) -> int:
    """`opdscope validate`."""

    def action() -> int:
        config = load(path, assignments)
        check_ranked(config)
        check_execution(config.execution)
        from flows.validate import check_validation, validate

        check_validation(config)
        return _run_and_show(lambda: validate(config), _show_validation)

    return guarded(action)


def _show_validation(result: dict[str, Any], store: Any) -> str:
    from flows.command.forecasts import predictor_table
    from flows.command.terminal import figure_table, show_table
    from schemas.config import Validation

    for student, advised in result["advice"].items():
        CONSOLE.print(escape(f"{student}: {advised}"), style="bold", soft_wrap=True)
    logged = Validation.model_validate(result["configuration"]["validation"]).logged
    show_table(CONSOLE, predictor_table(result["predictors"], logged))
    show_table(CONSOLE, figure_table(result["figures"], "the forecast against training"))
    return "validation.html"


def run_demo(assignments: list[str], *, validate_forecast: bool, **size: int) -> int:
    """`opdscope demo`."""

    def action() -> int:
        fields = parse_overrides(assignments)
        store = str(fields.get("store", ".opdscope"))
        check_place(store)
        if "store" in fields:
            fields["store"] = absolute(store)  # for the configuration that is stored
        root = Path(".opdscope" if "://" in store else store).expanduser().resolve()
        from schemas.config import DemoConfig
        from tasks.demo.models import demo_configuration

        try:
            settings = DemoConfig(validate_forecast=validate_forecast, **size)
        except ValidationError as error:
            raise ConfigurationError("\n".join(explain(error, DemoConfig))) from error
        checked(merged(demo_configuration(root, settings), fields))  # rejects wrong overrides before any training
        from flows.demo import demo

        if validate_forecast:
            return _run_and_show(lambda: demo(settings, str(root), fields), _show_validation)
        return _follow(lambda: demo(settings, str(root), fields))

    return guarded(action)


def _follow(run: Callable[[], dict[str, Any]]) -> int:
    """Run a diagnosis and show its scores."""

    def show(result: dict[str, Any], store: Any) -> str:
        from flows.command.terminal import score_table, show_table, what_losses_keep
        from tasks.outputs.files import read_table

        summary = read_table(store, result["name"], "summary")
        level = result["configuration"]["scores"]["level"]
        _show_forecast(result, read_table(store, result["name"], "forecasts").to_dicts())
        show_table(CONSOLE, score_table(summary, level))
        _print_lines(what_losses_keep(read_table(store, result["name"], "losses")))
        _show_success(read_table(store, result["name"], "success").to_dicts(), level)
        if result["why_unresolved"] is not None:
            CONSOLE.print(escape(f"unresolved: {result['why_unresolved']}"), soft_wrap=True)
        _print_lines([escape(line) for line in (*result["without_signal"], *result["generated_texts"])])
        return "report.html"

    return _run_and_show(run, show)


def _show_forecast(result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The advice, and the forecast of each signal if there is one."""
    from flows.command.forecasts import forecast_table
    from flows.command.terminal import show_table

    CONSOLE.print(escape(result["advice"]), style="bold", soft_wrap=True)
    if any(row["forecast"] is not None for row in rows):
        show_table(CONSOLE, forecast_table(rows, result["configuration"]["scores"]["forecast_level"]))


def _show_success(rows: list[dict[str, Any]], level: float) -> None:
    """Teachers' own success, if they answered."""
    from flows.command.terminal import show_table, success_table, what_is_copied

    if rows:
        show_table(CONSOLE, success_table(rows, level))
        _print_lines(what_is_copied(rows))


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        CONSOLE.print(line, soft_wrap=True)


def _run_and_show(run: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any], Any], str]) -> int:
    """Run a flow with its progress, then show its result, also if some questions failed.

    Args:
        show: prints the result; returns the name of the main output.
    """
    from flows.command.live import progress
    from flows.diagnose import QuestionsFailedError
    from flows.service.own_server import server_of_command
    from tasks.store.store import Store

    start = time.monotonic()
    failed: QuestionsFailedError | None = None
    try:
        with server_of_command(), progress(ERRORS):
            result = run()
    except QuestionsFailedError as error:
        if error.run is None:
            ERRORS.print(escape(str(error)), style="red", soft_wrap=True)
            return FAILED
        failed, result = error, error.run
    store = Store(result["configuration"]["store"])
    _report(result, store.path("runs", result["name"], show(result, store)), start)
    if failed is not None:
        ERRORS.print(escape(str(failed)), style="red", soft_wrap=True)
    return FAILED if failed is not None else OK


def _report(result: dict[str, Any], output: str, start: float) -> None:
    """Print the questions left out, counts of artefacts and tokens, and the path of the output."""
    for question, why in result["left_out"].items():
        CONSOLE.print(f"left out: question {escape(question)}: {escape(why)}", soft_wrap=True)
    made, cached, tokens = (
        sum(stage[name] for stage in result["stages"].values()) for name in ("made", "cached", "decoded_tokens")
    )
    CONSOLE.print(
        f"{made} artefacts made, {cached} from the store, {tokens:,} tokens decoded, "
        f"{time.monotonic() - start:.0f} s\n{escape(output)}",
        soft_wrap=True,
    )


def plan_file(path: Path, assignments: list[str], *, probe: bool) -> int:
    """`opdscope plan`, of a run or of each run of a suite; with a probe, models are loaded."""

    def action() -> int:
        from flows.command.suite import checked_suite, read_suite

        suite = "runs" in read_configuration(path)
        if suite and assignments:
            raise ConfigurationError(f"--set: {assignments[0]!r} given, but {str(path)!r} is a suite; change its runs")
        configs = checked_suite(read_suite(path)).runs if suite else [load(path, assignments)]
        for config in configs:
            if suite:
                CONSOLE.rule(escape(config.name), align="left", characters="-")
            _plan(config, probe=probe)
        return OK

    return guarded(action)


def _plan(config: RunConfig, *, probe: bool) -> None:
    from flows.command.live import progress
    from flows.command.terminal import show_table
    from flows.plan import cost, cost_table, expectation, what_validation_takes
    from tasks.engines.choice import choose
    from tasks.run.session import close_sessions, open_session
    from tasks.run.throughput import throughput

    session = open_session(config)
    costs, speed = cost(session), None
    probe_wanted = probe and any(c.tokens or c.forwards for c in costs)
    if probe_wanted:
        try:
            with progress(ERRORS):
                speed = throughput(session)
        finally:
            close_sessions()
    show_table(CONSOLE, cost_table(costs, config, speed))
    if probe_wanted and speed is None:
        CONSOLE.print("no estimate of time and memory: the weights of a model are not on this machine")
    if speed is not None:
        CONSOLE.print(expectation(costs, config, speed), soft_wrap=True)
    if config.validation.held_out is not None:
        CONSOLE.print(what_validation_takes(config), soft_wrap=True)
    if config.tree.samples:
        engine, why = choose(config)
        CONSOLE.print(f"engine: {engine.kind} ({why})")
