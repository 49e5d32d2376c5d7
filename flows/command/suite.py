"""The commands nightly and serve."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.markup import escape

from flows.command.configuration import ConfigurationError, checked, explain, read_configuration
from flows.command.guarded import CONSOLE, ERRORS, FAILED, OK, guarded
from flows.command.places import absolute, check_writable
from schemas.config import NightlyConfig


def read_suite(path: Path, store: str | None = None) -> dict[str, Any]:
    """The fields of a suite; runs given as paths are read relative to the suite.

    Args:
        store: default store of the suite, which in turn is the default of its runs.

    Raises:
        ConfigurationError: a file that cannot be read.
    """
    fields = {**({} if store is None else {"store": store}), **read_configuration(path)}
    for field in ("runs", "validations"):
        given = fields.get(field)
        if isinstance(given, list):
            runs = [_run_fields(path, f"{field}.{i}", r) if isinstance(r, str) else r for i, r in enumerate(given)]
            own = {"store": fields["store"]} if "store" in fields else {}
            fields[field] = [{**own, **r} if isinstance(r, dict) else r for r in runs]
    return fields


def _run_fields(suite: Path, field: str, run: str) -> dict[str, Any]:
    try:
        return read_configuration(suite.parent / run)
    except ConfigurationError as error:
        raise ConfigurationError(f"{field} of {str(suite)!r}: {error}") from error


def checked_suite(fields: dict[str, Any]) -> NightlyConfig:
    """A suite's validated configuration.

    Raises:
        ConfigurationError: names each wrong field.
    """
    try:
        return NightlyConfig.model_validate(fields)
    except ValidationError as error:
        raise ConfigurationError("\n".join(explain(error, NightlyConfig))) from error


def run_nightly(path: Path) -> int:
    """`opdscope nightly`; exit code 1 if something got worse, or the suite is already running."""

    def action() -> int:
        config = checked_suite(read_suite(path))
        from flows.command.live import progress
        from flows.nightly import NightBusyError, message, nightly
        from flows.service.own_server import server_of_command

        try:
            with server_of_command(), progress(ERRORS):
                result = nightly(config)
        except NightBusyError as error:
            ERRORS.print(escape(str(error)), style="red", soft_wrap=True)
            return FAILED
        CONSOLE.print(f"computed: {', '.join(result['computed']) or 'nothing, as nothing has changed'}")
        for line in result["moved"]:
            CONSOLE.print(f"moved: {escape(line)}", soft_wrap=True)
        if result["regressions"]:
            ERRORS.print(escape(message(result)), style="red", soft_wrap=True)
        return FAILED if result["regressions"] else OK

    return guarded(action)


def serve_all(config: Path | None, suite: Path | None, *, cron: str | None, **settings: Any) -> int:
    """`opdscope serve`."""

    def action() -> int:
        if suite is None and cron is not None:
            raise ConfigurationError(f"--cron: {cron!r} given, but no suite; name one with --suite")
        store = settings["store"] = absolute(settings["store"])
        # with all defaults, as forms distinguish kinds by their fields
        fields = checked({"store": store, **read_configuration(config)}).model_dump(mode="json") if config else {}
        nights = checked_suite(read_suite(suite, store)).model_dump(mode="json") if suite else {}
        from flows.service.serve import ServeSettings, serve

        check_writable("--store", store)
        serve(
            ServeSettings(config=fields, suite=nights, cron=cron, **settings), lambda line: CONSOLE.print(escape(line))
        )
        return OK

    return guarded(action)
