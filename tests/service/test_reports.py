"""The reports' server: the outputs of runs and nothing else, whatever is asked for and lies there."""

import os
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from flows.service.reports import reports
from tasks.store.store import Store

OUTSIDE = "not an output"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    outside, root = tmp_path / "outside", tmp_path / "store"
    outside.mkdir()
    (outside / "report.html").write_text(OUTSIDE)
    run = root / "runs" / "first"
    run.mkdir(parents=True)
    (run / "report.html").write_text("<p>scores</p>")
    (run / "linked.html").symlink_to(outside / "report.html")
    (run / "near.html").symlink_to(run / "report.html")
    (run / "folder.html").mkdir()
    os.mkfifo(run / "pipe.html")
    (root / "runs" / "linked").symlink_to(outside, target_is_directory=True)
    (root / "runs" / "stray.html").write_text(OUTSIDE)
    os.mkdir(os.fsencode(root / "runs") + b"/\xff\xfe")  # noqa: PTH102 - no text names it
    (root / "runs" / "<b>bold").mkdir()
    return root


def client(root: Path) -> TestClient:
    app = reports(Store(str(root)), ["testserver"])
    return TestClient(app, raise_server_exceptions=False)


def test_outputs_are_shown_and_links_are_not_followed(store: Path) -> None:
    web = client(store)
    listed = web.get("/")
    assert listed.status_code == 200 and 'href="/first/report.html"' in listed.text
    assert not any(name in listed.text for name in ("linked", "near", "folder", "pipe", "stray", "bold"))
    assert web.get("/first/report.html").text == "<p>scores</p>"
    for hidden in (
        "first/linked.html",
        "first/near.html",
        "linked/report.html",
        "first/folder.html",
        "first/pipe.html",
    ):
        answer = web.get(f"/{hidden}")
        assert (answer.status_code, answer.text) == (404, "not found"), hidden


@pytest.mark.parametrize("linked", ["runs", "runs/first"])
def test_folders_that_are_links_hold_no_outputs(store: Path, linked: str, tmp_path: Path) -> None:
    (store / linked).rename(tmp_path / "moved")
    (store / linked).symlink_to(tmp_path / "moved", target_is_directory=True)
    assert client(store).get("/first/report.html").status_code == 404
    assert "report.html" not in client(store).get("/").text


def test_a_store_that_is_itself_a_link_is_the_users_choice(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store, target_is_directory=True)
    assert client(tmp_path / "link").get("/first/report.html").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "first/%00.html",
        "first/report.html%00",
        "first%00/report.html",
        "%2e%2e/runs/report.html",
        "%2e%2e/stray.html",
        "first/%2e%2e%2fstray.html",
        "first/..%5cstray.html",
        "first/%ff%fe.html",
        "%ed%b2%80/report.html",
        "first/%zz.html",
        "first/" + "a" * 300 + ".html",
        "a" * 5_000 + "/report.html",
        "first/",
        "stray.html/report.html",
        "first/report.html%0a",
        "first/.html",
        "%F0%9F%98%80/report.html",
    ],
)
def test_odd_names_are_not_there(store: Path, path: str) -> None:
    assert client(store).get(f"/{path}").status_code == 404


def test_other_stores_answer_alike() -> None:
    store = Store("memory://reports-test")
    store.put_bytes(b"scores", "runs", "first", "report.html")
    store.put_bytes(b"x", "runs", "first", "folder.html", "inner")
    app = TestClient(reports(store, ["testserver"]), raise_server_exceptions=False)
    assert app.get("/first/report.html").text == "scores" and "/first/report.html" in app.get("/").text
    for path in ("first/folder.html", "first/%00.html", "first/" + "a" * 300 + ".html", "first/none.html"):
        assert app.get(f"/{path}").status_code == 404, path


def test_reports_ask_for_the_password(store: Path) -> None:
    app = TestClient(reports(Store(str(store)), ["testserver"], "me:secret"))
    for path in ("/", "/first/report.html", "/first/none.html"):
        assert app.get(path).status_code == 401
    assert app.get("/first/report.html", auth=("me", "secret")).status_code == 200
    assert app.get("/", auth=("me", "secret"), headers={"Host": "elsewhere.example"}).status_code == 400
