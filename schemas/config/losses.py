"""The distillation losses."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas import limits
from schemas.config.base import Settings
from schemas.config.forms import ByKind

_ELEMENTWISE = "tasks.stages.distillation.losses"


class ReverseKL(Settings):
    """KL(P || T), the loss of on-policy distillation."""

    kind: Literal["reverse_kl"] = "reverse_kl"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:reverse_kl"


class ForwardKL(Settings):
    """KL(T || P)."""

    kind: Literal["forward_kl"] = "forward_kl"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:forward_kl"


class JSD(Settings):
    """Generalised Jensen-Shannon divergence of GKD: beta KL(T||M) + (1-beta) KL(P||M), M = beta T + (1-beta) P."""

    kind: Literal["jsd"] = "jsd"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:jsd"
    beta: float = Field(0.5, gt=0, lt=1, description="Weight of the teacher in the mixture")


class SkewKL(Settings):
    """DistiLLM's skew KL(T || alpha T + (1-alpha) P)."""

    kind: Literal["skew_kl"] = "skew_kl"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:skew_kl"
    alpha: float = Field(0.1, gt=0, lt=1, description="Weight of the teacher in the mixture")


class SkewReverseKL(Settings):
    """DistiLLM's skew reverse KL(P || (1-alpha) T + alpha P)."""

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:skew_reverse_kl"
    alpha: float = Field(0.1, gt=0, lt=1, description="Weight of the student in the mixture")


class TotalVariation(Settings):
    """Half the L1 distance of P and T."""

    kind: Literal["total_variation"] = "total_variation"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:total_variation"


class AlphaDivergence(Settings):
    """(sum P^alpha T^(1-alpha) - 1) / (alpha (alpha - 1)): KL(P||T) as alpha -> 1, KL(T||P) as alpha -> 0."""

    kind: Literal["alpha_divergence"] = "alpha_divergence"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:alpha_divergence"
    alpha: float = Field(0.5, gt=0, lt=1)


class TopK(Settings):
    """A divergence summed over the top-k tokens only, as trainers truncate it."""

    kind: Literal["top_k"] = "top_k"
    of: Annotated[ReverseKL | ForwardKL | JSD, Field(discriminator="kind"), ByKind(flat=True)] = Field(
        default_factory=ReverseKL, description="The divergence that is truncated"
    )
    k: int = Field(20, ge=1, le=limits.MOST_NODE_DRAWS)
    support: Literal["student", "teacher", "union"] = Field("teacher", description="Whose k likeliest tokens are kept")
    tail_bucket: bool = Field(False, description="Keep all other tokens as one bucket; otherwise they are dropped")


Loss = Annotated[
    ReverseKL | ForwardKL | JSD | SkewKL | SkewReverseKL | TotalVariation | AlphaDivergence | TopK,
    Field(discriminator="kind"),
    ByKind(flat=True),
]


def default_losses() -> list[Loss]:
    """Reverse KL, forward KL and JSD(0.5)."""
    return [ReverseKL(), ForwardKL(), JSD()]


def loss_name(loss: Settings) -> str:
    """Short name of a loss with its settings that are not defaults: `jsd(beta=0.9)`, `top_k(k=5)`."""
    own = type(loss)
    parts = [
        f"{name}={loss_name(value) if isinstance(value, Settings) else value}"
        for name, field in own.model_fields.items()
        if name != "kind" and (value := getattr(loss, name)) != field.get_default(call_default_factory=True)
    ]
    kind = str(getattr(loss, "kind"))  # noqa: B009 - every loss has one, but their base class does not
    return f"{kind}({', '.join(parts)})" if parts else kind
