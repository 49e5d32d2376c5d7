"""How the work is cut; nothing of it can change a number."""

from typing import Literal

from pydantic import Field

from schemas import limits
from schemas.config.base import COSMETIC, Settings
from schemas.config.inputs import Name, Url


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
        description="Minimum seconds between checkpoints of draws",
        json_schema_extra=COSMETIC,
    )
    retries: int = Field(
        3,
        ge=0,
        le=20,
        description="Times that a task is tried again after a transient error: a full disk, a store or server away",
        json_schema_extra=COSMETIC,
    )
    retry_seconds: float = Field(
        10.0,
        ge=0,
        le=86_400,
        description="Seconds before the first retry; doubled each time",
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
