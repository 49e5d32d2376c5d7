"""`opdscope calibrate`."""

import time

from pydantic import ValidationError
from rich.markup import escape

from flows.command.configuration import ConfigurationError, explain
from flows.command.guarded import CONSOLE, ERRORS, FAILED, OK, guarded
from flows.command.places import check_writable
from schemas.config import CalibrateConfig


def run_calibration(fields: dict[str, object]) -> int:
    """`opdscope calibrate`; exit code 1 if a figure fails."""

    def action() -> int:
        try:
            config = CalibrateConfig.model_validate(fields)
        except ValidationError as error:
            raise ConfigurationError("\n".join(explain(error, CalibrateConfig))) from error
        from flows.calibrate import calibrate
        from flows.command.live import progress
        from flows.command.terminal import figure_table, planner_table, ranking_shares, show_table
        from flows.service.own_server import server_of_command
        from tasks.calibration.judge import by_planner, figures, judged_as, ranking_table
        from tasks.store.store import Store

        check_writable("store", config.store)
        start = time.monotonic()
        with server_of_command(), progress(ERRORS):
            rows = calibrate(config)
        judged = figures(rows)
        for table in (
            figure_table([f.row for f in judged], "the estimators against the exact oracle"),
            planner_table(by_planner(rows)),
            ranking_shares(ranking_table(rows)),
        ):
            show_table(CONSOLE, table)
        page = Store(config.store).path("runs", config.name, "calibration.html")
        CONSOLE.print(f"{time.monotonic() - start:.0f} s\n{escape(page)}", soft_wrap=True)
        return FAILED if judged_as("fail", judged) else OK

    return guarded(action)
