"""What a run would cost, computed from its configuration and the store alone."""

from dataclasses import dataclass

from rich.table import Table

from schemas.pipeline import PIPELINE, Cost, diagnosis_stages
from tasks.outputs.names import left_out_before
from tasks.run.session import RunSession
from tasks.store.listing import stored
from tasks.store.store import OBJECT


@dataclass(frozen=True)
class StageCost:
    """One stage's cached and missing artefacts, and the most that the missing ones cost."""

    stage: str
    cached: int
    missing: int
    completions: int
    tokens: int
    forwards: int


def cost(session: RunSession) -> list[StageCost]:
    """Cost of every stage.

    `tokens` is an upper bound on decoded tokens, with every completion at the length limit; `forwards` counts passes
    over a whole prompt and completion, of student and teachers. Artefacts are listed, not read, so a damaged one counts
    as cached. Questions left out by the last run of this name are not counted.
    """
    keys = session.keys
    keys.leave_out(left_out_before(session))
    costs = []
    for name in diagnosis_stages():
        stage = PIPELINE[name]
        existing = {item.key for item in stored(session.store, name) if item.name == OBJECT}
        wanted = {(q, s): key for q in keys.questions for s, key in keys.of_stage(name, q).items()}
        absent = {place: key for place, key in wanted.items() if key not in existing}
        # all losses of one teacher with one context are computed together, and what they are compared with once for all
        units = {(question, signal.source if signal is not None else None) for question, signal in absent}
        if stage.of_source:
            units |= {(question, None) for question, _ in absent}
        one = stage.cost(session.config) if session.config.tree.samples else Cost()
        made, missing = len(set(wanted.values()) & existing), len(set(absent.values()))
        costs.append(StageCost(name, made, missing, *(len(units) * n for n in one)))
    return costs


def cost_table(costs: list[StageCost]) -> Table:
    """The costs for a terminal."""
    table = Table(title="what this run would cost", title_justify="left")
    table.add_column("stage")
    for name in ("cached", "to make", "completions", "decoded tokens, at most", "forward passes"):
        table.add_column(name, justify="right")
    for c in costs:
        table.add_row(c.stage, *(f"{n:,}" for n in (c.cached, c.missing, c.completions, c.tokens, c.forwards)))
    return table
