"""The report: one HTML file that needs no network.

Its script and styles are the only ones that its Content-Security-Policy allows, by their digests. Model output reaches
the page as data that the script shows as text; the template escapes the rest.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from schemas.config import RunConfig, is_local_folder
from tasks.outputs.report.bundle import allowed, script, style
from tasks.outputs.report.facts import Facts, LeftOut, Told
from tasks.outputs.report.overview import overview
from tasks.outputs.report.packing import packed
from tasks.outputs.report.rollouts import Rollouts


def render(
    config: RunConfig,
    facts: Sequence[Facts],
    tables: Mapping[str, pl.DataFrame],
    shown: Rollouts,
    left_out: LeftOut,
    told: Told,
) -> str:
    """The page.

    Args:
        facts: of all questions.
        tables: the run's tables, by name.
        shown: the questions' rollouts.
        left_out: questions that were left out, with the reason.
        told: what it says in words.
    """
    environment = Environment(
        loader=PackageLoader("tasks.outputs.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    code, styles = script(), style()
    return environment.get_template("report.html.jinja").render(
        name=config.name,
        student=_student(config),
        left_out=left_out,
        told=told,
        policy="; ".join(
            [
                "default-src 'none'",
                f"script-src {allowed(code)}",
                f"style-src {allowed(styles)}",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        style=Markup(styles),  # noqa: S704 - this project's own
        script=Markup(code),  # noqa: S704
        overview=Markup(packed({}, overview(config, facts, tables, shown))),  # noqa: S704 - base64
        questions=[Markup(question.data) for question in shown.questions],  # noqa: S704
    )


def _student(config: RunConfig) -> str:
    if config.student is None:
        return "recorded outcomes"
    local = config.student.is_gguf or is_local_folder(config.student.path)
    return Path(config.student.path).name if local else config.student.path
