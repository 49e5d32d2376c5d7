"""Verifiers, which decide whether a completion is correct."""

from typing import Annotated, ClassVar, Literal, Self

import regex
from pydantic import Field, model_validator

from schemas.config.base import COSMETIC, Settings, check_unique, invalid
from schemas.config.forms import ByKind
from schemas.config.inputs import Function
from schemas.text import quoted, reason


class ExactVerifier(Settings):
    """The text after the last marker equals the answer, ignoring white space and, optionally, case."""

    kind: Literal["exact"] = "exact"
    implementation: ClassVar[str] = "tasks.verifiers.text:ExactText"
    marker: str | None = Field(
        None, min_length=1, description="Compare the text after its last occurrence; all text where null"
    )
    ignore_case: bool = False


class NumericVerifier(Settings):
    """The completion's last number equals the answer. 50% equals 0.5 and 50; two percentages compare as numbers."""

    kind: Literal["numeric"] = "numeric"
    implementation: ClassVar[str] = "tasks.verifiers.text:LastNumber"
    marker: str | None = Field(None, min_length=1, description="Look only after its last occurrence")
    tolerance: float = Field(1e-6, ge=0, description="Relative to the answer, absolute below 1")


class ChoiceVerifier(Settings):
    """The last stand-alone choice label of the completion equals the answer."""

    kind: Literal["choice"] = "choice"
    implementation: ClassVar[str] = "tasks.verifiers.text:LastLabel"
    marker: str | None = Field(None, min_length=1, description="Look only after its last occurrence")
    labels: list[str] = Field(["A", "B", "C", "D"], min_length=2, description="The possible answers")
    ignore_case: bool = Field(False, description="Accept b for B; the article a is then a label too")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for label in self.labels:
            if label != label.strip() or not label:
                raise invalid("labels", f"{label!r} is empty or starts or ends with white space; write the label alone")
        check_unique("labels", [label.casefold() if self.ignore_case else label for label in self.labels])
        return self


class YesNoVerifier(Settings):
    """The last yes or no of the completion equals the answer, whatever the case; true and false mean the same."""

    kind: Literal["yes_no"] = "yes_no"
    implementation: ClassVar[str] = "tasks.verifiers.text:LastYesOrNo"
    marker: str | None = Field(None, min_length=1, description="Look only after its last occurrence")


class RegexVerifier(Settings):
    """What the pattern's last match shows equals the answer, ignoring white space and, optionally, case."""

    kind: Literal["regex"] = "regex"
    implementation: ClassVar[str] = "tasks.verifiers.text:LastMatch"
    pattern: str = Field(
        r"(?s)<answer>(.*?)</answer>",
        min_length=1,
        description="Pattern of Python's `regex`; its first group is the answer, or the whole match where it has none",
    )
    ignore_case: bool = False

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            regex.compile(self.pattern)
        except (regex.error, RecursionError, OverflowError) as error:
            raise invalid("pattern", f"{quoted(self.pattern)} is not a pattern: {reason(error)}") from error
        return self


class MathVerifier(Settings):
    """math-verify equivalence of the last boxed, else the final, expression, ignoring units; in worker processes."""

    kind: Literal["math"] = "math"
    implementation: ClassVar[str] = "tasks.verifiers.math:MathEquivalence"
    seconds: float = Field(5.0, gt=0, description="Time limit of one check; beyond it the completion is wrong")
    workers: int = Field(2, ge=1, description="Worker processes", json_schema_extra=COSMETIC)


class PythonVerifier(Settings):
    """A function of the user's own, of completion and answer, true where they agree; in worker processes."""

    kind: Literal["python"] = "python"
    implementation: ClassVar[str] = "tasks.verifiers.python:PythonFunction"
    function: Function
    seconds: float = Field(5.0, gt=0, description="Time limit of one check; beyond it the completion is wrong")
    workers: int = Field(2, ge=1, description="Worker processes", json_schema_extra=COSMETIC)


Verifier = Annotated[
    MathVerifier | ExactVerifier | NumericVerifier | ChoiceVerifier | YesNoVerifier | RegexVerifier | PythonVerifier,
    Field(discriminator="kind"),
    ByKind(),
]
