"""Deployment files against their own tools: compose, images, the Kubernetes job, Prefect.yaml, the automation."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore

from flows.orchestration.deployments import lost_runs, pool_template
from flows.service.server import server_settings
from tests.helpers.places import ROOT

INFRA = ROOT / "infra"
SCRIPTS = Path(sys.executable).parent


def call(*command: str, environment: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_compose_is_valid_pinned_and_on_loopback() -> None:
    call(str(SCRIPTS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(INFRA / "compose.yaml"))
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        image, _, tag = service["image"].partition(":")
        assert tag and tag != "latest", name
        assert image.startswith("opdscope") or any(c.isdigit() for c in tag), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    for name in ("database", "server", "objects"):
        assert "healthcheck" in services[name]
    wanted = set(re.findall(r"\$\{(\w+):\?", (INFRA / "compose.yaml").read_text()))
    given = {line.partition("=")[0] for line in (INFRA / "example.env").read_text().splitlines() if "=" in line}
    assert wanted <= given
    server = services["server"]
    assert server["command"].startswith("python -m flows.service.guarded_server 0.0.0.0 4200 server 127.0.0.1 ")
    port, names = 4200, ["127.0.0.1"]
    assert {k: v for k, v in server_settings(port, names).items() if not k.startswith("PREFECT_SERVER_UI")}.items() <= (
        server["environment"].items()
    )
    assert (
        server["environment"]["PREFECT_SERVER_API_AUTH_STRING"]
        == (services["worker"]["environment"]["PREFECT_API_AUTH_STRING"])
    )


def test_the_work_pool_is_the_one_that_serve_makes() -> None:
    assert json.loads((INFRA / "work-pool.json").read_text()) == pool_template()
    for path in ("compose.yaml", "prefect.yaml"):
        made = re.findall(
            r"prefect work-pool create .*?--type process(.*?work-pool\.json)?", (INFRA / path).read_text()
        )
        assert made and all(made), path


@pytest.mark.parametrize("path", sorted((INFRA / "images").iterdir()), ids=lambda p: p.name)
def test_images_are_well_made(path: Path) -> None:
    call(str(SCRIPTS / "hadolint"), str(path))


def filled(template: Any, values: dict[str, Any]) -> Any:
    """A job template with its variables put in, as Prefect does it."""
    if isinstance(template, dict):
        return {k: v for k, v in ((k, filled(v, values)) for k, v in template.items()) if v is not None}
    if isinstance(template, list):
        return [filled(v, values) for v in template]
    if isinstance(template, str):
        whole = re.fullmatch(r"\{\{ (\w+) \}\}", template)
        return values[whole[1]] if whole else re.sub(r"\{\{ (\w+) \}\}", lambda m: str(values[m[1]]), template)
    return template


def test_the_kubernetes_job_is_valid_and_asks_for_gpus() -> None:
    import kubernetes_validate

    template = json.loads((INFRA / "kubernetes" / "job-template.json").read_text())
    variables = template["variables"]["properties"]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used <= set(variables) and "command" not in variables  # the worker fills in Prefect's own
    values = {name: variable.get("default") for name, variable in variables.items()}
    given = {"name": "run", "env": [{"name": "A", "value": "b"}], "finished_job_ttl": 60}
    manifest = filled(template["job_configuration"]["job_manifest"], {**values, **given})
    kubernetes_validate.validate(manifest, "1.31", strict=True)
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


@pytest.mark.slow
def test_deployments_run_on_a_process_worker(prefect_environment: dict[str, str], settings: dict[str, Any]) -> None:
    prefect, pool = str(SCRIPTS / "prefect"), ("work-pool", "create", "opdscope", "--type", "process", "--overwrite")
    call(prefect, *pool, "--base-job-template", str(INFRA / "work-pool.json"), environment=prefect_environment)
    command = ("--no-prompt", "deploy", "--all", "--prefect-file", str(INFRA / "prefect.yaml"))
    call(prefect, *command, environment=prefect_environment)
    with httpx.Client(base_url=prefect_environment["PREFECT_API_URL"], timeout=30) as api:
        for name in ("diagnose", "rank", "calibrate", "nightly"):
            deployment = api.get(f"/deployments/name/{name}/{name}").raise_for_status().json()
            assert "opdscope" in deployment["tags"] and deployment["work_pool_name"] == "opdscope"
        assert [s["active"] for s in deployment["schedules"]] == [False]
        place = api.get("/deployments/name/diagnose/diagnose").json()["id"]
        body = {"parameters": {"config": {**settings, "losses": [{"kind": "reverse_kl"}]}}}
        body["parameters"]["config"]["teachers"] = [{"kind": "model", "name": "self", "contexts": [{"kind": "none"}]}]
        run = api.post(f"/deployments/{place}/create_flow_run", json=body).raise_for_status().json()["id"]
        call(prefect, "worker", "start", "--pool", "opdscope", "--run-once", environment=prefect_environment)
        assert api.get(f"/flow_runs/{run}").json()["state"]["type"] == "COMPLETED"
    assert (Path(settings["store"]) / "runs" / "small" / "report.html").exists()


def test_the_automation_for_lost_runs_is_the_one_that_serve_makes() -> None:
    _, automation = yaml.safe_load((INFRA / "automation.yaml").read_text())["automations"]
    assert AutomationCore.model_validate(automation) == lost_runs()


@pytest.mark.slow
def test_the_automation_sends_a_message(prefect_environment: dict[str, str], tmp_path: Path) -> None:
    received: list[bytes] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    hook = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    make = (
        "import sys; from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block\n"
        "block = Block(name='test', url=sys.argv[1], method='POST', json_data={'text': '{{body}}'})\n"
        "print(block.save('regressions', overwrite=True))"
    )
    address = f"http://127.0.0.1:{hook.server_address[1]}/"
    block = call(sys.executable, "-c", make, address, environment=prefect_environment).strip().splitlines()[-1]
    text = (INFRA / "automation.yaml").read_text()
    (tmp_path / "automation.yaml").write_text(re.sub(r"block_document_id: \S+", f"block_document_id: {block}", text))
    command = ("automation", "create", "--from-file", str(tmp_path / "automation.yaml"))
    call(str(SCRIPTS / "prefect"), *command, environment=prefect_environment)
    time.sleep(3)
    send = (
        "from prefect.events import emit_event; from flows.nightly import REGRESSION\n"
        "emit_event(REGRESSION, {'prefect.resource.id': 'opdscope.suite.test'}, payload={'message': 'worse by .3'})\n"
    )
    environment = {**prefect_environment, "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    call(sys.executable, "-c", send, environment=environment)
    for _ in range(120):
        if received:
            break
        time.sleep(0.5)
    hook.shutdown()
    assert received and b"worse by .3" in received[0]
