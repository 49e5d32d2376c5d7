"""Which artefact follows from which: the keys of a run, known before anything is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from schemas.arrays import STAGE_VERSIONS
from schemas.config import Context, Model, RunConfig, Settings, Teacher, loss_name
from tasks.prompts import load_tokenizer, tokenizer_fingerprint
from tasks.questions import Question
from tasks.store.keys import Recipe, digest, engine_fingerprint, model_fingerprint, verifier_fingerprint


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
    trees: str
    ideal: str
    distillation: dict[Signal, str]
    alignment: dict[Signal, str]

    def of_stage(self, stage: str) -> list[str]:
        """All keys of a stage, in the order of the configuration."""
        keys = getattr(self, stage)
        return list(keys.values()) if isinstance(keys, dict) else [keys]

    def all(self) -> list[tuple[str, str]]:
        """Every (stage, key)."""
        return [(stage, key) for stage in self.__dataclass_fields__ for key in self.of_stage(stage)]


def sources(config: RunConfig) -> dict[Source, tuple[Teacher, Context]]:
    """Teachers with contexts, in the order of the configuration."""
    return {Source(t.name, c.label): (t, c) for t in config.teachers for c in t.contexts}


def losses(config: RunConfig) -> dict[str, Settings]:
    """Losses by name, in the order of the configuration."""
    return {loss_name(loss): loss for loss in config.losses}


def signals(config: RunConfig) -> list[Signal]:
    """Every distillation signal of a run."""
    return [Signal(*source, loss) for source in sources(config) for loss in losses(config)]


class Lineage:
    """Computes keys and remembers what stands behind each; models are looked at once."""

    def __init__(self, config: RunConfig) -> None:
        self.recipes: dict[str, Recipe] = {}
        self._config = config
        self._models: dict[Model, str] = {}
        self._tokenizers: dict[Model, Any] = {}
        self._engine = engine_fingerprint(config.engine.kind)

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

    def keys(self, question: Question, prompt: list[int], shown: Mapping[Source, list[int]]) -> QuestionKeys:
        """Keys of everything that is made for a question, from its student's and teachers' prompts as token ids."""
        config = self._config
        rollouts = self._key(
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
                "student": self.fingerprint(config.student),
                "engine": self._engine,
            },
        )
        trees = self._key("trees", {"tree": config.tree.keyed()}, [rollouts])
        ideal = self._key("ideal", {}, [trees])
        distillation = {}
        for source, (teacher, context) in sources(config).items():
            fingerprints = {
                "teacher": self.fingerprint(teacher.model or config.student),
                "prompt": digest(shown[source]),
            }
            template = {"context": context.keyed(), "chat_template": teacher.chat_template}
            for name, loss in losses(config).items():
                settings = {**template, "loss": loss.keyed()}
                distillation[Signal(*source, name)] = self._key(
                    "distillation", settings, [rollouts, trees], fingerprints
                )
        scores = {"level": config.scores.level, "posterior": config.scores.posterior}
        alignment = {
            signal: self._key("alignment", scores, [trees, ideal, key]) for signal, key in distillation.items()
        }
        return QuestionKeys(rollouts, trees, ideal, distillation, alignment)

    def aggregate_key(self, keys: list[QuestionKeys]) -> str:
        """Key of a run's tables: everything they are read from, and the names that stand in them."""
        settings = {
            "seed": self._config.seed,
            "scores": self._config.scores.keyed(),
            "signals": [list(s) for s in signals(self._config)],
        }
        return self._key("aggregate", settings, [key for k in keys for _, key in k.all()])

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
