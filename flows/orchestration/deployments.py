"""The flows as deployments of a work pool: what the UI offers to run."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists
from prefect.schedules import Schedule
from prefect.types.entrypoint import EntrypointType

from flows.calibrate import calibrate
from flows.command.configuration import ConfigurationError
from flows.diagnose import diagnose
from flows.nightly import nightly
from flows.rank import rank

POOL = "opdscope"
TAG = "opdscope"


@dataclass(frozen=True)
class Offer:
    """A flow with what its form is filled with."""

    flow: Flow[..., Any]
    description: str
    parameters: dict[str, Any] = field(default_factory=dict)


def offers(config: dict[str, Any], suite: dict[str, Any], store: str) -> list[Offer]:
    """The flows that people start.

    Args:
        config: fields of a run that the form is filled with.
        suite: the same of a suite.
        store: of whatever names none.
    """
    run = {"store": store, **config}
    return [
        Offer(diagnose, "Score every teacher, context and loss, token by token.", {"config": run}),
        Offer(rank, "Rank teachers, contexts and losses from on-policy rollouts alone.", {"config": run}),
        Offer(calibrate, "Judge the estimators against an exact oracle.", {"config": {"store": store}}),
        Offer(nightly, "Do a suite again and mark what moved.", {"config": {"store": store, **suite}}),
    ]


def lost_runs(seconds: int = 600) -> AutomationCore:
    """What marks a run of these deployments as crashed whose machine is gone, so that the UI offers Retry.

    Args:
        seconds: without a sign of life; Prefect's runs give one every 180 unless told otherwise.
    """
    ends = ("Completed", "Failed", "Cancelled", "Crashed")
    return AutomationCore(
        name="opdscope lost runs",
        description="A run that gives no sign of life any more is marked as crashed; Retry goes on from what it had.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{state}" for state in ends)},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
            ),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed", state=StateType.CRASHED, message="no sign of life; Retry goes on from what it had"
            )
        ],
    )


def watch(automation: AutomationCore) -> None:
    """Make or renew an automation; one that was switched off stays so."""
    with get_client(sync_client=True) as client:
        there = client.read_automations_by_name(automation.name)
        if there:
            client.update_automation(there[0].id, automation.model_copy(update={"enabled": there[0].enabled}))
        else:
            client.create_automation(automation)


def pool_template(folder: Path | None = None) -> dict[str, Any]:
    """How runs of the work pool are started: none of it can be set by whoever starts one.

    Prefect's own template takes the command and the environment of a run from the call that starts it.

    Args:
        folder: where runs work; one of their own each where None.
    """
    # a variable of one value, as deployments of older versions have it and Prefect's server removes none
    place = {} if folder is None else {"working_dir": {"type": "string", "const": str(folder), "default": str(folder)}}
    return {
        "job_configuration": {"stream_output": True, **{name: f"{{{{ {name} }}}}" for name in place}},
        "variables": {"type": "object", "properties": place, "additionalProperties": False},
    }


def make_pool(name: str, folder: Path) -> None:
    """Make the work pool, or renew how it starts runs.

    Raises:
        ConfigurationError: there is one of another type.
    """
    template = pool_template(folder)
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(
                WorkPoolCreate(
                    name=name, type="process", description="opdscope on this machine", base_job_template=template
                )
            )
        except ObjectAlreadyExists:
            there = client.read_work_pool(name)
            if there.type != "process":
                raise ConfigurationError(
                    f"PREFECT_API_URL: the work pool {name!r} there is of type {there.type!r}, not 'process'; rename it"
                ) from None
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


def deploy(offered: list[Offer], folder: Path, schedule: Schedule | None, pool: str = POOL) -> list[str]:
    """Make or renew the work pool and the deployments; returns their names.

    Args:
        folder: where runs work, so that relative paths mean what they mean there.
        schedule: of `nightly`.
    """
    make_pool(pool, folder)
    names = []
    for offer in offered:
        deployment = RunnerDeployment.from_flow(
            offer.flow,
            name=offer.flow.name,
            description=offer.description,
            parameters=offer.parameters,
            tags=[TAG],
            entrypoint_type=EntrypointType.MODULE_PATH,
            work_pool_name=pool,
            job_variables={"working_dir": str(folder)},
            schedule=schedule if offer.flow is nightly else None,
            enforce_parameter_schema=True,
        )
        deployment.apply()
        names.append(f"{offer.flow.name}/{offer.flow.name}")
    return names
