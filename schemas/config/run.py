"""Everything a diagnosis needs."""

from typing import Annotated, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from schemas import limits
from schemas.config.base import COSMETIC, Settings, check_unique, invalid, with_kinds
from schemas.config.contexts import OTHER_ROLLOUTS
from schemas.config.engines import AutoEngine, Engine
from schemas.config.execution import Execution
from schemas.config.forms import ByKind
from schemas.config.inputs import Model, Prompt, Questions, Url
from schemas.config.losses import (
    Divergence,
    Loss,
    MiniLLM,
    PythonLoss,
    SampledToken,
    TopK,
    default_losses,
    loss_name,
)
from schemas.config.rollouts import Rollouts, RolloutTable, SampledRollouts
from schemas.config.scores import Ranking, Scores
from schemas.config.success import Success
from schemas.config.tasks import Task, with_task
from schemas.config.teachers import RecordedTeacher, Teacher
from schemas.config.trainers import expanded
from schemas.config.trees import AdaptiveTree, RecordedTree, Tree, WindowsTree
from schemas.config.update import Update
from schemas.config.validation import Validation
from schemas.config.verifiers import MathVerifier, Verifier


class Sampling(Settings):
    """How the student samples: rollouts, and every draw of the tree."""

    rollouts: int = Field(8, ge=1, le=limits.MOST_ROLLOUTS, description="Rollouts per question")
    max_tokens: int = Field(
        2048,
        ge=2,
        le=limits.MOST_TOKENS,
        description="Length limit of a completion, tokens; with its prompt it must fit the student and every teacher",
    )
    temperature: float = Field(1.0, ge=0.001, le=4, description="Sampling temperature; no top-k or top-p truncation")
    stop: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(
        default_factory=list,
        max_length=20,
        description="A completion ends with the first token whose text contains one of these, besides the model's own "
        "end: such as a line's end for a base model",
    )


REWARD = "reward"
"""What tables have in place of a teacher's name where the reward itself is the signal."""
_WHOLE = (TopK, SampledToken, PythonLoss, MiniLLM)
"""Losses that need whole distributions."""


