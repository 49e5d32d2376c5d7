"""Contexts: what a teacher sees in addition to the question."""

from itertools import chain
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from schemas import limits
from schemas.config.base import COSMETIC, Settings, invalid
from schemas.config.inputs import Name, TemplateArguments
from schemas.config.templates import Names, names_in
from schemas.text import quoted

CONTEXT_TEMPLATES = {
    "none": "{{ prompt }}",
    "answer": "{{ prompt }}\n\nThe correct answer is {{ answer }}.",
    "solution": "{{ prompt }}\n\nHere is a correct solution, for reference:\n{{ solution }}\n\nNow solve it yourself.",
    "summary": "{{ prompt }}\n\nHere is a summary of a correct solution:\n{{ summary }}\n\nNow solve it yourself.",
    "wrong_attempt": (
        "{{ prompt }}\n\nHere is an attempt that is wrong:\n{{ wrong_attempt }}\n\nNow solve it correctly."
    ),
    "right_attempt": (
        "{{ prompt }}\n\nHere is an attempt that is right:\n{{ right_attempt }}\n\nNow solve it yourself."
    ),
    "contrastive": (
        "{{ prompt }}\n\nHere is a correct solution:\n{{ solution }}\n\nHere is an attempt that is wrong:\n"
        "{{ wrong_attempt }}\n\nNow solve it yourself."
    ),
    "rationale": ("{{ prompt }}\n\nHere is how one finds a solution:\n{{ rationale }}\n\nNow solve it yourself."),
    "critique": (
        "{{ prompt }}\n\nHere is an earlier attempt:\n{{ attempt }}\n\nA critique of it:\n{{ critique }}\n\n"
        "Now solve it again."
    ),
    "feedback": (
        "{{ prompt }}\n\nHere is an earlier attempt:\n{{ attempt }}\n\nIt is {{ verdict }}. Now solve it again."
    ),
    "demonstrations": (
        "{% for other in demonstrations %}{{ other.question }}\n{{ other.solution }}\n\n{% endfor %}{{ prompt }}"
    ),
}

WRITER_TEMPLATES = {
    "summary": (
        "{{ prompt }}\n\nHere is a correct solution:\n{{ solution }}\n\n"
        "Do not solve it again. Summarise the solution's ideas in a few sentences."
    ),
    "rationale": (
        "{{ prompt }}\n\nHere is a correct solution:\n{{ solution }}\n\n"
        "Explain how one finds this solution, step by step, in your own words."
    ),
    "critique": (
        "{{ prompt }}\n\nHere is an attempt:\n{{ attempt }}\n\nIt is {{ verdict }}. "
        "Do not solve it again. Say which steps are right, and where and why it goes wrong, if it does."
    ),
}
"""What a writer is asked for, by the kind of context."""

OTHER_ROLLOUTS = ("right_attempt", "failed_attempt")
"""Names of another rollout of the question than the one that is scored: one that is right, one that is wrong."""
OF_ROLLOUTS = (*OTHER_ROLLOUTS, "attempt", "verdict")
"""Names that stand for the student's own rollouts: other ones; the one that is scored, and whether it is `right` or
`wrong`."""


