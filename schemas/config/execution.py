"""How work is split up; none of these settings can change a result."""

from typing import Literal

from pydantic import Field

from schemas import limits
from schemas.config.base import COSMETIC, Settings
from schemas.config.inputs import Name, Url


class Execution(Settings):
    """How work is split up; none of these settings can change a result."""

    questions_per_task: int | None = Field(
        None,
        ge=1,
        le=limits.MOST_AT_ONCE,
        description="Questions in one Prefect task, and in flight at most; where null, all of them, or 8 on Ray",
        json_schema_extra=COSMETIC,
    )
    questions_in_flight: int = Field(
        32,
        ge=1,
        le=1024,
        description="Maximum questions of a task whose draws are decoded together; each takes a thread",
        json_schema_extra=COSMETIC,
    )
    round_draws: int = Field(
        512,
        ge=1,
        le=limits.MOST_AT_ONCE,
        description="Maximum draws decoded and committed together",
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
        description="Retries of a task after a transient error: a full disk, an unreachable store or server",
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
        description="Seconds without a heartbeat after which another process takes work over, where runs share a "
        "store; on one machine a dead process is noticed at once",
        json_schema_extra=COSMETIC,
    )
    task_runner: Literal["process", "ray"] = Field(
        "process",
        description="Run tasks sequentially in the flow's process, or in parallel on Ray workers, each of which keeps "
        "its engine; ray needs opdscope[ray] and a running Prefect server",
        json_schema_extra=COSMETIC,
    )
    ray_address: Url | None = Field(
        None, description="Ray cluster; one is started on this machine where null", json_schema_extra=COSMETIC
    )
    ray_cpus: int | None = Field(
        None,
        ge=1,
        le=limits.MOST_AT_ONCE,
        description="Workers of a Ray cluster started here; all cores where null",
        json_schema_extra=COSMETIC,
    )
    num_gpus: float = Field(0.0, ge=0, le=4096, description="GPUs per task on Ray", json_schema_extra=COSMETIC)
    gpu_limit: Name | None = Field(
        None,
        description="Prefect global concurrency limit in which every task with a model takes a slot",
        json_schema_extra=COSMETIC,
    )
    storage_block: Name | None = Field(
        None,
        description="Prefect block remote-file-system/NAME with the store's credentials; those of the environment "
        "where null",
        json_schema_extra=COSMETIC,
    )
