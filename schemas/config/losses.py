"""The distillation losses."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas import limits
from schemas.config.base import COSMETIC, Settings, invalid
from schemas.config.forms import ByKind
from schemas.config.inputs import Function, Name

_ELEMENTWISE = "tasks.stages.distillation.losses"


class NamedLoss(Settings):
    """What every loss has."""

    name: Name | None = Field(
        None, description="Name in tables; made of kind and settings where null", json_schema_extra=COSMETIC
    )


class Divergence(NamedLoss):
    """What every loss has that compares student and teacher."""

    teacher_temperature: float = Field(
        1.0, gt=0, le=100, description="The teacher's probabilities are raised to its inverse, and renormalised"
    )

    def keyed(self) -> dict[str, Any]:
        """The settings that can change a number; a temperature of 1 is none."""
        keyed = super().keyed()
        if self.teacher_temperature == 1:
            del keyed["teacher_temperature"]
        return keyed


class ReverseKL(Divergence):
    """KL(P || T), the loss of on-policy distillation."""

    kind: Literal["reverse_kl"] = "reverse_kl"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:reverse_kl"


class ForwardKL(Divergence):
    """KL(T || P)."""

    kind: Literal["forward_kl"] = "forward_kl"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:forward_kl"


class JSD(Divergence):
    """Generalised Jensen-Shannon divergence of GKD: beta KL(T||M) + (1-beta) KL(P||M), M = beta T + (1-beta) P."""

    kind: Literal["jsd"] = "jsd"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:jsd"
    beta: float = Field(0.5, gt=0, lt=1, description="Weight of the teacher in the mixture")


class SkewKL(Divergence):
    """DistiLLM's skew KL(T || alpha T + (1-alpha) P)."""

    kind: Literal["skew_kl"] = "skew_kl"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:skew_kl"
    alpha: float = Field(0.1, gt=0, lt=1, description="Weight of the teacher in the mixture")


class SkewReverseKL(Divergence):
    """DistiLLM's skew reverse KL(P || (1-alpha) T + alpha P)."""

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:skew_reverse_kl"
    alpha: float = Field(0.1, gt=0, lt=1, description="Weight of the student in the mixture")


class TotalVariation(Divergence):
    """Half the L1 distance of P and T."""

    kind: Literal["total_variation"] = "total_variation"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:total_variation"


class AlphaDivergence(Divergence):
    """(sum P^alpha T^(1-alpha) - 1) / (alpha (alpha - 1)): KL(P||T) as alpha -> 1, KL(T||P) as alpha -> 0."""

    kind: Literal["alpha_divergence"] = "alpha_divergence"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:alpha_divergence"
    alpha: float = Field(0.5, gt=0, lt=1)


class MixedKL(Divergence):
    """weight KL(P || T) + (1 - weight) KL(T || P)."""

    kind: Literal["mixed_kl"] = "mixed_kl"
    implementation: ClassVar[str] = f"{_ELEMENTWISE}:mixed_kl"
    weight: float = Field(0.5, gt=0, lt=1, description="Of the reverse divergence")


class AroundDivergence(Divergence):
    """What losses have that are made of a divergence, which may be given by its kind alone."""

    of: Annotated[ReverseKL | ForwardKL | JSD | MixedKL, Field(discriminator="kind"), ByKind(flat=True)] = Field(
        default_factory=ReverseKL, description="The divergence that is truncated, or sampled"
    )

    @field_validator("of", mode="before")
    @classmethod
    def _short_form(cls, of: object) -> object:
        return {"kind": of} if isinstance(of, str) else of

    @model_validator(mode="after")
    def _settings_of_its_own(self) -> Self:
        for name in ("name", "teacher_temperature"):
            if getattr(self.of, name) != type(self.of).model_fields[name].default:
                raise invalid(f"of.{name}", "given; it is a setting of the loss around it")
        return self


