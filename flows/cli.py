"""The command line. Nothing heavy is imported before a command needs it."""

import json
import re
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.command.signals import ended_by_signals
from flows.command.store_app import Kept, store_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Before any training run: which teacher, context and loss push a reasoning model towards success.",
)

app.add_typer(store_app, name="store")

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a field: tree.draws=128. May be repeated.", metavar="A.B=C"),
]
StoreUrl = Annotated[str | None, typer.Option(help="Store of artefacts and outputs; any fsspec URL.", metavar="URL")]
Name = Annotated[str | None, typer.Option(help="Folder of the outputs under STORE/runs.")]
Configuration = Annotated[Path, typer.Argument(help="YAML file.", metavar="CONFIG.yaml")]


def main() -> None:
    """Entry point: run a command that a signal ends whatever it is doing."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no exception once a command has ended
    sys.exit(ended_by_signals(app))


@app.command()
def demo(
    set_: Set = None,
    store: StoreUrl = None,
    name: Name = None,
    questions: Annotated[int, typer.Option(min=5, max=1000, help="Number of questions.")] = 24,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of questions, training and draws.")] = 0,
    width: Annotated[int, typer.Option(min=16, max=512, help="Hidden size of the student, a multiple of 16.")] = 64,
    validate: Annotated[
        bool, typer.Option("--validate", help="Also train a second student, and both on every signal: see validate.")
    ] = False,
) -> None:
    """Train a small student and its teachers here, then run the whole pipeline on them."""
    from flows.command.run import run_demo

    size = {"questions": questions, "seed": seed, "width": width}
    raise typer.Exit(run_demo(overrides(set_, store, name), validate_forecast=validate, **size))


@app.command()
def run(config: Configuration, set_: Set = None, store: StoreUrl = None, name: Name = None) -> None:
    """Diagnose: sample rollouts, build trees, score every teacher, context and loss."""
    from flows.command.run import run_file

    raise typer.Exit(run_file(config, overrides(set_, store, name)))


@app.command()
def rank(config: Configuration, set_: Set = None, store: StoreUrl = None, name: Name = None) -> None:
    """Rank teachers, contexts and losses from on-policy rollouts alone: no trees, one forward pass per teacher."""
    from flows.command.run import rank_file

    raise typer.Exit(rank_file(config, overrides(set_, store, name)))


@app.command()
def validate(config: Configuration, set_: Set = None, store: StoreUrl = None, name: Name = None) -> None:
    """Train the student on every signal for real, and compare with what was forecast."""
    from flows.command.run import validate_file

    raise typer.Exit(validate_file(config, overrides(set_, store, name)))


@app.command()
def calibrate(
    store: StoreUrl = None,
    name: Name = None,
    runs: Annotated[int, typer.Option(min=2, help="Runs of each family of questions.")] = 20,
    lengths: Annotated[str, typer.Option(help="Tokens of a rollout, separated by commas.")] = "64,256,1024,4096",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of questions and runs.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Evaluate the estimators against an exact oracle: bias, coverage, wrong signs, error per decoded token."""
    from flows.command.calibrate import run_calibration

    fields: dict[str, object] = {"runs": runs, "seed": seed, "workers": workers, "lengths": numbers(lengths)}
    given = {key: value for key, value in (("store", store), ("name", name)) if value is not None}
    raise typer.Exit(run_calibration({**fields, **given}))


@app.command()
def plan(
    config: Configuration,
    set_: Set = None,
    store: StoreUrl = None,
    name: Name = None,
    probe: Annotated[
        bool,
        typer.Option(help="Estimate seconds and memory from a short probe, kept for later; else no model is loaded."),
    ] = True,
) -> None:
    """Show what a run, or each run of a suite, would cost, in time and memory too, and how much of it is cached."""
    from flows.command.run import plan_file

    raise typer.Exit(plan_file(config, overrides(set_, store, name), probe=probe))


@app.command()
def show(
    config: Configuration,
    set_: Set = None,
    store: StoreUrl = None,
    name: Name = None,
    question: Annotated[str | None, typer.Option(help="Its id; default: the first.", metavar="ID")] = None,
    score: Annotated[bool, typer.Option(help="Show the probabilities of a rollout's first tokens too.")] = True,
) -> None:
    """Show the prompts of student and teachers as rendered, and what each makes of a rollout's first tokens."""
    from flows.command.show import show_file

    raise typer.Exit(show_file(config, overrides(set_, store, name), question=question, score=score))


@app.command()
def verify(
    config: Configuration,
    set_: Set = None,
    store: StoreUrl = None,
    name: Name = None,
    questions: Annotated[int, typer.Option(min=1, max=1000, help="Questions whose rollouts are judged.")] = 5,
) -> None:
    """Show what the verifier reads in rollouts, and where another kind of verifier would judge otherwise."""
    from flows.command.verify import verify_file

    raise typer.Exit(verify_file(config, overrides(set_, store, name), questions=questions))