class Generation(Settings):
    """A text that a model writes for a context; of several tries, the first that passes the screen is shown."""

    by: Literal["teacher", "student"] = Field("teacher", description="Who writes it; the teacher without its context")
    template: str | None = Field(
        None,
        description="What the writer is asked, a template over prompt, columns and, for a text on each rollout, "
        "attempt and verdict; summary, rationale and critique have a default",
    )
    max_tokens: int = Field(512, ge=1, le=limits.MOST_TOKENS, description="Longest text, tokens; a cut one is dropped")
    temperature: float = Field(1.0, ge=0.001, le=4)
    tries: int = Field(4, ge=1, le=100, description="Texts written for each one that is shown")
    shortest: int = Field(5, ge=0, le=limits.MOST_TOKENS, description="Fewest words; a shorter text is dropped")
    answer: Literal["any", "absent", "present"] = Field(
        "any", description="Whether the reference answer must be in the text, or must not"
    )
    same_script: bool = Field(True, description="Drop a text that is mostly in another script than its prompt")
    success_draws: int = Field(
        0,
        ge=0,
        le=1000,
        description="Answers by the teacher with each text, and as many without one: a text with which it is not right "
        "more often is dropped, unless it is always right; 0: not compared",
    )

    def keyed(self) -> dict[str, Any]:
        """The settings that can change a text, or whether it is shown; without a comparison there is none."""
        keyed = super().keyed()
        if self.success_draws == 0:
            del keyed["success_draws"]
        return keyed


