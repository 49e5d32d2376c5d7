"""Where branches are placed and how many draws they get."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from schemas import limits
from schemas.config.base import COSMETIC, Settings, invalid
from schemas.config.forms import ByKind
from schemas.config.inputs import Url

_BUDGET = ("draws", "tokens", "seconds", "half_width")


class TreeSettings(Settings):
    """Settings of every planner.

    Attributes:
        sampled: whether nodes are a sample of all positions, with known inclusion probabilities.
        samples: whether draws are made here rather than read.
        extends: whether a larger budget extends the draws of a smaller one.
    """

    sampled: ClassVar[bool] = True
    samples: ClassVar[bool] = True
    extends: ClassVar[bool] = False

    @property
    def most_draws(self) -> int:
        """Maximum draws of one question's tree."""
        return 0

    @property
    def most_at_once(self) -> int:
        """Maximum draws that are planned together."""
        return self.most_draws

    @property
    def timed(self) -> bool:
        """Whether a question's budget is its own time, which it therefore cannot share with other questions."""
        return False

    def most_forwards(self, rollouts: int) -> int:
        """Maximum passes over a whole prompt and completion for one question's tree.

        All rollouts are scored to choose nodes; then, in each round, those that contain one of its nodes.
        """
        return 0

    def round_settings(self) -> dict[str, object]:
        """The settings that define a round of draws."""
        return self.keyed()


class Branching(TreeSettings):
    """How a node branches: forced candidate tokens, and a sample of the rest of the vocabulary."""

    head: int = Field(8, ge=1, le=256, description="Maximum number of forced branches, the likeliest tokens")
    tail: int = Field(4, ge=2, le=10_000, description="Tokens sampled from the tail, two draws each")
    tail_limit: float = Field(
        1e-3, ge=0, lt=1, description="A tail of less probability is not drawn; this bounds the bias"
    )
    allocation: Literal["leverage", "equal"] = Field(
        "leverage", description="Head draws by the branches' leverage, or equally many each"
    )

    def _enough(self, field: str, draws: int) -> None:
        least = 2 * (self.head + self.tail)
        if draws < least:
            raise invalid(
                field,
                f"{draws} is too small for two draws per branch: head {self.head} and tail {self.tail} "
                f"need at least {least}",
            )


class ForcedTree(Branching):
    """Chosen nodes, forced candidate tokens, a fixed number of draws (statistics of sections 6 and 7)."""

    kind: Literal["forced"] = "forced"
    implementation: ClassVar[str] = "tasks.stages.trees.forced:ForcedPlanner"
    nodes: int = Field(32, ge=1, le=limits.MOST_NODE_DRAWS, description="Nodes per question, over all its rollouts")
    node_choice: Literal["leverage", "uniform"] = Field(
        "leverage", description="Inclusion probabilities: by the student's leverage, or uniform"
    )
    draws: int = Field(64, ge=2, le=limits.MOST_NODE_DRAWS, description="Draws per node, head and tail together")

    @property
    def most_draws(self) -> int:
        """Maximum draws of one question's tree."""
        return self.nodes * self.draws

    def most_forwards(self, rollouts: int) -> int:
        """Maximum passes for one question's tree."""
        return rollouts + min(rollouts, self.nodes)

    @model_validator(mode="after")
    def _two_draws_a_branch(self) -> Self:
        self._enough("draws", self.draws)
        return self


class AdaptiveTree(Branching):
    """Rounds of draws where they reduce the uncertainty most, until it is small enough or the budget is spent.

    Each round samples nodes afresh with known probabilities, based on the student's leverage and the outcomes of
    earlier rounds, so a larger budget extends the draws of a smaller one.
    """

    kind: Literal["adaptive"] = "adaptive"
    implementation: ClassVar[str] = "tasks.stages.trees.adaptive:AdaptivePlanner"
    target: Literal["pooled", "tokens"] = Field(
        "pooled", description="What to resolve: pooled scores, or the signs of as many single tokens as possible"
    )
    draws: int = Field(
        2048, ge=8, le=limits.MOST_DRAWS, description="Budget per question, draws; spent in whole rounds"
    )
    tokens: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="Budget per question, decoded tokens; no round starts that is expected to exceed it",
    )
    seconds: float | None = Field(
        None,
        gt=0,
        le=limits.MOST_SECONDS,
        description="Budget per question; how many rounds fit depends on the machine",
    )
    half_width: float | None = Field(
        None,
        gt=0,
        description="Stop once the largest gain of a unit step, sqrt(sum |g|^2) of a rollout, is known to this "
        "half-width (95 %)",
    )
    node_draws: int = Field(
        64, ge=2, le=limits.MOST_NODE_DRAWS, description="Draws per node in one round, head and tail together"
    )
    round: int = Field(256, ge=2, le=limits.MOST_NODE_DRAWS, description="Draws per round")

    extends: ClassVar[bool] = True

    @property
    def timed(self) -> bool:
        """True with a budget of seconds."""
        return self.seconds is not None

    @property
    def most_at_once(self) -> int:
        """Draws of a round."""
        return self.round

    @property
    def most_draws(self) -> int:
        """Maximum draws: a round has whole nodes, and the last one starts where a whole round still fits."""
        return self.draws - self.round + self.round // self.node_draws * self.node_draws

    def most_forwards(self, rollouts: int) -> int:
        """Maximum passes for one question's tree."""
        return rollouts + self.most_draws // self.node_draws

    def round_settings(self) -> dict[str, object]:
        """All but the budget, which determines when rounds stop but not what they are."""
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

    For comparison. Continuations are counted on the prefix tree, so a node's candidates are those sampled often enough;
    inclusion probabilities of nodes are unknown, and pooled scores are biased.
    """

    kind: Literal["windows"] = "windows"
    implementation: ClassVar[str] = "tasks.stages.trees.windows:WindowsPlanner"
    draws: int = Field(
        2048, ge=1, le=limits.MOST_DRAWS, description="Continuations per question, shared by all windows"
    )
    min_visits: int = Field(
        20, ge=2, le=limits.MOST_NODE_DRAWS, description="Minimum visits for a child to count; 40 on hard problems"
    )
    tail_limit: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Teacher's probability outside the counted children up to which an advantage is reported",
    )
    sampled: ClassVar[bool] = False

    @property
    def most_draws(self) -> int:
        """Draws of one question's tree."""
        return self.draws

    def most_forwards(self, rollouts: int) -> int:
        """Maximum passes for one question's tree."""
        return 2 * rollouts


class RecordedTree(TreeSettings):
    """Outcomes collected by another system, read from a table; no model is loaded."""

    kind: Literal["recorded"] = "recorded"
    path: Url = Field(description="JSONL, parquet or CSV table; a path or any fsspec URL", json_schema_extra=COSMETIC)
    tail_limit: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Teacher's probability outside the recorded branches up to which an advantage is reported",
    )
    samples: ClassVar[bool] = False
    sampled: ClassVar[bool] = False


Tree = Annotated[AdaptiveTree | ForcedTree | WindowsTree | RecordedTree, Field(discriminator="kind"), ByKind()]
