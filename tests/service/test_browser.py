"""Prefect's UI as people use it, in headless Chromium: fill the form, run, look, retry.

Screenshots go to the folder that OPDSCOPE_SCREENSHOTS names.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.browser import chromium, shot
from tests.helpers.served import Served, in_trees, processes, tables

pytestmark = pytest.mark.slow
REBOUND = "rebound.example"
"""A name of somebody else that has been pointed at this machine."""
ATTACK = """async ([api, deployment, folder]) => {
    const run = JSON.stringify({job_variables: {command: `touch ${folder}/made`}})
    const pool = JSON.stringify({base_job_template: {
        job_configuration: {command: `touch ${folder}/made`}, variables: {type: 'object', properties: {}}}})
    const create = `${api}/deployments/${deployment}/create_flow_run`
    const json = {'Content-Type': 'application/json'}
    const statuses = []
    const attempt = async (url, options) => {
        try { statuses.push((await fetch(url, options)).status) } catch (error) { statuses.push(error.name) }
    }
    for (const mode of ['cors', 'no-cors'])
        for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'application/json', undefined]) {
            const headers = type ? {'Content-Type': type} : {}
            await attempt(create, {method: 'POST', mode, headers, body: type ? run : new Blob([run])})
        }
    await attempt(`${api}/work_pools/opdscope`, {method: 'PATCH', headers: json, body: pool})
    let token = {token: 'guessed'}
    try { token = await (await fetch(`${api}/csrf-token?client=attack`)).json() } catch (error) {}
    const headers = {...json, 'Prefect-Csrf-Client': 'attack', 'Prefect-Csrf-Token': token.token}
    await attempt(create, {method: 'POST', headers, body: run})
    await attempt(create, {method: 'POST', headers, body: '{}'})
    await attempt(`${api}/work_pools/opdscope`, {method: 'PATCH', headers, body: pool})
    await attempt(`${api}/flow_runs/filter`, {method: 'POST', headers, body: '{}'})
    navigator.sendBeacon(create, run)
    for (const encoding of ['text/plain', 'application/x-www-form-urlencoded']) {
        const frame = document.body.appendChild(document.createElement('iframe'))
        frame.name = `frame-${encoding}`
        const form = document.body.appendChild(document.createElement('form'))
        Object.assign(form, {action: create, method: 'POST', enctype: encoding, target: frame.name})
        const field = form.appendChild(document.createElement('input'))
        field.name = run.slice(0, -1) + ', "x": "'
        field.value = '"}'
        form.submit()
    }
    const opened = await new Promise(done => {
        const socket = new WebSocket(api.replace('http', 'ws') + '/events/in')
        socket.onopen = () => done(true)
        socket.onerror = () => done(false)
    })
    await new Promise(done => setTimeout(done, 2000))
    return {statuses, opened}
}"""


@pytest.fixture
def served(tmp_path: Path, settings: dict[str, Any]) -> Iterator[Served]:
    settings["execution"] = {"questions_per_task": 3, "round_draws": 24, "round_seconds": 0.0}
    settings["tree"]["draws"] = 48
    one = Served(tmp_path, settings)
    try:
        yield one
    finally:
        one.stop()


@pytest.fixture
def page(served: Served) -> Iterator[Any]:
    # the last is of newer browsers only; what it stops never reaches us
    blocked = "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests"
    with chromium("--host-resolver-rules=MAP *.example 127.0.0.1", blocked) as browser:
        page = browser.new_page(viewport={"width": 1300, "height": 900}, base_url=f"http://127.0.0.1:{served.port}")
        page.set_default_timeout(30_000)
        yield page


def submit(page: Any, served: Served, **fields: str) -> str:
    """Fill text fields of the form, told by what they hold, and start the run; gives its id."""
    page.goto(f"/deployments/deployment/{served.deployment('diagnose')['id']}/run")
    page.get_by_text("Everything a diagnosis needs").first.wait_for()
    for old, new in fields.items():
        (box,) = [box for box in page.locator("textarea").all() if box.input_value() == old]
        box.fill(new)
    shot(page, f"form-{next(iter(fields.values()))}")
    before = set(runs(served))
    page.get_by_role("button", name="Submit").click()
    for _ in range(100):
        if new_ones := set(runs(served)) - before:
            return new_ones.pop()
        page.wait_for_timeout(200)
    raise AssertionError("no run was started")


def runs(served: Served) -> list[str]:
    """Those that are not of the schedule."""
    found = served.api.post("/flow_runs/filter", json={}).raise_for_status().json()
    return [run["id"] for run in found if not run["auto_scheduled"]]


def test_a_run_from_the_form_and_a_retry(page: Any, served: Served, tmp_path: Path) -> None:
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url))

    page.goto("/deployments")
    page.get_by_text("nightly", exact=True).first.wait_for()
    shot(page, "deployments")

    run = submit(page, served, small="from-the-form")
    page.goto(f"/runs/flow-run/{run}")
    page.get_by_text("Completed", exact=True).first.wait_for(timeout=180_000)
    shot(page, "finished")
    page.get_by_text("Artifacts", exact=True).first.click()
    page.get_by_text("alignment with the ideal gradient", exact=False).first.wait_for()
    shot(page, "artifacts")
    page.get_by_text("from-the-form-report-html", exact=True).first.click()
    page.goto(page.locator("a[href$='/from-the-form/report.html']").first.get_attribute("href"))
    page.get_by_role("heading", name="from-the-form").wait_for()
    shot(page, "report")
    page.goto("/")
    outside = [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:", "ws://127.0.0.1:"))]
    assert outside == []

    killed = submit(page, served, **{"small": "killed", str(tmp_path / "store"): str(tmp_path / "other")})
    page.goto(f"/runs/flow-run/{killed}")
    in_trees(tmp_path / "other")
    (victim,) = processes(killed)
    victim.kill()
    page.get_by_text("Crashed", exact=True).first.wait_for(timeout=60_000)
    shot(page, "crashed")
    page.get_by_role("button", name="Retry").first.click()
    page.wait_for_timeout(500)
    shot(page, "retry")
    page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    served.wait(killed, "COMPLETED", seconds=180)
    page.get_by_text("Completed", exact=True).first.wait_for()
    shot(page, "retried")
    assert tables(tmp_path / "other", "killed") == tables(tmp_path / "store", "from-the-form")


def test_web_pages_of_elsewhere_can_do_nothing(page: Any, served: Served, tmp_path: Path) -> None:
    """By simple requests, forms, beacons, sockets, with and without preflight; from other origins and by rebinding."""
    here, rebound = f"http://127.0.0.1:{served.port}", f"http://{REBOUND}:{served.port}"
    pool = served.api.get("/work_pools/opdscope").json()["base_job_template"]
    deployment = served.deployment("diagnose")["id"]

    def attack(origin: str, api: str) -> Any:
        page.route(f"{origin}/attack", lambda route: route.fulfill(body="<body>", content_type="text/html"))
        page.goto(f"{origin}/attack")
        return page.evaluate(ATTACK, [api, deployment, str(tmp_path)])

    for origin in (f"http://elsewhere.example:{served.reports}", f"http://localhost:{served.port}"):
        seen = attack(origin, f"{here}/api")
        assert set(seen["statuses"]) <= {"TypeError", 0} and not seen["opened"]  # nothing is read, sockets are closed
    seen = attack(rebound, f"{rebound}/api")
    assert set(seen["statuses"]) == {400} and not seen["opened"]
    page.wait_for_timeout(12_000)  # the worker looks for runs every 10 s
    assert runs(served) == [] and not (tmp_path / "made").exists()
    assert served.api.get("/work_pools/opdscope").json()["base_job_template"] == pool

    seen = attack(here, f"{here}/api")  # the same from the UI's own origin, to see that the attempts are well made
    *_, command, plain, change, listed = seen["statuses"]
    assert (command, plain, change, listed) == (422, 201, 204, 200) and seen["opened"]
    assert len(runs(served)) == 1
