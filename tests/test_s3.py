"""A store on a real S3-compatible server: whole runs, claims, outages, delays, and no credentials anywhere."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from s3fs import S3FileSystem

from tasks.failures import may_pass
from tasks.store.artefact import Store, StoreError
from tasks.store.claims import Claims
from tasks.store.collect import holdings, remove, stored, unreferred
from tests.conftest import free_port

SECRET = "not-to-be-told-anywhere"  # noqa: S105
HERE = Path(__file__).parents[1]


class Gate(ThreadingHTTPServer):
    """Passes requests on to the S3 server; may delay them, or refuse writes."""

    def __init__(self, target: str) -> None:
        self.delay, self.refusing, self.requests = 0.0, False, 0
        gate, client = self, httpx.Client(base_url=target, timeout=60)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                gate.requests += 1
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                time.sleep(gate.delay)
                if gate.refusing and self.command in ("PUT", "POST", "DELETE"):
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
                answer = client.request(self.command, self.path, headers=headers, content=body)
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length", "content-encoding"):
                        self.send_header(name, value)
                length = (
                    answer.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(answer.content))
                )
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of a moto server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                httpx.get(url, timeout=1)
                break
            except httpx.HTTPError:
                time.sleep(0.25)
        yield url
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def gate(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A way to the server that can fail; the environment holds credentials for it."""
    gate = Gate(s3)
    for name, value in {
        "AWS_ENDPOINT_URL": gate.url,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # they keep the address that the environment had
    httpx.put(f"{s3}/bucket")
    yield gate
    gate.shutdown()


def opened(name: str) -> Store:
    return Store(f"s3://bucket/{name}")


def test_objects_claims_and_clean_up(gate: Gate) -> None:
    store = opened("unit")
    store.check_writable()
    assert store.get_bytes("a", "b") is None and store.names("a") == []
    store.put_bytes(b"1", "rounds", "key", "part.zip")
    assert opened("unit").names("rounds", "key") == ["part.zip"]  # another process sees it at once
    assert store.create_bytes(b"1", "once") and not opened("unit").create_bytes(b"2", "once")
    assert store.get_bytes("once") == b"1"
    with Claims(store, 60).hold("work") as ours, Claims(opened("unit"), 60).hold("work") as theirs:
        assert ours and not theirs
    assert opened("unit").names("claims") == []
    assert [(h.artefacts, h.size) for h in holdings(store) if h.stage == "rounds"] == [(1, 1)]
    time.sleep(1.1)  # S3 tells whole seconds
    remove(store, unreferred(store, older=0.0))
    assert list(stored(opened("unit"), "rounds")) == []


def test_a_store_that_refuses_or_is_away_is_told_apart_from_a_wrong_one(gate: Gate) -> None:
    gate.refusing = True
    with pytest.raises(StoreError, match="cannot write to 's3://bucket/x'"):
        opened("x").check_writable()
    with pytest.raises(OSError) as refused:
        opened("x").put_bytes(b"1", "a")
    assert may_pass(refused.value)
    gate.refusing = False
    with pytest.raises(StoreError, match="cannot write to 's3://nobucket'"):
        Store("s3://nobucket").check_writable()


def run(settings: dict[str, Any], tmp_path: Path, environment: dict[str, str], store: str) -> "subprocess.Popen[str]":
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**settings, "store": store}))
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", str(path)],
        env={**environment, **aws},
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_run_on_a_store_that_is_slow_and_refuses_writes_for_a_while(
    gate: Gate, settings: dict[str, Any], tmp_path: Path, prefect_environment: dict[str, str]
) -> None:
    settings["execution"] = {"questions_per_task": 3, "round_draws": 24, "round_seconds": 0.0, "retry_seconds": 2.0}
    whole = run(settings, tmp_path, prefect_environment, str(tmp_path / "whole"))
    out, err = whole.communicate(timeout=300)
    assert whole.returncode == 0, err

    gate.delay = 0.01
    process = run(settings, tmp_path, prefect_environment, "s3://bucket/run")
    store = opened("run")
    for _ in range(600):
        if store.names("rounds"):
            break
        time.sleep(0.1)
    gate.refusing = True
    time.sleep(6.0)
    gate.refusing = False
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    names = [name for name in store.names("runs", "small") if name.endswith(".parquet")]
    assert len(names) == 5
    for name in names:
        assert store.get_bytes("runs", "small", name) == (tmp_path / "whole" / "runs" / "small" / name).read_bytes()
    for path in store.fs.find(store.root):
        assert SECRET.encode() not in store.fs.cat_file(path), path
    assert SECRET not in out + err


@pytest.mark.slow
def test_credentials_from_a_block(
    gate: Gate, settings: dict[str, Any], tmp_path: Path, prefect_environment: dict[str, str]
) -> None:
    make = (
        "import sys; from prefect.filesystems import RemoteFileSystem\n"
        "RemoteFileSystem(basepath='s3://bucket', settings={'key': 'someone', 'secret': sys.argv[2], "
        "'endpoint_url': sys.argv[1]}).save('objects', overwrite=True)"
    )
    command = [sys.executable, "-c", make, gate.url, SECRET]
    subprocess.run(command, env=prefect_environment, check=True, capture_output=True)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        os.environ.pop(name)  # the fixture puts back what was there
    settings["execution"] = {"storage_block": "objects"}
    process = run(settings, tmp_path, {**prefect_environment, "AWS_EC2_METADATA_DISABLED": "true"}, "s3://bucket/block")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert SECRET not in out + err
    settings["execution"] = {"storage_block": "missing"}
    process = run(settings, tmp_path, prefect_environment, "s3://bucket/block")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "there is no block remote-file-system/missing" in err
