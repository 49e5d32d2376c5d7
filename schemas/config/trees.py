"""Where branches are put and how many draws they get."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from schemas import limits
from schemas.config.base import COSMETIC, Settings, invalid
from schemas.config.forms import ByKind
from schemas.config.inputs import Url

_BUDGET = ("draws", "tokens", "seconds", "half_width")


class TreeSettings(Settings):
    """What every planner has.

    Attributes:
        sampled: whether nodes are a sample of all positions, with known probabilities.
        samples: whether draws are made here, and not read.
        extends: whether a larger budget goes on from the draws of a smaller one.
    """

    sampled: ClassVar[bool] = True
    samples: ClassVar[bool] = True
    extends: ClassVar[bool] = False

    @property
    def most_draws(self) -> int:
        """Draws of one question's tree, at most."""
        return 0

    def most_forwards(self, rollouts: int) -> int:
        """Passes over a whole prompt and completion for one question's tree, at most.

        All rollouts are scored to choose nodes; then, in each round, those that hold a node of it.
        """
        return 0

    def round_settings(self) -> dict[str, object]:
        """The settings that say what a round of draws is."""
        return self.keyed()


class Branching(TreeSettings):
    """How a node branches: forced candidate tokens, and a sample of the rest of the vocabulary."""

    head: int = Field(8, ge=1, le=256, description="At most so many forced branches: the likeliest tokens")
    tail: int = Field(4, ge=2, le=10_000, description="Tokens sampled from the tail, two draws each")
    tail_limit: float = Field(
        1e-3, ge=0, lt=1, description="A tail of less probability is not drawn; the bias is at most this"
    )
    allocation: Literal["leverage", "equal"] = Field(
        "leverage", description="Head draws by the branches' leverage, or all alike"
    )

    def _enough(self, field: str, draws: int) -> None:
        least = 2 * (self.head + self.tail)
        if draws < least:
            raise invalid(
                field,
                f"{draws} is too small for two draws a branch: head {self.head} and tail {self.tail} "
                f"need at least {least}",
            )


class ForcedTree(Branching):
    """Chosen nodes, forced candidate tokens, a fixed number of draws (statistics of sections 6 and 7)."""

    kind: Literal["forced"] = "forced"
    implementation: ClassVar[str] = "tasks.stages.trees.forced:ForcedPlanner"
    nodes: int = Field(32, ge=1, le=limits.MOST_NODE_DRAWS, description="Nodes a question, over all its rollouts")
    node_choice: Literal["leverage", "uniform"] = Field(
        "leverage", description="Inclusion probabilities: by the student's leverage, or all alike"
    )
    draws: int = Field(64, ge=2, le=limits.MOST_NODE_DRAWS, description="Draws a node, head and tail together")

    @property
    def most_draws(self) -> int:
        """Draws of one question's tree, at most."""
        return self.nodes * self.draws

    def most_forwards(self, rollouts: int) -> int:
        """Passes for one question's tree, at most."""
        return rollouts + min(rollouts, self.nodes)

    @model_validator(mode="after")
    def _two_draws_a_branch(self) -> Self:
        self._enough("draws", self.draws)
        return self


class AdaptiveTree(Branching):
    """Rounds of draws where they cut the uncertainty most, until it is small enough or the budget is spent.

    Each round samples nodes anew with known probabilities, from the leverage of the student and from what the rounds
    before it showed, so a larger budget extends the draws of a smaller one.
    """

    kind: Literal["adaptive"] = "adaptive"
    implementation: ClassVar[str] = "tasks.stages.trees.adaptive:AdaptivePlanner"
    target: Literal["pooled", "tokens"] = Field(
        "pooled", description="What is to be known: pooled scores, or the signs of as many single tokens as can be"
    )
    draws: int = Field(
        2048, ge=8, le=limits.MOST_DRAWS, description="Budget of a question, draws; whole rounds of it are spent"
    )
    tokens: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="Budget of a question, decoded tokens; no round is begun that seems to exceed it",
    )
    seconds: float | None = Field(
        None,
        gt=0,
        le=limits.MOST_SECONDS,
        description="Budget of a question; how many rounds fit depends on the machine",
    )
    half_width: float | None = Field(
        None,
        gt=0,
        description="Stop where the largest gain of a unit step, sqrt(sum |g|^2) of a rollout, is known to this "
        "half-width (95 %)",
    )
    node_draws: int = Field(
        64, ge=2, le=limits.MOST_NODE_DRAWS, description="Draws a node in one round, head and tail together"
    )
    round: int = Field(256, ge=2, le=limits.MOST_NODE_DRAWS, description="Draws of a round")

    extends: ClassVar[bool] = True

    @property
    def most_draws(self) -> int:
        """A round is of whole nodes; the last one begins where a whole round still fits."""
        return self.draws - self.round + self.round // self.node_draws * self.node_draws

    def most_forwards(self, rollouts: int) -> int:
        """Passes for one question's tree, at most."""
        return rollouts + self.most_draws // self.node_draws

    def round_settings(self) -> dict[str, object]:
        """All but the budget, which says when rounds end and nothing of what they are."""
        return {name: value for name, value in self.keyed().items() if name not in _BUDGET}

    @model_validator(mode="after")
    def _rounds_fit(self) -> Self:
        self._enough("node_draws", self.node_draws)
        if self.round < self.node_draws:
            raise invalid("round", f"{self.round} is less than one node's draws; node_draws is {self.node_draws}")
        if self.draws < self.round:
            raise invalid("draws", f"{self.draws} is less than one round of {self.round}; raise it or lower round")
        return self


class WindowsTree(TreeSettings):
    """The paper's targeted rollouts, as reconstructed: continuations from prefixes at depths 0, 1, 2, 4, 8, ...

    For comparison. Continuations are counted on the prefix tree, so a node's candidates are those that came up often
    enough; no probability of a node's being scored is known, and its pooled scores are biased.
    """

    kind: Literal["windows"] = "windows"
    implementation: ClassVar[str] = "tasks.stages.trees.windows:WindowsPlanner"
    draws: int = Field(
        2048, ge=1, le=limits.MOST_DRAWS, description="Continuations a question, shared over all windows"
    )
    min_visits: int = Field(
        20, ge=2, le=limits.MOST_NODE_DRAWS, description="A child counts from so many visits on; 40 on hard problems"
    )
    tail_limit: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Teacher's probability outside the counted children up to which an advantage is told",
    )
    sampled: ClassVar[bool] = False

    @property
    def most_draws(self) -> int:
        """Draws of one question's tree."""
        return self.draws

    def most_forwards(self, rollouts: int) -> int:
        """Passes for one question's tree, at most."""
        return 2 * rollouts


class RecordedTree(TreeSettings):
    """Outcomes that another system collected, read from a table; no model is loaded."""

    kind: Literal["recorded"] = "recorded"
    path: Url = Field(description="JSONL, parquet or CSV table; a path or any fsspec URL", json_schema_extra=COSMETIC)
    tail_limit: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Teacher's probability outside the recorded branches up to which an advantage is told",
    )
    samples: ClassVar[bool] = False
    sampled: ClassVar[bool] = False


Tree = Annotated[AdaptiveTree | ForcedTree | WindowsTree | RecordedTree, Field(discriminator="kind"), ByKind()]
