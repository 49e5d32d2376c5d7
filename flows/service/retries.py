"""Prefect's rules for the states of flow runs, and one more: a retry is not taken back by the crash before it."""

from prefect.server.database import orm_models
from prefect.server.orchestration.core_policy import CoreFlowPolicy
from prefect.server.orchestration.dependencies import ORCHESTRATION_DEPENDENCIES
from prefect.server.orchestration.policies import FlowRunOrchestrationPolicy
from prefect.server.orchestration.rules import (
    BaseOrchestrationRule,
    BaseUniversalTransform,
    FlowRunOrchestrationRule,
    OrchestrationContext,
)
from prefect.server.schemas import core, states


class KeepRetry(FlowRunOrchestrationRule):
    """A run that waits for its retry does not crash.

    A worker reports a killed process twice, and the second report may come after somebody has pressed Retry.
    """

    FROM_STATES = {states.StateType.SCHEDULED}  # noqa: RUF012 - declared by Prefect
    TO_STATES = {states.StateType.CRASHED}  # noqa: RUF012

    async def before_transition(
        self,
        initial_state: states.State | None,
        proposed_state: states.State | None,
        context: OrchestrationContext[orm_models.FlowRun, core.FlowRunPolicy],
    ) -> None:
        """Abort a crash of what has no process."""
        if initial_state is not None and initial_state.name == "AwaitingRetry":
            await self.abort_transition("The run waits for its retry; it has no process that could crash.")


class _Policy(FlowRunOrchestrationPolicy):
    @staticmethod
    def priority() -> list[
        type[BaseUniversalTransform[orm_models.FlowRun, core.FlowRunPolicy]]
        | type[BaseOrchestrationRule[orm_models.FlowRun, core.FlowRunPolicy]]
    ]:
        return [KeepRetry, *CoreFlowPolicy.priority()]


async def _policy() -> type[FlowRunOrchestrationPolicy]:
    return _Policy


def keep_retries() -> None:
    """Let the server of this process keep retries."""
    ORCHESTRATION_DEPENDENCIES["flow_policy_provider"] = _policy
