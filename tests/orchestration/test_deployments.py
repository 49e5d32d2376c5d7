"""The work pool and the deployments: nothing of how a run is started can be set by whoever starts it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from flows.command.configuration import ConfigurationError
from flows.orchestration.deployments import deploy, make_pool, offers, pool_template
from tests.helpers.prefect_server import Server


@pytest.fixture
def api(prefect_server: Server) -> Iterator[httpx.Client]:
    with (
        temporary_settings({PREFECT_API_URL: prefect_server.url}),
        httpx.Client(base_url=prefect_server.url, timeout=30) as client,
    ):
        yield client


def test_pools_and_deployments_of_older_versions_are_renewed(api: httpx.Client, tmp_path: Path) -> None:
    open_to_all = ProcessWorker.get_default_base_job_template()
    assert "command" in open_to_all["variables"]["properties"]
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="old", type="process", base_job_template=open_to_all))
    offered = [offer for offer in offers({}, {}, "store") if offer.flow.name == "calibrate"]
    deploy(offered, tmp_path, None, pool="old")
    place = api.get("/deployments/name/calibrate/calibrate").json()["id"]
    old: dict[str, Any] = {"base_job_template": open_to_all}
    api.patch("/work_pools/old", json=old).raise_for_status()
    api.patch(f"/deployments/{place}", json={"job_variables": {"working_dir": "/"}}).raise_for_status()

    deploy(offered, tmp_path, None, pool="old")
    assert api.get("/work_pools/old").json()["base_job_template"] == pool_template(tmp_path)
    assert api.get(f"/deployments/{place}").json()["job_variables"] == {"working_dir": str(tmp_path)}
    assert api.post(f"/deployments/{place}/create_flow_run", json={}).status_code == 201
    for name, value in (("command", "touch made"), ("env", {"PYTHONPATH": "."}), ("working_dir", "/")):
        answer = api.post(f"/deployments/{place}/create_flow_run", json={"job_variables": {name: value}})
        assert answer.status_code == 422 and "Validation failed" in answer.text, name


def test_values_that_slip_through_change_nothing(api: httpx.Client, tmp_path: Path) -> None:
    values = {"command": "touch made", "env": {"PYTHONPATH": "."}, "env.LD_PRELOAD": "x"}
    made: Any = asyncio.run(ProcessJobConfiguration.from_template_and_values(pool_template(tmp_path), values))
    assert (made.command, made.env, made.working_dir) == (None, {}, tmp_path)


def test_a_pool_of_another_type_is_refused(api: httpx.Client, tmp_path: Path) -> None:
    api.post("/work_pools/", json={"name": "cluster", "type": "kubernetes"}).raise_for_status()
    with pytest.raises(ConfigurationError, match="'cluster' there is of type 'kubernetes', not 'process'"):
        make_pool("cluster", tmp_path)
