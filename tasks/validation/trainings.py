"""The trainings of a validation: which there are, and what identifies each."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from schemas.config import RunConfig, Selection, optimiser_name
from schemas.config.contexts import OTHER_ROLLOUTS
from schemas.signals import POLICY, Signal, Source, model_sources, ranked_signals


class Training(NamedTuple):
    """One training.

    Attributes:
        signal: what the student learns from; None: nothing, it is the student as it is.
        selection: the tokens that it learns from; None: all.
        optimiser: its name.
        seed: of its questions and draws.
    """

    signal: Signal | None = None
    selection: Selection | None = None
    optimiser: str = ""
    seed: int = 0

    @property
    def tokens(self) -> str:
        """The selected tokens, as tables name them."""
        return "all" if self.selection is None else self.selection.label


UNTRAINED = Training()


def trainings(config: RunConfig) -> list[Training]:
    """Every training of a validation, the student as it is first; those of one signal stand together."""
    settings, out = config.validation, [UNTRAINED]
    chosen = chosen_signals(config, settings.signals or ["*/*/*"])
    selected = chosen_signals(config, settings.selected)
    for optimiser in settings.optimisers:
        name = optimiser_name(optimiser)
        for signal in [*chosen, *([POLICY] if settings.reward else [])]:
            out += [Training(signal, None, name, seed) for seed in range(settings.seeds)]
        for signal in selected:
            for selection in settings.selections:
                out += [Training(signal, selection, name, seed) for seed in range(settings.seeds)]
    return out


def chosen_signals(config: RunConfig, patterns: Sequence[str]) -> list[Signal]:
    """Those of `trainable_signals` that one of some patterns, teacher/context/loss, names, in their order."""
    return [s for s in trainable_signals(config) if any(fnmatchcase("/".join(s), pattern) for pattern in patterns)]


def trainable_signals(config: RunConfig) -> list[Signal]:
    """Ranked signals, but for those of `untrained_sources`."""
    left_out = untrained_sources(config)
    return [signal for signal in ranked_signals(config) if signal.source not in left_out]


def untrained_sources(config: RunConfig) -> dict[Source, str]:
    """Teachers with contexts that no training is made with, and why."""
    out = {}
    for source, (teacher, context) in model_sources(config).items():
        if context.generate is not None:
            out[source] = "shows generated texts, which would have to be written anew at every step"
        elif teacher.model is None and teacher.server is None and context.kind == "none":
            out[source] = "equals the student"
        elif config.validation.rollouts < 2 and any(name in OTHER_ROLLOUTS for name in context.names.texts):
            out[source] = "shows other rollouts, which a step has where validation.rollouts is 2 or more"
    return out
