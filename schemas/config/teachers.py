"""Teachers: models, servers, and tables that other systems recorded."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas import limits
from schemas.config.base import COSMETIC, Settings, check_unique, invalid, with_kinds
from schemas.config.contexts import Context
from schemas.config.engines import TeacherServer
from schemas.config.inputs import Model, Name, Url


class Teacher(Settings):
    """A teacher: a model, or the student itself with a richer context."""

    kind: Literal["model"] = "model"
    name: Name = Field(
        description="Name in tables", min_length=1, max_length=limits.MOST_NAME, json_schema_extra=COSMETIC
    )
    model: Model | None = Field(None, description="null: the student itself (self-distillation), or a server")
    server: TeacherServer | None = Field(None, description="Where the teacher is served, in place of model")
    contexts: list[Context] = Field(default_factory=lambda: [Context()], min_length=1, max_length=limits.MOST_SIGNALS)
    chat_template: Literal["student", "own", "none"] = Field(
        "student", description="Whose chat template renders the teacher's prompt; none: the text alone is the prompt"
    )
    tokenizer: Literal["student", "own"] = Field(
        "student",
        description="own: the teacher has another tokenizer, and is compared where texts of tokens agree; its "
        "chat_template is then own or none",
    )

    @field_validator("contexts", mode="before")
    @classmethod
    def _short_form(cls, contexts: object) -> object:
        return with_kinds(contexts)

    @model_validator(mode="after")
    def _unique_labels(self) -> Self:
        check_unique("contexts", [c.label for c in self.contexts])
        return self

    @property
    def partial(self) -> bool:
        """True where it does not tell whole distributions."""
        return self.tokenizer == "own" or self.server is not None

    @model_validator(mode="after")
    def _own_tokenizer(self) -> Self:
        if self.server is not None and self.model is not None:
            raise invalid("server", "given beside model; leave one of them out")
        if self.server is not None and self.chat_template == "own":
            raise invalid("chat_template", "'own', but a server's model has none here; its prompts are the student's")
        for c, context in enumerate(self.contexts):
            if self.server is not None and context.generate is not None and context.generate.by == "teacher":
                raise invalid(f"contexts.{c}.generate.by", "'teacher', which is on a server; set it to student")
        if self.tokenizer == "own" and self.model is None:
            raise invalid("tokenizer", "'own', but the teacher is the student itself; leave it out")
        if self.tokenizer == "own" and self.chat_template == "student":
            raise invalid("chat_template", "'student', but the tokenizer is the teacher's own; set it to own or none")
        return self


class RecordedTeacher(Settings):
    """A teacher's probabilities collected by another system, read from a table."""

    kind: Literal["recorded"] = "recorded"
    name: Name = Field(
        description="Name in tables", min_length=1, max_length=limits.MOST_NAME, json_schema_extra=COSMETIC
    )
    path: Url = Field(description="JSONL, parquet or CSV table; a path or any fsspec URL", json_schema_extra=COSMETIC)
