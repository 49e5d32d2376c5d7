"""Trainings of the student on its signals, which a forecast is judged by."""

from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from schemas import limits
from schemas.config.base import COSMETIC, Settings, check_unique, invalid, with_kinds
from schemas.config.forms import ByKind
from schemas.config.inputs import Model, Name, Questions
from schemas.text import quoted


class NamedOptimiser(Settings):
    """What every optimiser has."""

    name: Name | None = Field(None, description="Name in tables; the kind where null", json_schema_extra=COSMETIC)


class AdamW(NamedOptimiser):
    """AdamW, as trainers use it."""

    kind: Literal["adamw"] = "adamw"
    implementation: ClassVar[str] = "tasks.validation.optimisers:adamw"
    learning_rate: float = Field(1e-5, gt=0, le=1)
    beta1: float = Field(0.9, ge=0, lt=1, description="Of the running mean of gradients")
    beta2: float = Field(0.999, ge=0, lt=1, description="Of the running mean of their squares")
    weight_decay: float = Field(0.0, ge=0, le=1)


class NormalisedSteps(NamedOptimiser):
    """Steps of one length along the gradient, so that signals differ by their direction alone."""

    kind: Literal["normalised"] = "normalised"
    implementation: ClassVar[str] = "tasks.validation.optimisers:normalised"
    length: float = Field(0.1, gt=0, le=1000, description="Of a step, in the space of the trained parameters")


Optimiser = Annotated[AdamW | NormalisedSteps, Field(discriminator="kind"), ByKind(flat=True)]


def default_optimisers() -> list[Optimiser]:
    """What trainers use."""
    return [AdamW()]


class Lora(Settings):
    """Low-rank adapters in place of all parameters; needs opdscope[lora]."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: int = Field(32, ge=1, le=10_000, description="Their output is scaled by alpha / rank")
    targets: list[Name] = Field(
        default_factory=list,
        max_length=100,
        description="Names of the adapted layers; all linear ones but the head where empty",
    )


TokenRule = Literal["first", "incorrect", "correct", "entropy", "divergence", "tip"]
TOKEN_RULES: tuple[TokenRule, ...] = get_args(TokenRule)


class Selection(Settings):
    """Tokens that a training learns from; the others count for nothing."""

    kind: TokenRule
    share: float = Field(
        1 / 3,
        gt=0,
        lt=1,
        description="Of the tokens, by first (the first of each rollout), entropy and divergence (the largest of a "
        "step's), tip (the largest of the entropy, and of the divergence among the others)",
    )

    @property
    def label(self) -> str:
        """Name in tables."""
        return self.kind if self.kind in ("incorrect", "correct") else f"{self.kind} {self.share:.3g}"


class Validation(Settings):
    """Real on-policy distillation of the student on its signals, compared with what was forecast beforehand."""

    questions: Questions | None = Field(
        None, description="Questions that are trained on, with the columns of the run's; the run's where null"
    )
    held_out: Questions | None = Field(
        None, description="Questions that success is measured on, of which none is trained on; a validation needs them"
    )
    students: list[Model] = Field(
        default_factory=list,
        max_length=20,
        description="More students with the run's tokenizer, each ranked and trained as the run's is",
    )
    signals: list[str] = Field(
        default_factory=list,
        max_length=limits.MOST_SIGNALS,
        description="Signals that are trained on, as teacher/context/loss, * for any of a kind; all ranked ones where "
        "empty",
    )
    reward: bool = Field(True, description="Train on the reward itself too, by its policy gradient")
    selections: list[Selection] = Field(
        default_factory=list,
        max_length=20,
        description="Also train on some tokens alone, on the signals of `selected`",
    )
    selected: list[str] = Field(
        default_factory=list, max_length=limits.MOST_SIGNALS, description="Signals for these, as in `signals`"
    )
    optimisers: list[Optimiser] = Field(default_factory=default_optimisers, min_length=1, max_length=20)
    seeds: int = Field(3, ge=1, le=100, description="Trainings on each signal, with other questions and draws")
    steps: int = Field(30, ge=1, le=100_000, description="Updates of the parameters")
    batch: int = Field(128, ge=1, le=limits.MOST_AT_ONCE, description="Questions of a step")
    rollouts: int = Field(1, ge=1, le=limits.MOST_ROLLOUTS, description="Fresh rollouts of each of them")
    evaluate_at: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=list,
        max_length=100,
        description="Steps after which success is measured, in increasing order, besides the last",
    )
    held_out_rollouts: int = Field(4, ge=1, le=limits.MOST_ROLLOUTS, description="Per held-out question")
    teacher: Literal["initial", "current"] = Field(
        "initial", description="Whose distribution a student teaches itself by: its own before the training, or now"
    )
    lora: Lora | None = Field(None, description="Train adapters; all parameters where null")
    diagnose: bool = Field(
        True, description="Compute the paper's score too, from trees, for comparison", json_schema_extra=COSMETIC
    )
    workers: int = Field(
        1, ge=1, le=1024, description="Processes, each of which loads the models", json_schema_extra=COSMETIC
    )

    @field_validator("optimisers", mode="before")
    @classmethod
    def _short_form(cls, optimisers: object) -> object:
        return with_kinds(optimisers)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.evaluate_at != sorted(set(self.evaluate_at)) or self.logged[-1] > self.steps:
            what = f"increasing, each once, and at most steps, {self.steps}"
            raise invalid("evaluate_at", f"{self.evaluate_at}; the steps must be {what}")
        for field in ("signals", "selected"):
            for name in getattr(self, field):
                if len(name.split("/")) < 3:
                    raise invalid(field, f"{quoted(name)} is not teacher/context/loss; write */*/* for all")
        if bool(self.selections) != bool(self.selected):
            given, other = ("selections", "selected") if self.selections else ("selected", "selections")
            raise invalid(other, f"empty, but {given} is given; give both or neither")
        check_unique("optimisers", [optimiser_name(o) for o in self.optimisers])
        check_unique("selections", [s.label for s in self.selections])
        return self

    @property
    def logged(self) -> list[int]:
        """Steps after which success is measured."""
        return sorted({*self.evaluate_at, self.steps})


def optimiser_name(optimiser: AdamW | NormalisedSteps) -> str:
    """Name in tables."""
    return optimiser.name or optimiser.kind
