"""Where questions and models are, and how a question becomes a prompt."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from schemas import limits
from schemas.config.base import COSMETIC, Settings, checked_text, invalid
from schemas.config.templates import names_in
from schemas.text import name_problem, quoted
from schemas.urls import url_problem


def place_problem(url: str) -> str | None:
    """Why a text is not a path or URL of a table, model or store; None where it is one."""
    if url.startswith("~") and os.path.expanduser(url).startswith("~"):  # noqa: PTH111 - may be a URL
        return "is in the home folder of a user unknown on this machine"
    return url_problem(url)


Url = Annotated[str, checked_text(place_problem)]
"""A path or any fsspec URL, including chained ones, without a password or signature: `schemas.urls`."""


Name = Annotated[str, checked_text(name_problem)]
"""A label in tables and charts: printable, at most 100 characters."""


Function = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="A Python function, as module:function; runs only where OPDSCOPE_ALLOW_CODE=1 is set",
    ),
]
"""Code of the user's own: `tasks.operations.user_code`."""


class Questions(Settings):
    """Where the questions are and which columns hold what."""

    path: Url = Field(description="JSONL, parquet or CSV file; a path or any fsspec URL", json_schema_extra=COSMETIC)
    id: str | None = Field(
        "id", description="Column with a unique id; null: the number of the row", json_schema_extra=COSMETIC
    )
    answer: str = Field("answer", description="Column with the reference answer", json_schema_extra=COSMETIC)
    layout: Literal["plain", "boolq", "mmlu", "gsm8k"] = Field(
        "plain",
        description="Data set whose rows become questions: boolq has answers true and false, mmlu a list of choices "
        "with the place of the right one, gsm8k the solution before the answer",
        json_schema_extra=COSMETIC,
    )
    limit: int | None = Field(
        None,
        ge=1,
        le=limits.MOST_ROWS,
        description="Maximum number of questions, from the start of the file",
        json_schema_extra=COSMETIC,
    )
    without_signal: Literal["keep", "leave_out"] = Field(
        "keep",
        description="What a diagnosis does with questions whose rollouts are all right, or all wrong: their trees may "
        "still find a direction, and cost as much as others",
        json_schema_extra=COSMETIC,
    )


class Model(Settings):
    """A causal language model: a folder, a GGUF file, or a hub name with an optional revision."""

    path: Url = Field(
        description="Model folder, GGUF file or hub name; keys contain its content or commit, not its location",
        json_schema_extra=COSMETIC,
    )
    revision: Name | None = Field(
        None,
        description="Branch, tag or commit of a hub model; keys contain the commit it resolves to",
        json_schema_extra=COSMETIC,
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Weights and activations; sums over the vocabulary are float32 or better"
    )
    trust_remote_code: bool = Field(
        False, description="Run code that comes with the model repository", json_schema_extra=COSMETIC
    )

    @field_validator("path")
    @classmethod
    def _home(cls, path: str) -> str:
        return str(Path(path).expanduser()) if path.startswith("~") else path

    @model_validator(mode="after")
    def _file_without_revision(self) -> Self:
        if self.is_gguf and self.revision is not None:
            raise invalid("revision", f"{quoted(self.revision)} cannot be had of a GGUF file; leave it out")
        return self

    @property
    def is_gguf(self) -> bool:
        """True for a GGUF file, whose weights are expanded to `dtype` when it is loaded."""
        return self.path.lower().endswith(".gguf")

    @property
    def pretrained(self) -> dict[str, Any]:
        """Where it is, as the arguments of transformers' `from_pretrained`."""
        if self.is_gguf:
            file = Path(self.path)
            return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        return {"pretrained_model_name_or_path": self.path, "revision": self.revision}


def _true_or_false(given: dict[str, bool | int | str]) -> dict[str, bool | int | str]:
    for name, value in given.items():
        if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):  # all are truthy in a template
            raise invalid("chat_template_kwargs", f"{quoted(name)} is the text {value!r}; write true or false")
    return given


TemplateArguments = Annotated[dict[str, bool | int | str], AfterValidator(_true_or_false)]
"""Arguments of a chat template."""


class Prompt(Settings):
    """How a question becomes the student's prompt."""

    template: str = Field(
        "{{ question }}", description="User text, a Jinja template: names are columns of the questions file"
    )
    system: str | None = Field(None, description="System message, chat only")
    chat: bool = Field(True, description="Apply the model's chat template; otherwise the text is the prompt")
    chat_template_kwargs: TemplateArguments = Field(
        default_factory=dict, max_length=100, description="Passed to the chat template, such as enable_thinking: false"
    )

    @field_validator("template")
    @classmethod
    def _plain_fields(cls, template: str) -> str:
        names = names_in(template)
        if names.lists:
            raise invalid("template", f"{quoted(template)} has a loop over {names.lists[0]}, which no column is")
        if not names.texts:
            raise invalid("template", f"{quoted(template)} has no column in it; write {{{{ question }}}} for one")
        return template

    @model_validator(mode="after")
    def _system_needs_chat(self) -> Self:
        if self.system is not None and not self.chat:
            raise invalid("system", f"{quoted(self.system)} cannot be used where chat is false; put it in template")
        return self


def is_local_folder(path: str) -> bool:
    """True where a model path is a local folder, not a hub repository."""
    return os.path.isdir(path)  # noqa: PTH112 - false for names that are invalid in file systems
