"""What a run would cost, told from its configuration and the store alone."""

from dataclasses import dataclass

from rich.table import Table

from tasks.outputs.run import left_out_before
from tasks.run.keys import Signal, losses, sources
from tasks.run.session import Job
from tasks.run.shells import STAGES
from tasks.stages.trees.tree import most_draws, most_forwards
from tasks.store.garbage import stored
from tasks.store.store import OBJECT


@dataclass(frozen=True)
class StageCost:
    """Of one stage: artefacts there and missing, and what the missing ones cost at most."""

    stage: str
    cached: int
    missing: int
    sequences: int
    tokens: int
    forwards: int


def cost(job: Job) -> list[StageCost]:
    """Cost of every stage.

    `tokens` is an upper bound on decoded tokens: every completion as long as the limit; `forwards` counts passes
    over a whole prompt and completion, student and teachers. What the store holds is listed, not read: a damaged
    artefact counts as there. Questions that the last run of this name went on without are not counted again.
    """
    config = job.config
    job.leave_out(left_out_before(job))
    rollouts, limit = config.sampling.rollouts, config.sampling.max_tokens
    costs = []
    for stage in STAGES:
        there = {item.key for item in stored(job.store, stage) if item.name == OBJECT}
        keys_here = {key for keys in job.keys.values() for key in keys.of_stage(stage)}
        total, absent = len(keys_here), len(keys_here - there)
        sequences = tokens = forwards = 0
        if job.recorded:
            pass  # nothing is decoded, no model is asked
        elif stage == "rollouts":
            sequences = absent * rollouts
            tokens = sequences * limit
        elif stage == "trees":
            sequences = absent * most_draws(config.tree)
            tokens, forwards = sequences * (limit - 1), absent * most_forwards(config.tree, rollouts)
        elif stage == "distillation":
            by_source = {
                source: sum(
                    any(keys.distillation[Signal(*source, loss)] not in there for loss in losses(config))
                    for keys in job.keys.values()
                )
                for source in sources(config)
            }
            forwards = 2 * rollouts * sum(by_source.values())
        costs.append(StageCost(stage, total - absent, absent, sequences, tokens, forwards))
    return costs


def cost_table(costs: list[StageCost]) -> Table:
    """The costs for a terminal."""
    table = Table(title="what this run would cost", title_justify="left")
    table.add_column("stage")
    for name in ("cached", "to make", "completions", "decoded tokens, at most", "forward passes"):
        table.add_column(name, justify="right")
    for c in costs:
        table.add_row(c.stage, *(f"{n:,}" for n in (c.cached, c.missing, c.sequences, c.tokens, c.forwards)))
    return table
