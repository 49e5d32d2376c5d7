"""How scores are reported: uncertainty, groups, rankings."""

from typing import Literal

from pydantic import Field, field_validator

from schemas import limits
from schemas.config.base import Settings, check_unique


class Grouping(Settings):
    """How nodes are grouped for pooled scores."""

    by: Literal["outcome", "position", "entropy", "divergence", "difficulty"]
    bins: int = Field(4, ge=2, le=50, description="Quantile bins; outcome has its own two")


class Scores(Settings):
    """Uncertainty and grouping of the scores."""

    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of every interval")
    forecast_level: float = Field(
        0.9, gt=0.5, lt=1, description="Coverage of forecasts' intervals, which carry more than the noise of samples"
    )
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
        check_unique("groupings", [g.by for g in groupings])
        return groupings


class Ranking(Settings):
    """How a ranking assigns credit for a rollout's outcome to its tokens."""

    segments: int = Field(
        1,
        ge=1,
        le=64,
        description="Segments of a rollout, each with an advantage from values at its ends; 1: the outcome for all. "
        "More reduce the variance per rollout, and pay off where teachers cost more than the student's draws",
    )
    draws: int = Field(8, ge=1, le=10_000, description="Continuations for the value at each segment end")