class TopK(AroundDivergence):
    """A divergence of few tokens, as trainers truncate it."""

    kind: Literal["top_k"] = "top_k"
    k: int = Field(20, ge=1, le=limits.MOST_NODE_DRAWS)
    support: Literal["student", "teacher", "union", "intersection"] = Field(
        "teacher", description="Whose k likeliest tokens are kept"
    )
    rest: Literal["dropped", "bucket", "renormalised", "teacher_renormalised", "zeroed"] = Field(
        "dropped",
        description="What becomes of the others: they are dropped from the sum; or one bucket; or both distributions, "
        "or the teacher's alone, are renormalised over the kept ones; zeroed is the last, but with all tokens in the "
        "sum, and a log-probability of -100 by the teacher elsewhere",
    )
    clip: float | None = Field(
        None, gt=0, description="Largest term of the sum: a token with a larger one has no gradient"
    )
    floor: bool = Field(False, description="A sum below 0 counts as 0, which has no gradient")
    stop_gradient: bool = Field(
        False, description="The terms are the weights of a policy gradient, which do not depend on the student"
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name in ("clip", "floor", "stop_gradient"):
            if self.rest == "bucket" and getattr(self, name):
                raise invalid(name, "given with rest: bucket, which no trainer combines")
        if self.floor and self.stop_gradient:
            raise invalid("floor", "given with stop_gradient: weights have no sum that could be below 0")
        return self


class SampledToken(AroundDivergence):
    """A divergence of which each position sees the sampled token y only: f_y (e_y - P), whose mean is its gradient.

    |d| is the root mean square over y, so that scores count the variance of the sample as a longer step for the same
    gain. In forward_kl and mixed_kl a log-ratio beyond 20 nat counts as 20, as trainers clamp it. Policy gradients with
    the advantage log T(y) - log P(y), and the single-sample estimator of GKD.
    """

    kind: Literal["sampled_token"] = "sampled_token"
    clip: float | None = Field(
        None,
        gt=0,
        description="Of forward_kl: largest estimate T/P - 1 - log T/P (k3) of a token; a larger one has no gradient",
    )

    @model_validator(mode="after")
    def _clip_of_k3(self) -> Self:
        if self.clip is not None and not isinstance(self.of, ForwardKL):
            raise invalid("clip", f"given with {self.of.kind}; it is of forward_kl")
        return self


class MiniLLM(NamedLoss):
    """Sequence-level reverse KL: f = log(P / T) + the expected sum of log(P / T) over the tokens that follow.

    The sum is estimated from a tree's draws. arXiv 2306.08543, eq. 3, by policy gradient; a step's own part is exact.
    """

    kind: Literal["minillm"] = "minillm"
    length_normalised: bool = Field(
        False, description="The mean over the tokens that follow in place of their sum, as in the paper's section 2.2"
    )


class DrGRPO(NamedLoss):
    """The reward itself: f = -Q, the policy gradient of success that Dr. GRPO follows in expectation. A yardstick.

    No teacher's loss. Its gain is the largest that a step of its length can have.
    """

    kind: Literal["dr_grpo"] = "dr_grpo"


class GRPO(NamedLoss):
    """Success over its standard deviation among a question's rollouts: f = -Q / std; nothing where they agree."""

    kind: Literal["grpo"] = "grpo"


class PythonLoss(Divergence):
    """A function of the user's own: log-probabilities of student and teacher, [n, V] each, to the losses, [n].

    It is differentiated by autograd through the student's log-probabilities, in float32.
    """

    kind: Literal["python"] = "python"
    function: Function


YARDSTICKS = (DrGRPO, GRPO)
"""Losses of the reward, which need no teacher."""
NEED_DRAWS = (MiniLLM, *YARDSTICKS)
"""Losses whose f is the mean of something over a branch's draws, at least in part."""

Loss = Annotated[
    ReverseKL
    | ForwardKL
    | JSD
    | MixedKL
    | SkewKL
    | SkewReverseKL
    | TotalVariation
    | AlphaDivergence
    | TopK
    | SampledToken
    | MiniLLM
    | DrGRPO
    | GRPO
    | PythonLoss,
    Field(discriminator="kind"),
    ByKind(flat=True),
]


def default_losses() -> list[Loss]:
    """Reverse KL, forward KL and JSD(0.5)."""
    return [ReverseKL(), ForwardKL(), JSD()]


def loss_name(loss: Settings) -> str:
    """Its name, or kind and settings that are not defaults: `jsd(beta=0.9)`, `top_k(k=5)`."""
    name: str | None = getattr(loss, "name", None)
    if name is not None:
        return name
    own = type(loss)
    fields = {name: field for name, field in own.model_fields.items() if name not in ("kind", "name")}
    parts = [
        f"{name}={loss_name(value) if isinstance(value, Settings) else value}"
        for name, field in fields.items()
        if (value := getattr(loss, name)) != field.get_default(call_default_factory=True)
    ]
    kind = str(getattr(loss, "kind"))  # noqa: B009 - every loss has one, but their base class does not
    return f"{kind}({', '.join(parts)})" if parts else kind
