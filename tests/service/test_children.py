"""Children of `opdscope serve`: ended with it, or by the next one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.service.children import child, end_orphans, last_lines
from tasks.operations.processes import is_gone, this_process
from tests.helpers.places import ROOT

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
PARENT = """
import sys, time
from pathlib import Path
from flows.service.children import child
with child(Path(sys.argv[1]), "first", sys.argv[2:], {}), child(Path(sys.argv[1]), "second", sys.argv[2:], {}):
    print("started", flush=True)
    time.sleep(600)
"""


def test_a_child_ends_with_the_block(tmp_path: Path) -> None:
    with child(tmp_path, "one", SLEEP, {}) as (process, log):
        assert process.poll() is None and len(list(tmp_path.glob("*.process.json"))) == 1
        assert end_orphans(tmp_path) == []  # its command lives
    assert process.poll() is not None and log.exists()
    assert list(tmp_path.glob("*.process.json")) == []


def test_a_child_that_ends_by_itself_hides_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no room', flush=True)"]
    with pytest.raises(RuntimeError, match="no room"), child(tmp_path, "one", command, {}) as (process, log):
        while process.poll() is None:
            time.sleep(0.02)
        raise RuntimeError(last_lines(log))
    assert list(tmp_path.glob("*.process.json")) == []


def test_children_of_a_killed_command_are_ended_last_first(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), *SLEEP], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None and parent.stdout.readline() == b"started\n"
    children = psutil.Process(parent.pid).children()
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert all(c.is_running() for c in children)
    assert end_orphans(tmp_path) == ["second", "first"]
    assert not any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children)
    assert end_orphans(tmp_path) == []


def test_a_later_process_of_the_same_number_is_left_alone(tmp_path: Path) -> None:
    with child(tmp_path, "one", SLEEP, {}) as (process, _):
        records = {"name": "other", "parent": [1, 0.0], "child": [process.pid, 1.0]}
        (tmp_path / "other-1.process.json").write_text(json.dumps(records))
        (tmp_path / "torn-1.process.json").write_text('{"name": "to')
        assert end_orphans(tmp_path) == []
        assert process.poll() is None
        assert [path.name.split("-")[0] for path in tmp_path.glob("*.process.json")] == ["one"]
    number, started = this_process()
    assert not is_gone(number, started) and is_gone(number, started - 10)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "1",
        "null",
        '"x"',
        '{"name": "to',
        '{"parent": null}',
        '{"name": "x", "parent": [1, 0.0], "child": ["x", 2]}',
        '{"name": "x", "parent": [1, 0.0], "child": [-1, 2.0]}',
        '{"name": "x", "parent": [1, 0.0], "child": [99999999999999999999, 2.0]}',
        '{"name": "x", "parent": [1, 0.0], "child": [1.5, 2.0]}',
        '{"name": 1, "parent": [1, 0.0, 3], "child": [1, 2.0]}',
        "\x00",
        "\udcff",
    ],
)
def test_what_is_no_record_is_removed(content: str, tmp_path: Path) -> None:
    (tmp_path / "odd-1.process.json").write_bytes(content.encode(errors="surrogateescape"))
    assert end_orphans(tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "folder-1.process.json").mkdir()
    (tmp_path / "dangling-1.process.json").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe-1.process.json")
    assert end_orphans(tmp_path) == [] and len(list(tmp_path.iterdir())) == 3