class Context(Settings):
    """What a teacher sees in addition to the question."""

    kind: Literal[
        "none",
        "answer",
        "solution",
        "summary",
        "wrong_attempt",
        "right_attempt",
        "contrastive",
        "rationale",
        "critique",
        "feedback",
        "demonstrations",
        "custom",
    ] = "none"
    name: Name | None = Field(None, description="Name in tables; the kind where null", json_schema_extra=COSMETIC)
    template: str | None = Field(
        None,
        description="User text, a Jinja template: prompt is the student's own, right_attempt, failed_attempt, attempt "
        "and verdict are of its rollouts, demonstrations are other questions, and other names are columns of the "
        "questions file; each kind but custom has a default",
    )
    system: str | None = Field(None, description="System message in place of the student's, a template too; chat only")
    chat_template_kwargs: TemplateArguments | None = Field(
        None, description="In place of the student's, such as enable_thinking: true; chat only"
    )
    otherwise: str = Field(
        "{{ prompt }}",
        description="Template where there is no other rollout as the template shows one, or no generated text passes",
    )
    generate: Generation | None = Field(
        None,
        description="Text that is written by a model and screened: of rationale and critique always, of summary in "
        "place of the column, of other kinds as {{ written }}",
    )
    demonstrations: int = Field(2, ge=1, le=100, description="Other questions in demonstrations: those that come next")

    @property
    def label(self) -> str:
        """Name in tables."""
        return self.name or self.kind

    @property
    def text(self) -> str:
        """The effective template."""
        return self.template if self.template is not None else CONTEXT_TEMPLATES[self.kind]

    @property
    def templates(self) -> dict[str, str]:
        """Every template that may be used, by field."""
        out = {"template": self.text}
        if self.system is not None:
            out["system"] = self.system
        if self.generate is not None or any(name in names_in(t).texts for name in OTHER_ROLLOUTS for t in out.values()):
            out["otherwise"] = self.otherwise
        return out

    @property
    def written(self) -> str:
        """The name that stands for the generated text."""
        return self.kind if self.kind in WRITER_TEMPLATES else "written"

    @property
    def writer_template(self) -> str:
        """What the writer of the generated text is asked."""
        given = self.generate.template if self.generate is not None else None
        return given if given is not None else WRITER_TEMPLATES[self.kind]

    @property
    def needed_columns(self) -> list[str]:
        """Columns of the questions file that its texts name."""
        made = ("prompt", *OF_ROLLOUTS, *([self.written] if self.generate is not None else []))
        writers = names_in(self.writer_template).texts if self.generate is not None else []
        return [name for name in dict.fromkeys([*self.names.texts, *writers]) if name not in made]

    @property
    def names(self) -> Names:
        """What its templates name."""
        found = zip(*map(names_in, self.templates.values()), strict=True)
        return Names(*(list(dict.fromkeys(chain(*of_kind))) for of_kind in found))

    @property
    def of_rollouts(self) -> bool:
        """True where the teacher's prompt depends on the student's rollouts."""
        return self.written_for_rollouts or any(name in OF_ROLLOUTS for name in self.names.texts)

    @property
    def shows_scored(self) -> bool:
        """True where the teacher's prompt depends on the very rollout that is scored, and so on what comes later."""
        return self.written_for_rollouts or any(name in ("attempt", "verdict") for name in self.names.texts)

    @property
    def written_for_rollouts(self) -> bool:
        """True where a text is generated for each rollout."""
        return self.generate is not None and any(n in OF_ROLLOUTS for n in names_in(self.writer_template).texts)

    @model_validator(mode="before")
    @classmethod
    def _always_written(cls, settings: object) -> object:
        if isinstance(settings, dict) and settings.get("kind") in ("rationale", "critique"):
            return {**settings, "generate": settings.get("generate", {})}
        return settings

    @model_validator(mode="after")
    def _template(self) -> Self:
        if self.kind == "custom" and (self.template is None or self.name is None):
            raise invalid("template", "a custom context needs a template and a name")
        for field in ("template", "system", "chat_template_kwargs"):
            if self.kind == "none" and getattr(self, field) is not None:
                raise invalid(field, f"{quoted(getattr(self, field))} given to context none; use kind: custom")
        self._check_generation()
        for field, template in self.templates.items():
            names = names_in(template)
            if field != "system" and "prompt" not in names.texts:
                raise invalid(field, f"{quoted(template)} does not contain {{{{ prompt }}}}, the student's own text")
            if wrong := [name for name in names.lists if name != "demonstrations"]:
                raise invalid(field, f"{quoted(template)} has a loop over {wrong[0]}; the only list is demonstrations")
            if "demonstrations" in names.texts:
                raise invalid(field, f"{quoted(template)} inserts demonstrations, which are a list: go over them")
            if field == "otherwise" and (lacking := [n for n in names.texts if n in OTHER_ROLLOUTS]):
                raise invalid(field, f"{quoted(template)} contains {lacking[0]}, which there is none of then")
        return self

    def _check_generation(self) -> None:
        if self.generate is None:
            if self.kind in ("rationale", "critique"):
                raise invalid("generate", f"null, but the text of {self.kind} is always generated; leave it out")
            return
        if self.generate.shortest > self.generate.max_tokens:
            what = f"{self.generate.shortest} words, more than its max_tokens, {self.generate.max_tokens}"
            raise invalid("generate.shortest", f"{what}; lower it")
        where = "generate.template"
        if self.generate.template is None and self.kind not in WRITER_TEMPLATES:
            kinds = ", ".join(WRITER_TEMPLATES)
            raise invalid(where, f"missing; only {kinds} have a default for what a writer is asked")
        asked = names_in(self.writer_template)
        if unseen := [*asked.lists, *(name for name in asked.texts if name in OTHER_ROLLOUTS)]:
            what = f"names {unseen[0]}, which a writer is not shown"
            raise invalid(where, f"{quoted(self.writer_template)} {what}")
        if self.written in asked.texts:
            what = f"names {self.written}, the text that is to be written; rename the column, or use kind: custom"
            raise invalid(where, f"{quoted(self.writer_template)} {what}")
        if not asked.texts:
            raise invalid(where, f"{quoted(self.writer_template)} names nothing of the question")
        if self.written not in self.names.texts:
            raise invalid("template", f"does not show the generated text; write {{{{ {self.written} }}}}")
        if self.written in names_in(self.otherwise).texts:
            raise invalid("otherwise", f"{quoted(self.otherwise)} contains {self.written}, which there is none of then")

    def keyed(self) -> dict[str, Any]:
        """The effective templates; the kind is a name for them."""
        used: dict[str, Any] = {"demonstrations": self.demonstrations} if self.names.lists else {}
        if self.chat_template_kwargs is not None:
            used["chat_template_kwargs"] = self.chat_template_kwargs
        if self.generate is not None:
            used["generate"] = {**self.generate.keyed(), "template": self.writer_template, "name": self.written}
        return {**self.templates, **used}
