"""Where rollouts come from: the student samples them, or a table has them."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.config.base import COSMETIC, Settings
from schemas.config.forms import ByKind
from schemas.config.inputs import Name, Url


class SampledRollouts(Settings):
    """The student samples them, as `sampling` says."""

    kind: Literal["sampled"] = "sampled"


class RolloutTable(Settings):
    """Rollouts of another system, such as a training run that is going on; they must be the student's own."""

    kind: Literal["table"] = "table"
    path: Url = Field(description="JSONL, parquet or CSV table; a path or any fsspec URL", json_schema_extra=COSMETIC)
    format: Literal["opdscope", "trl", "verl", "prime_rl"] = Field(
        "opdscope",
        description="Whose columns it has. opdscope: question_id, tokens (ids) or completion (text), reward and, if "
        "known, truncated; trl: prompt, completion and one of rewards; verl: input, output, score; prime_rl: "
        "token_ids, loss_mask, reward. Where there is no question_id, the prompt says which question it is",
        json_schema_extra=COSMETIC,
    )
    reward: Name | None = Field(
        None,
        description="Column with the reward; null: the format's own, or of trl the only one that ends in reward",
        json_schema_extra=COSMETIC,
    )
    correct_from: float = Field(
        0.5, description="Smallest reward of a rollout that counts as correct in groups and contexts"
    )


Rollouts = Annotated[SampledRollouts | RolloutTable, Field(discriminator="kind"), ByKind()]
