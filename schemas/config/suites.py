"""Settings of the other commands: demo, calibration, suites of runs."""

from functools import partial
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from schemas import limits
from schemas.config.base import COSMETIC, Settings, check_unique, invalid, refuse_other
from schemas.config.inputs import Url
from schemas.config.run import RunConfig


class DemoConfig(Settings):
    """Size and seed of the demo: the trained models and the questions."""

    seed: int = Field(0, ge=0, lt=2**31, description="Seed of questions, training and draws")
    questions: int = Field(24, ge=5, le=1000, description="Number of questions")
    width: int = Field(64, ge=16, le=512, multiple_of=16, description="Hidden size of the student")
    validate_forecast: bool = Field(
        False, description="Train a smaller student too, and then both on every signal, instead of a diagnosis alone"
    )
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
    lengths: list[Annotated[int, Field(le=1_000_000), BeforeValidator(partial(refuse_other, "int_type"))]] = Field(
        [64, 256, 1024, 4096], min_length=1, max_length=100, description="Tokens of a rollout, in ascending order"
    )
    workers: int | None = Field(
        None, ge=1, le=4096, description="Processes; all cores where null", json_schema_extra=COSMETIC
    )

    @field_validator("lengths", mode="after")
    @classmethod
    def _long_enough(cls, lengths: list[int]) -> list[int]:
        for length in lengths:
            if length < 40:
                raise invalid("lengths", f"{length} is too short for the 32 decisions of a chain; use 40 or more")
        return lengths


class NightlyConfig(Settings):
    """A suite of runs that is repeated, and compared with previous nights each time."""

    name: str = Field("nightly", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="Name of the suite")
    store: Url = Field(".opdscope", description="Where its history is kept; any fsspec URL")
    runs: list[RunConfig] = Field(
        min_length=1,
        max_length=limits.MOST_SIGNALS,
        description="Configurations of the runs, each with its own name",
    )
    calibrate: CalibrateConfig | None = Field(None, description="Also check the estimators against the oracle")
    validations: list[RunConfig] = Field(
        default_factory=list,
        max_length=limits.MOST_SIGNALS,
        description="Also train on every signal of these runs, and compare with what was forecast",
    )
    nights: int = Field(7, ge=1, le=10_000, description="Number of previous measurements that a score is compared with")
    slower: float = Field(
        0.25,
        gt=0,
        lt=1,
        description="Fraction by which decoding may be slower than on these nights on the same machine",
    )

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        names = [run.name for run in self.runs]
        for i, run in enumerate(self.validations):
            names += [run.name, *(run.name_of_student(n) for n in range(2, 2 + len(run.validation.students)))]
            if run.validation.held_out is None:
                raise invalid(f"validations.{i}.validation.held_out", "missing; a validation needs held-out questions")
        check_unique("runs", [*names, *([self.calibrate.name] if self.calibrate is not None else [])])
        return self
