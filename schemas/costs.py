"""Upper bounds for the work of each stage, by the settings of a run alone."""

from collections.abc import Callable
from typing import NamedTuple

from schemas.config import Context, MiniLLM, RolloutTable, RunConfig
from schemas.signals import answering_sources, model_sources, of_teachers


class Cost(NamedTuple):
    """Upper bounds for one unit of a stage's work: completions, tokens decoded for them, full forward passes."""

    completions: int = 0
    tokens: int = 0
    forwards: int = 0


class Draws(NamedTuple):
    """The draws of a stage: their label in progress reports, the maximum per question, and of these at once."""

    label: str
    most: Callable[[RunConfig], int]
    at_once: Callable[[RunConfig], int]


def rollouts(config: RunConfig) -> int:
    """Rollouts of a question that the student samples."""
    return 0 if isinstance(config.rollouts, RolloutTable) else config.sampling.rollouts


def rollouts_cost(config: RunConfig) -> Cost:
    """Of the rollouts."""
    if isinstance(config.rollouts, RolloutTable):
        return Cost()
    return Cost(config.sampling.rollouts, config.sampling.rollouts * config.sampling.max_tokens)


def texts(config: RunConfig) -> int:
    """Texts written for a question, for all contexts."""
    return sum(_tries(config, context) for _, context in model_sources(config).values())


def _tries(config: RunConfig, context: Context) -> int:
    if context.generate is None:
        return 0
    return context.generate.tries * (config.sampling.rollouts if context.written_for_rollouts else 1)


def texts_cost(config: RunConfig) -> Cost:
    """For each of the sources that have generated texts, on the average."""
    written = [context for _, context in model_sources(config).values() if context.generate is not None]
    if not written:
        return Cost()
    tokens = sum(_tries(config, c) * c.generate.max_tokens for c in written if c.generate is not None)
    compared = sum(_compared(config, c) for c in written)
    tokens += compared * config.sampling.max_tokens
    return Cost(-(-(texts(config) + compared) // len(written)), -(-tokens // len(written)))


def _compared(config: RunConfig, context: Context) -> int:
    """Answers by the teacher that screen a context's texts: with each, and without any."""
    if context.generate is None:
        return 0
    places = config.sampling.rollouts if context.written_for_rollouts else 1
    return context.generate.success_draws * (_tries(config, context) + places)


def answers(config: RunConfig) -> int:
    """Answers of all teachers with their contexts to a question."""
    return answers_cost(config).completions * len(answering_sources(config))


def answers_cost(config: RunConfig) -> Cost:
    """Of those of one teacher with a context."""
    return Cost(config.success.rollouts, config.success.rollouts * config.sampling.max_tokens)


def handovers(config: RunConfig) -> int:
    """Continuations of all these answers by the student."""
    return handover_cost(config).completions * len(answering_sources(config))


def _places(config: RunConfig) -> int:
    """Places in an answer that the student goes on from; where it begins is not known of a user's own verifier."""
    return len(config.success.parts) + (config.verifier.kind != "python")


def handover_cost(config: RunConfig) -> Cost:
    """Of those for one teacher with a context."""
    each = config.success.rollouts * config.success.continuations * _places(config)
    return Cost(each, each * (config.sampling.max_tokens - 1))


def trees_cost(config: RunConfig) -> Cost:
    """Of a tree."""
    tree = config.tree
    forwards = tree.most_forwards(config.sampling.rollouts)
    return Cost(tree.most_draws, tree.most_draws * (config.sampling.max_tokens - 1), forwards)


def distillation_cost(config: RunConfig) -> Cost:
    """Of the student, and of one teacher with a context."""
    draws = config.tree.most_draws if any(isinstance(loss, MiniLLM) for loss in config.losses) else 0
    return Cost(forwards=config.sampling.rollouts + draws)


def value_draws(config: RunConfig) -> int:
    """Continuations for the values along a question's rollouts."""
    return config.sampling.rollouts * (config.ranking.segments - 1) * config.ranking.draws


def updates_cost(config: RunConfig) -> Cost:
    """Of the student, and of one teacher with a context: a pass forward and two passes' worth back for each loss."""
    backward = 2 * len(of_teachers(config)) if config.update.dimensions else 0
    return Cost(forwards=config.sampling.rollouts * (1 + backward))
