"""What a run would cost: from its configuration and the store alone, and in seconds from a probe of its models."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from flows.command.configuration import ConfigurationError, check_ranked
from schemas.config import RunConfig
from schemas.costs import Cost, Draws
from schemas.pipeline import PIPELINE, Scope, diagnosis_stages, ranking_stages
from schemas.signals import REWARDED
from tasks.engines.memory import GIB
from tasks.outputs.names import left_out_before
from tasks.run.session import RunSession
from tasks.run.throughput import Throughput
from tasks.store.listing import stored
from tasks.store.store import OBJECT
from tasks.validation.trainings import trainings


@dataclass(frozen=True)
class StageCost:
    """One stage's cached and missing artefacts, and the most that the missing ones cost.

    Attributes:
        questions: those with missing artefacts.
        completions, tokens: decoded, with every completion at the length limit.
        forwards: passes over a whole prompt and completion, of student and teachers.
    """

    stage: str
    cached: int
    missing: int
    questions: int
    completions: int
    tokens: int
    forwards: int


def cost(session: RunSession) -> list[StageCost]:
    """Cost of every stage of a diagnosis and of a ranking.

    Artefacts are listed, not read, so a damaged one counts as cached. Questions left out by the last run of this name
    are not counted.
    """
    keys = session.keys
    keys.leave_out(left_out_before(session))
    costs = []
    ranking = ranking_stages(session.config) if can_rank(session.config) else ()
    for name in dict.fromkeys([*diagnosis_stages(), *ranking]):
        stage = PIPELINE[name]
        existing = {item.key for item in stored(session.store, name) if item.name == OBJECT}
        wanted = {(q, s): key for q in keys.questions for s, key in keys.of_stage(name, q).items()}
        if not wanted:
            continue
        absent = {place: key for place, key in wanted.items() if key not in existing}
        taught = [(question, signal) for question, signal in absent if signal is None or signal.source != REWARDED]
        # all losses of one teacher with one context are computed together, and what they are compared with once for all
        units = {(question, signal.source if signal is not None else None) for question, signal in taught}
        questions = {question for question, _ in absent}
        if stage.of_source and stage.scope is not Scope.SOURCE:
            units |= {(question, None) for question, _ in taught}
        one = stage.cost(session.config) if session.config.tree.samples else Cost()
        made, missing = len(set(wanted.values()) & existing), len(set(absent.values()))
        costs.append(StageCost(name, made, missing, len(questions), *(len(units) * n for n in one)))
    return costs


def can_rank(config: RunConfig) -> bool:
    """Whether `rank` takes the configuration."""
    try:
        check_ranked(config)
    except ConfigurationError:
        return False
    return True


def seconds(config: RunConfig, speed: Throughput, planned: StageCost) -> float:
    """Estimate of the time that models take for a stage, with completions of the length that a probe has seen."""
    stage, sampling = PIPELINE[planned.stage], config.sampling
    completion = speed.length(sampling.max_tokens)
    prompt, passes = (speed.passed_prompt, speed.passes) if stage.of_source else (speed.prompt, 1.0)
    # prompts are those of all completions of a question
    scored = planned.forwards * passes * (completion + prompt / sampling.rollouts)
    decoding = 0.0
    if stage.draws is not None and planned.completions:
        begun = completion / 2 if stage.reads else 0.0
        scored += planned.questions * (speed.prompt + (sampling.rollouts * completion if stage.reads else 0.0))
        length = speed.length(sampling.max_tokens - begun)
        decoding = planned.completions * length
        decoding /= speed.decoded_per_second(_rows(config, stage.draws, planned.questions), prompt + begun + length / 2)
    return decoding + scored / speed.scored


def memory(config: RunConfig, speed: Throughput, costs: Sequence[StageCost]) -> float:
    """Estimate of the memory of a run at its peak, bytes: that of a probe, and the caches of what is drawn at once."""
    drawing = [(PIPELINE[c.stage].draws, c.questions) for c in costs if c.completions]
    rows = [_rows(config, draws, questions) for draws, questions in drawing if draws is not None]
    own = min(speed.most_rows, max(rows, default=0)) * speed.length(config.sampling.max_tokens)
    return speed.memory + min(speed.cache_tokens, own) * speed.cache_bytes


def _rows(config: RunConfig, draws: Draws, questions: int) -> int:
    """Draws of so many questions that are decoded together."""
    of_question = min(draws.at_once(config), config.execution.round_draws)
    in_flight = 1 if config.tree.timed else config.execution.questions_in_flight
    return max(1, min(in_flight, questions) * of_question)


def cost_table(costs: Sequence[StageCost], config: RunConfig, speed: Throughput | None) -> Table:
    """The costs for a terminal; with seconds where the speed is known."""
    table = Table(title="what this run would cost", title_justify="left")
    table.add_column("stage")
    for name in ("cached", "to make", "completions", "decoded tokens, at most", "forward passes"):
        table.add_column(name, justify="right")
    if speed is not None:
        table.add_column("models, about", justify="right")
    for c in costs:
        cells = [f"{n:,}" for n in (c.cached, c.missing, c.completions, c.tokens, c.forwards)]
        if speed is not None:
            cells.append(duration(seconds(config, speed, c)) if PIPELINE[c.stage].with_model else "")
        table.add_row(c.stage, *cells)
    return table


def expectation(costs: Sequence[StageCost], config: RunConfig, speed: Throughput) -> str:
    """One paragraph: time and memory of a diagnosis and of a ranking, and what they were estimated from."""

    def total(stages: Sequence[str]) -> str:
        of_flow = [c for c in costs if c.stage in stages]
        if not any(c.missing for c in of_flow if PIPELINE[c.stage].with_model):
            return "no time"
        return f"about {duration(speed.load_seconds + sum(seconds(config, speed, c) for c in of_flow))}"

    ended = speed.completion is not None
    length = f"{speed.length(config.sampling.max_tokens):,.0f} tokens" + ("" if ended else ", the limit, as none ended")
    rate = speed.decoded_per_second(speed.rows[1], speed.context)
    ranked = f"{total(ranking_stages(config))} for rank, " if can_rank(config) else ""
    return (
        f"with models: {ranked}{total(diagnosis_stages())} for run, "
        f"{memory(config, speed, costs) / GIB:.1f} GiB of memory\n"
        f"from a probe on this machine: {rate:,.0f} tokens/s decoded, {speed.scored:,.0f} tokens/s scored, "
        f"completions of {length}"
    )


_UNITS: tuple[tuple[float, str], ...] = ((1, "s"), (60, "min"), (3600, "h"), (86_400, "days"))


def duration(seconds: float) -> str:
    """A time in words, of two digits."""
    size, unit = next((u for u in reversed(_UNITS) if seconds >= 2 * u[0]), _UNITS[0])
    return f"{seconds / size:.2g} {unit}" if seconds / size < 100 else f"{seconds / size:,.0f} {unit}"


def what_validation_takes(config: RunConfig) -> str:
    """A line on the trainings of a validation: how many, and at most how many tokens they sample."""
    settings = config.validation
    students = 1 + len(settings.students)
    n = sum(training.signal is not None for training in trainings(config)) * students
    rollouts = n * settings.steps * settings.batch * settings.rollouts
    most = rollouts * config.sampling.max_tokens
    whose = "1 student" if students == 1 else f"{students} students"
    return (
        f"validate: {n:,} trainings of {whose}, {settings.steps:,} steps each, {rollouts:,} rollouts, at most "
        f"{most:,} tokens, besides {len(settings.logged)} measurements of each"
    )
