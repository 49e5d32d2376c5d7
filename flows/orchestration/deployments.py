"""The flows as deployments of a work pool, which the UI offers to run."""

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
from flows.validate import validate

POOL = "opdscope"
TAG = "opdscope"


@dataclass(frozen=True)
class Offer:
    """A flow with the values that fill its form."""

    flow: Flow[..., Any]
    description: str
    parameters: dict[str, Any] = field(default_factory=dict)


def offers(config: dict[str, Any], suite: dict[str, Any], store: str) -> list[Offer]:
    """The flows offered to users.

    Args:
        config: fields of a run that fill the form.
        suite: fields of a suite that fill the form.
        store: default store.
    """
    run = {"store": store, **config}
    return [
        Offer(diagnose, "Score every teacher, context and loss, token by token.", {"config": run}),
        Offer(rank, "Rank teachers, contexts and losses from on-policy rollouts alone.", {"config": run}),
        Offer(validate, "Train on every signal for real, and compare with the forecast.", {"config": run}),
        Offer(calibrate, "Evaluate the estimators against an exact oracle.", {"config": {"store": store}}),
        Offer(nightly, "Execute a suite again and mark scores that moved.", {"config": {"store": store, **suite}}),
    ]


def lost_runs(seconds: int = 600) -> AutomationCore:
    """Automation that marks a run of these deployments as crashed if its machine is lost, so that the UI offers Retry.

    Args:
        seconds: without a heartbeat; Prefect's runs send one every 180 s by default.
    """
    ends = ("Completed", "Failed", "Cancelled", "Crashed")
    return AutomationCore(
        name="opdscope lost runs",
        description="A run without heartbeats is marked as crashed; Retry resumes it.",
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
            ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message="no heartbeat; Retry resumes the run")
        ],
    )


def watch(automation: AutomationCore) -> None:
    """Create or update an automation; a disabled one stays disabled."""
    with get_client(sync_client=True) as client:
        existing = client.read_automations_by_name(automation.name)
        if existing:
            client.update_automation(existing[0].id, automation.model_copy(update={"enabled": existing[0].enabled}))
        else:
            client.create_automation(automation)


def pool_template(folder: Path | None = None) -> dict[str, Any]:
    """Job template of the work pool, in which whoever starts a run can set nothing.

    Prefect's own template takes the command and the environment of a run from the call that starts it.

    Args:
        folder: working folder of runs; if None, each has its own.
    """
    # a constant variable, as older deployments set it and Prefect's server removes none
    place = {} if folder is None else {"working_dir": {"type": "string", "const": str(folder), "default": str(folder)}}
    return {
        "job_configuration": {"stream_output": True, **{name: f"{{{{ {name} }}}}" for name in place}},
        "variables": {"type": "object", "properties": place, "additionalProperties": False},
    }


def make_pool(name: str, folder: Path) -> None:
    """Create the work pool, or update its job template.

    Raises:
        ConfigurationError: it exists with another type.
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
            pool = client.read_work_pool(name)
            if pool.type != "process":
                raise ConfigurationError(
                    f"PREFECT_API_URL: the work pool {name!r} there is of type {pool.type!r}, not 'process'; rename it"
                ) from None
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


def deploy(offered: list[Offer], folder: Path, schedule: Schedule | None, pool: str = POOL) -> list[str]:
    """Create or update the work pool and the deployments; returns the names of the deployments.

    Args:
        folder: working folder of runs, to which relative paths refer.
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