Runs = Annotated[
    list[str], typer.Argument(help="Name of a run in the store, or STORE/runs/NAME, or STORE#NAME.", metavar="RUN...")
]
FinishedIn = Annotated[str, typer.Option("--store", help="Store of runs given by name; any fsspec URL.", metavar="URL")]


@app.command()
def compare(
    runs: Runs,
    store: FinishedIn = ".opdscope",
    output: Annotated[
        Path | None, typer.Option(help="Also write the tables: .md, .tex, .csv or .parquet.", metavar="FILE")
    ] = None,
) -> None:
    """Show runs side by side: students, checkpoints, nights; differences to the first, paired by question."""
    from flows.command.compare import compare_runs

    raise typer.Exit(compare_runs(runs, store, output))


@app.command()
def figures(
    run: Annotated[str, typer.Argument(help="Name of a run in the store, or STORE/runs/NAME, or STORE#NAME.")],
    store: FinishedIn = ".opdscope",
    output: Annotated[Path | None, typer.Option(help="Folder; default: RUN-figures.", metavar="FOLDER")] = None,
    formats: Annotated[str, typer.Option("--format", help="Of the figures, separated by commas.")] = "svg,png,pdf",
) -> None:
    """Write the figures of a run for a paper, and its tables in LaTeX and Markdown."""
    from flows.command.figures import draw_figures

    raise typer.Exit(draw_figures(run, store, output, formats))


@app.command()
def nightly(suite: Annotated[Path, typer.Argument(help="YAML file of a suite.", metavar="SUITE.yaml")]) -> None:
    """Execute every run of a suite that has something new, and mark scores that moved since previous nights."""
    from flows.command.suite import run_nightly

    raise typer.Exit(run_nightly(suite))


@app.command()
def serve(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file that fills the forms.", metavar="CONFIG.yaml")
    ] = None,
    store: Annotated[str, typer.Option(help="Store of runs that name none.", metavar="URL")] = ".opdscope",
    suite: Annotated[Path | None, typer.Option(help="Suite of the nightly run.", metavar="SUITE.yaml")] = None,
    cron: Annotated[str | None, typer.Option(help="Schedule of the suite, such as '0 3 * * *'.")] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of the schedule.")] = "UTC",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Prefect's server and UI.")] = 4200,
    reports_port: Annotated[int, typer.Option(min=1, max=65535, help="Reports of finished runs.")] = 4201,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; default: this machine only. "
            "Any other needs a password: PREFECT_SERVER_API_AUTH_STRING=user:password."
        ),
    ] = "127.0.0.1",
    public_host: Annotated[
        list[str] | None,
        typer.Option(help="Host name for users and workers, also used in links. May be repeated.", metavar="NAME"),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Concurrent runs; more than one needs Prefect on PostgreSQL.")] = 1,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let runs execute code that their configuration names.")
    ] = False,
) -> None:
    """Serve the UI: Prefect's server (unless PREFECT_API_URL names one), deployments, schedule, reports, a worker."""
    from flows.command.suite import serve_all

    raise typer.Exit(
        serve_all(
            config,
            suite,
            store=store,
            cron=cron,
            timezone=timezone,
            port=port,
            reports_port=reports_port,
            host=host,
            public_hosts=public_host or [],
            runs=runs,
            allow_code=allow_code,
        )
    )


@app.command()
def export(
    run_name: Annotated[str, typer.Argument(help="Name of a finished run in the store.", metavar="RUN")],
    to: Annotated[
        str, typer.Option(help="verl, trl, prime-rl, miles, nemo-rl, tinker, jsonl or parquet.", metavar="TRAINER")
    ],
    store: Kept = ".opdscope",
    signal: Annotated[
        str | None, typer.Option(help="Default: the first by forecast, or by gain.", metavar="TEACHER/CONTEXT/LOSS")
    ] = None,
    choose: Annotated[
        str,
        typer.Option(help="run: one signal; question or token: another teacher or context where it is clearly better."),
    ] = "run",
    mask: Annotated[bool, typer.Option("--mask", help="Weights of 0 and 1 only.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder; default: RUN-TRAINER, here.", metavar="FOLDER")] = None,
) -> None:
    """Write weights of the run's tokens, a rule for fresh rollouts, and what a trainer's hook needs."""
    from flows.command.export import export_file

    raise typer.Exit(export_file(run_name, to, store=store, signal=signal, choose=choose, mask=mask, output=output))


def numbers(text: str) -> list[int | str]:
    """Integers separated by commas; anything else stays text, which validation of the field then reports."""
    parts = [part.strip() for part in text.split(",")]
    return [int(part) if re.fullmatch(r"[-+]?[0-9]{1,40}", part) else part for part in parts]


def overrides(assignments: list[str] | None, store: str | None, name: str | None) -> list[str]:
    """All overrides as assignments; --store and --name come last."""
    named = [f"{field}={json.dumps(value)}" for field, value in (("store", store), ("name", name)) if value is not None]
    return [*(assignments or []), *named]


if __name__ == "__main__":
    main()
