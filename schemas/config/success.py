"""Success of the teachers themselves, and of the student where it goes on from what they wrote."""

from typing import Annotated

from pydantic import Field, field_validator

from schemas import limits
from schemas.config.base import Settings, invalid

BEFORE_ANSWER = 1.0
"""The part of a completion that ends where its answer begins."""


class Success(Settings):
    """Each teacher answers the questions with its context, and the student goes on from parts of what it wrote.

    The one is the teacher's own success. The other, the handover, is what its reasoning is worth to the student, who
    does not see the context; own success that does not hand over is copied from the context.
    """

    rollouts: int = Field(
        4, ge=0, le=limits.MOST_ROLLOUTS, description="Completions by each teacher and context per question; 0: none"
    )
    parts: list[Annotated[float, Field(gt=0, lt=BEFORE_ANSWER)]] = Field(
        default_factory=list,
        max_length=20,
        description="Shares of a completion from whose ends the student goes on too, besides just before its answer",
    )
    continuations: int = Field(1, ge=1, le=10_000, description="Continuations by the student from each such place")

    @field_validator("parts", mode="after")
    @classmethod
    def _increasing(cls, parts: list[float]) -> list[float]:
        if parts != sorted(set(parts)):
            raise invalid("parts", f"{parts}; give each share once, in increasing order")
        return parts
