"""Which artefact follows from which: the keys of a run, known before anything is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from schemas.arrays import STAGE_VERSIONS
from schemas.config import AdaptiveTree, Context, Model, RecordedTree, RunConfig, Settings, Teacher, loss_name
from tasks.inputs.prompts import load_tokenizer, tokenizer_fingerprint
from tasks.inputs.questions import Question
from tasks.store.keys import Recipe, digest, model_fingerprint, verifier_fingerprint

BUDGET = ("draws", "tokens", "seconds", "half_width")
"""Settings of an adaptive tree that say when it ends, and nothing of what its rounds are."""


class Source(NamedTuple):
    """One teacher with one context, by their names."""

    teacher: str
    context: str


class Signal(NamedTuple):
    """One distillation signal: teacher, context and loss, by their names."""

    teacher: str
    context: str
    loss: str


@dataclass(frozen=True)
class QuestionKeys:
    """Keys of everything that is made for one question."""

    rollouts: str
    rounds: str
    trees: str
    ideal: str
    prior: str
    distillation: dict[Signal, str]
    alignment: dict[Signal, str]

    def of_stage(self, stage: str) -> list[str]:
        """All keys of a stage, in the order of the configuration."""
        keys = getattr(self, stage)
        return list(keys.values()) if isinstance(keys, dict) else [keys]

    def all(self) -> list[tuple[str, str]]:
        """Every (stage, key) but the rounds, which trees are made from."""
        return [
            (stage, key) for stage in self.__dataclass_fields__ if stage != "rounds" for key in self.of_stage(stage)
        ]


def sources(config: RunConfig) -> list[Source]:
    """Teachers with contexts, in the order of the configuration."""
    recorded = [Source(t.name, Context().label) for t in config.recorded_teachers]
    return [*taught(config), *recorded]


def taught(config: RunConfig) -> dict[Source, tuple[Teacher, Context]]:
    """Teachers that are models, with contexts, in the order of the configuration."""
    return {Source(t.name, c.label): (t, c) for t in config.model_teachers for c in t.contexts}


def losses(config: RunConfig) -> dict[str, Settings]:
    """Losses by name, in the order of the configuration."""
    return {loss_name(loss): loss for loss in config.losses}


def signals(config: RunConfig) -> list[Signal]:
    """Every distillation signal of a run."""
    return [Signal(*source, loss) for source in sources(config) for loss in losses(config)]


class Lineage:
    """Computes keys and remembers what stands behind each; models are looked at once."""

    def __init__(self, config: RunConfig, engine: str) -> None:
        """Start with nothing known; `engine` names what draws with its versions."""
        self.recipes: dict[str, Recipe] = {}
        self._config = config
        self._models: dict[Model, str] = {}
        self._tokenizers: dict[Model, Any] = {}
        self._engine = engine

    def tokenizer(self, model: Model) -> Any:
        """A model's tokenizer.

        Raises:
            ValueError: it has none.
        """
        if model not in self._tokenizers:
            self._tokenizers[model] = load_tokenizer(model)
        return self._tokenizers[model]

    def fingerprint(self, model: Model) -> str:
        """Content of model and tokenizer, with the dtype it is run in.

        Raises:
            ValueError: the model is not to be had.
        """
        if model not in self._models:
            content = model_fingerprint(model)
            self._models[model] = digest([content, tokenizer_fingerprint(self.tokenizer(model)), model.dtype])
        return self._models[model]

    def asked(self, question: Question, prompt: list[int]) -> str:
        """Key of a question's rollouts, from its student's prompt as token ids."""
        config = self._config
        return self._key(
            "rollouts",
            {
                "seed": config.seed,
                "prompt": config.prompt.keyed(),
                "sampling": config.sampling.keyed(),
                "verifier": config.verifier.keyed(),
            },
            fingerprints={
                "question": digest([question.id, question.answer]),
                "prompt": digest(prompt),
                "verifier": verifier_fingerprint(config.verifier.kind),
                "student": self.fingerprint(config.model),
                "engine": self._engine,
            },
        )

    def recorded(self, rows: str) -> str:
        """Key of a recorded question's rollouts, from the digest of its rows."""
        return self._key("rollouts", {}, fingerprints={"rows": rows})

    def shown(self, source: Source, prompt: list[int]) -> dict[str, object]:
        """What a model teacher's part of a key is, from its prompt as token ids."""
        teacher, context = taught(self._config)[source]
        return {
            "context": context.keyed(),
            "chat_template": teacher.chat_template,
            "teacher": self.fingerprint(teacher.model or self._config.model),
            "prompt": digest(prompt),
        }

    def keys(
        self, rollouts: Mapping[str, str], shown: Mapping[str, Mapping[Source, dict[str, object]]]
    ) -> dict[str, QuestionKeys]:
        """Keys of everything that is made for each question, from its rollouts' key and what its teachers are."""
        config = self._config
        trees = {i: self._key("trees", {"tree": config.tree.keyed()}, [key]) for i, key in rollouts.items()}
        # of draws made here the temperature is in the rollouts' key; recorded ones are read at the one that is set
        tempered = {"temperature": config.sampling.temperature} if isinstance(config.tree, RecordedTree) else {}
        ideal = {i: self._key("ideal", tempered, [key]) for i, key in trees.items()}
        prior = self._key("prior", {}, sorted(trees.values()))
        endless = config.tree.keyed()
        if isinstance(config.tree, AdaptiveTree):
            endless = {name: value for name, value in endless.items() if name not in BUDGET}
        scores = {"level": config.scores.level, "posterior": config.scores.posterior}
        out = {}
        for i in rollouts:
            distillation = {
                Signal(*source, name): self._key(
                    "distillation", {**settings, "loss": loss.keyed()}, [rollouts[i], trees[i]]
                )
                for source, settings in shown[i].items()
                for name, loss in losses(config).items()
            }
            out[i] = QuestionKeys(
                rollouts[i],
                self._key("rounds", {"tree": endless}, [rollouts[i]]),
                trees[i],
                ideal[i],
                prior,
                distillation,
                {
                    signal: self._key("alignment", scores, [trees[i], ideal[i], prior, key])
                    for signal, key in distillation.items()
                },
            )
        return out

    def ranking_keys(self, rollouts: str, shown: Mapping[Source, dict[str, object]]) -> dict[Signal, str]:
        """Keys of what a ranking reads of one question."""
        return {
            Signal(*source, name): self._key("ranking", {**settings, "loss": loss.keyed()}, [rollouts])
            for source, settings in shown.items()
            for name, loss in losses(self._config).items()
        }

    def values_key(self, rollouts: str) -> str:
        """Key of the values at the ends of a question's segments."""
        return self._key("values", self._config.ranking.keyed(), [rollouts])

    def aggregate_key(self, keys: list[QuestionKeys]) -> str:
        """Key of a run's tables: everything they are read from, and the names that stand in them."""
        settings = {
            "seed": self._config.seed,
            "scores": self._config.scores.keyed(),
            "signals": [list(s) for s in signals(self._config)],
        }
        return self._key("aggregate", settings, list(dict.fromkeys(key for k in keys for _, key in k.all())))

    def _key(
        self,
        stage: str,
        settings: Mapping[str, object],
        inputs: Sequence[str] = (),
        fingerprints: dict[str, str] | None = None,
    ) -> str:
        recipe = Recipe(stage, STAGE_VERSIONS[stage], dict(settings), list(inputs), fingerprints or {})
        self.recipes[recipe.key] = recipe
        return recipe.key
