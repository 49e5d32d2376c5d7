"""Teachers, and what they see in addition to the question."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas import limits
from schemas.config.base import COSMETIC, Settings, check_unique, invalid, with_kinds
from schemas.config.inputs import Model, Name, Url, template_fields
from schemas.text import quoted

CONTEXT_TEMPLATES = {
    "none": "{prompt}",
    "answer": "{prompt}\n\nThe correct answer is {answer}.",
    "solution": "{prompt}\n\nHere is a correct solution, for reference:\n{solution}\n\nNow solve it yourself.",
    "summary": "{prompt}\n\nHere is a summary of a correct solution:\n{summary}\n\nNow solve it yourself.",
    "wrong_attempt": "{prompt}\n\nHere is an attempt that is wrong:\n{wrong_attempt}\n\nNow solve it correctly.",
    "contrastive": (
        "{prompt}\n\nHere is a correct solution:\n{solution}\n\nHere is an attempt that is wrong:\n"
        "{wrong_attempt}\n\nNow solve it yourself."
    ),
}


class Context(Settings):
    """What a teacher sees in addition to the question."""

    kind: Literal["none", "answer", "solution", "summary", "wrong_attempt", "contrastive", "custom"] = "none"
    name: Name | None = Field(None, description="Name in tables; the kind where null", json_schema_extra=COSMETIC)
    template: str | None = Field(
        None,
        description="User text: {prompt} is the student's own, other {names} are columns of the questions file; "
        "each kind but custom has a default",
    )

    @property
    def label(self) -> str:
        """Name in tables."""
        return self.name or self.kind

    @property
    def text(self) -> str:
        """The effective template."""
        return self.template if self.template is not None else CONTEXT_TEMPLATES[self.kind]

    @model_validator(mode="after")
    def _template(self) -> Self:
        if self.kind == "custom" and (self.template is None or self.name is None):
            raise invalid("template", "a custom context needs a template and a name")
        if self.kind == "none" and self.template is not None:
            raise invalid("template", f"{quoted(self.template)} given to context none; use kind: custom")
        if "prompt" not in template_fields(self.text):
            raise invalid("template", f"{quoted(self.text)} does not contain {{prompt}}, the student's own text")
        return self

    def keyed(self) -> dict[str, Any]:
        """The effective template; the kind is a name for it."""
        return {"template": self.text}


class Teacher(Settings):
    """A teacher: a model, or the student itself with a richer context."""

    kind: Literal["model"] = "model"
    name: Name = Field(
        description="Name in tables", min_length=1, max_length=limits.MOST_NAME, json_schema_extra=COSMETIC
    )
    model: Model | None = Field(None, description="null: the student itself (self-distillation)")
    contexts: list[Context] = Field(default_factory=lambda: [Context()], min_length=1, max_length=limits.MOST_SIGNALS)
    chat_template: Literal["student", "own"] = Field(
        "student", description="Whose chat template renders the teacher's prompt"
    )

    @field_validator("contexts", mode="before")
    @classmethod
    def _short_form(cls, contexts: object) -> object:
        return with_kinds(contexts)

    @model_validator(mode="after")
    def _unique_labels(self) -> Self:
        check_unique("contexts", [c.label for c in self.contexts])
        return self


class RecordedTeacher(Settings):
    """A teacher's probabilities collected by another system, read from a table."""

    kind: Literal["recorded"] = "recorded"
    name: Name = Field(
        description="Name in tables", min_length=1, max_length=limits.MOST_NAME, json_schema_extra=COSMETIC
    )
    path: Url = Field(description="JSONL, parquet or CSV table; a path or any fsspec URL", json_schema_extra=COSMETIC)