class RunConfig(Settings):
    """Everything a diagnosis needs."""

    name: str = Field(
        "run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Folder of the outputs, under runs/ in the store",
        json_schema_extra=COSMETIC,
    )
    store: Url = Field(
        ".opdscope", description="Where everything is cached; any fsspec URL", json_schema_extra=COSMETIC
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every draw and every bootstrap")
    task: Task | None = Field(
        None,
        description="A ready-made task, by its name alone or with a folder: questions, prompt and verifier",
        json_schema_extra=COSMETIC,
    )
    questions: Questions | None = Field(None, description="Needed unless the tree is recorded, or there is a task")
    student: Model | None = Field(None, description="Needed unless the tree is recorded")
    prompt: Prompt = Field(default_factory=Prompt)
    verifier: Verifier = Field(default_factory=MathVerifier)
    sampling: Sampling = Field(default_factory=Sampling)
    rollouts: Rollouts = Field(default_factory=SampledRollouts)
    tree: Tree = Field(default_factory=AdaptiveTree)
    teachers: list[Annotated[Teacher | RecordedTeacher, Field(discriminator="kind"), ByKind(flat=True)]] = Field(
        min_length=1, max_length=limits.MOST_SIGNALS
    )
    losses: list[Loss] = Field(default_factory=default_losses, min_length=1, max_length=limits.MOST_SIGNALS)
    success: Success = Field(default_factory=Success)
    scores: Scores = Field(default_factory=Scores)
    ranking: Ranking = Field(default_factory=Ranking)
    update: Update = Field(default_factory=Update)
    validation: Validation = Field(default_factory=Validation)
    engine: Engine = Field(default_factory=AutoEngine)
    execution: Execution = Field(default_factory=Execution)

    @model_validator(mode="before")
    @classmethod
    def _of_task(cls, settings: object) -> object:
        return with_task(settings) if isinstance(settings, dict) else settings

    @field_validator("losses", mode="before")
    @classmethod
    def _short_form(cls, losses: object) -> object:
        return with_kinds([expanded(loss) for loss in losses] if isinstance(losses, list) else losses)

    @field_validator("teachers", "tree", "engine", "rollouts", mode="before")
    @classmethod
    def _default_kind(cls, value: object, info: ValidationInfo) -> object:
        kind = {"teachers": "model", "tree": "adaptive", "engine": "auto", "rollouts": "table"}[str(info.field_name)]
        if isinstance(value, list):
            return [{"kind": kind, **v} if isinstance(v, dict) else v for v in value]
        return {"kind": kind, **value} if isinstance(value, dict) and info.field_name != "teachers" else value

    @model_validator(mode="after")
    def _recorded_or_made(self) -> Self:
        recorded = isinstance(self.tree, RecordedTree)
        for i, teacher in enumerate(self.teachers):
            if isinstance(teacher, RecordedTeacher) != recorded:
                kinds = (
                    "recorded, and so must be every teacher" if recorded else f"{self.tree.kind}, which needs models"
                )
                raise invalid(f"teachers.{i}.kind", f"{teacher.kind!r}, but the tree is {kinds}")
        for name in ("questions", "student"):
            if recorded and getattr(self, name) is not None:
                raise invalid(name, "given, but recorded outcomes need none; leave it out")
            if not recorded and getattr(self, name) is None:
                raise invalid(name, "missing; it has no default")
        sampled = isinstance(self.rollouts, SampledRollouts)
        for t, teacher in enumerate(self.teachers):
            for c, context in enumerate(teacher.contexts if isinstance(teacher, Teacher) else []):
                where = f"teachers.{t}.contexts.{c}"
                for field in ("system", "chat_template_kwargs"):
                    if getattr(context, field) is not None and not self.prompt.chat:
                        raise invalid(f"{where}.{field}", "given, but prompt.chat is false; put it in the template")
                compared = context.generate is not None and context.generate.success_draws > 0
                if compared and isinstance(teacher, Teacher) and teacher.server is not None:
                    why = "given, but a teacher on a server answers no questions here; leave it out"
                    raise invalid(f"{where}.generate.success_draws", why)
                if set(OTHER_ROLLOUTS) & set(context.names.texts) and self.sampling.rollouts < 2 and sampled:
                    raise invalid(where, "shows another rollout, but sampling.rollouts is 1; raise that")
        if recorded and isinstance(self.rollouts, RolloutTable):
            raise invalid("rollouts", "a table, but the tree is recorded, whose table has the rollouts; leave it out")
        return self

    @model_validator(mode="after")
    def _losses_that_can_be(self) -> Self:
        recorded = isinstance(self.tree, RecordedTree)
        for i, loss in enumerate(self.losses):
            where, name = f"losses.{i}", repr(loss_name(loss))
            hot = isinstance(loss, Divergence) and loss.teacher_temperature != 1
            whole = isinstance(loss, _WHOLE) or hot
            partial = next((t for t in self.model_teachers if t.partial), None)
            if whole and partial is not None and (hot or not isinstance(loss, SampledToken)):
                what = "is on a server" if partial.server is not None else "has a tokenizer of its own"
                why = f"needs whole distributions, and teacher {partial.name!r} {what}"
                raise invalid(where, f"{name} {why}; leave one of them out")
            if recorded and whole:
                raise invalid(where, f"{name} needs whole distributions; a recorded table has branches")
            if isinstance(loss, MiniLLM) and isinstance(self.tree, WindowsTree):
                raise invalid(where, f"{name} needs draws from forced branches; tree.kind is windows, choose adaptive")
        return self

    def name_of_student(self, number: int) -> str:
        """The name of the run of a validation's further student, from 2 on."""
        return f"{self.name[:80]}-student-{number}"

    @property
    def asked(self) -> Questions:
        """The questions of a run that is not recorded."""
        if self.questions is None:
            raise ValueError("recorded outcomes have no questions file")
        return self.questions

    @property
    def model(self) -> Model:
        """The student of a run that is not recorded."""
        if self.student is None:
            raise ValueError("recorded outcomes have no student")
        return self.student

    @property
    def recorded_tree(self) -> RecordedTree:
        """The table of a run that is recorded."""
        if not isinstance(self.tree, RecordedTree):
            raise ValueError(f"the tree is {self.tree.kind}, not recorded")
        return self.tree

    @property
    def model_teachers(self) -> list[Teacher]:
        """The teachers that are models, in order."""
        return [t for t in self.teachers if isinstance(t, Teacher)]

    @property
    def recorded_teachers(self) -> list[RecordedTeacher]:
        """The teachers that are tables, in order."""
        return [t for t in self.teachers if isinstance(t, RecordedTeacher)]

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        for i, teacher in enumerate(self.teachers):
            if teacher.name == REWARD:
                raise invalid(f"teachers.{i}.name", f"{REWARD!r}, which tables have for the reward itself; rename it")
        check_unique("teachers", [t.name for t in self.teachers])
        check_unique("losses", [loss_name(loss) for loss in self.losses])
        return self
