"""Outputs of one name: those of one run at a time, whole, and told apart from others' where they mix."""

import hashlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
from prefect.logging import disable_run_logger

from flows.command.configuration import checked
from schemas.config import RunConfig
from schemas.pipeline import diagnosis_stages
from tasks.inputs.errors import InputError
from tasks.outputs import names as outputs
from tasks.outputs.files import parquet_bytes, read_run, read_table, write_files, write_run
from tasks.outputs.names import add_references, named, write_references, writing
from tasks.run.session import RunSession, start_session
from tasks.store.references import reachable
from tasks.store.store import StoreError

TABLES = ("tokens", "summary", "differences")


@pytest.fixture
def jobs(settings: dict[str, Any]) -> list[RunSession]:
    """Of two configurations with one name."""
    return [start_session(checked(settings | {"seed": seed})) for seed in (0, 1)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every opening of a job is as one by a process of its own."""
    monkeypatch.setattr(outputs, "open_session", start_session)


def write(job: RunSession, pause: float = 0.0) -> None:
    """What a flow does at its end; in every table stands the seed."""
    with disable_run_logger(), writing(job):

        def files() -> Iterator[tuple[str, bytes]]:
            for name in TABLES:
                yield f"{name}.parquet", parquet_bytes(pl.DataFrame({"seed": [job.config.seed]}))
                time.sleep(pause)

        digests = write_files(job, files())
        write_run(job, job.keys.questions, {}, [], {"files": digests, "why_unresolved": None}, {})


def test_files_and_run_json_are_of_one_run(jobs: list[RunSession]) -> None:
    seen: set[int] = set()
    for i in range(6):
        both = [threading.Thread(target=write, args=(job, 0.01)) for job in (jobs if i % 2 else jobs[::-1])]
        for writer in both:
            writer.start()
        for writer in both:
            writer.join(30)
        run = read_run(jobs[0])
        assert run is not None, "files and run.json do not agree"
        seeds = {int(read_table(jobs[0].store, "small", name)["seed"][0]) for name in TABLES}
        assert seeds == {run["configuration"]["seed"]}
        seen |= seeds
    assert jobs[0].store.names("claims") == []


def test_run_json_names_the_references_it_was_made_with(jobs: list[RunSession]) -> None:
    write(jobs[0])
    assert (read_run(jobs[0]) or {})["references"] is None
    written = []
    for left_out in ([], jobs[0].keys.questions[:1]):  # questions that are left out add references
        write_references(jobs[0], "diagnose", ["rollouts", "prior"])
        jobs[0].keys.leave_out(left_out)
        add_references(jobs[0], "diagnose", ["rollouts", "prior"])
        write(jobs[0])
        jobs[0].keys.leave_out([])
        written.append((read_run(jobs[0]) or {})["references"])
    listed = jobs[0].store.get_bytes("runs", "small", "references-diagnose.json") or b""
    assert written == [hashlib.sha256(listed).hexdigest()] * 2


def test_a_mixture_is_not_read(jobs: list[RunSession]) -> None:
    write(jobs[0])
    assert read_table(jobs[0].store, "small", "summary")["seed"].to_list() == [0]
    write_files(jobs[1], [("summary.parquet", parquet_bytes(pl.DataFrame({"seed": [1]})))])  # then it is killed
    assert read_run(jobs[0]) is None
    with pytest.raises(StoreError, match=r"summary.parquet of run 'small' .* does not match its digest"):
        read_table(jobs[0].store, "small", "summary")
    write(jobs[1])
    assert read_table(jobs[0].store, "small", "summary")["seed"].to_list() == [1]
    jobs[0].store.put_bytes(b"[1]", "runs", "small", "run.json")  # of somebody else
    assert read_run(jobs[0]) is None


@pytest.mark.usefixtures("opened")
def test_a_name_is_of_one_configuration_at_a_time(settings: dict[str, Any]) -> None:
    one, other = checked(settings), checked(settings | {"seed": 1})
    again = checked(settings | {"execution": {"questions_per_task": 1}})  # needs the same of the store
    with named(one, "diagnose", diagnosis_stages()), named(again, "diagnose", diagnosis_stages()):
        with (
            pytest.raises(InputError, match="name: a run named 'small' with another configuration is using"),
            named(other, "diagnose", diagnosis_stages()),
        ):
            pass
        with named(checked(settings | {"seed": 1, "name": "free"}), "diagnose", diagnosis_stages()):
            pass
    with named(other, "diagnose", diagnosis_stages()):
        pass


@pytest.mark.usefixtures("opened")
def test_of_two_that_come_at_once_one_is_refused(settings: dict[str, Any]) -> None:
    configs = [checked(settings | {"seed": seed}) for seed in (0, 1)]
    outcomes: list[str] = []
    done = threading.Event()

    def run(config: RunConfig) -> None:
        try:
            with named(config, "diagnose", diagnosis_stages()):
                outcomes.append("held")
                done.wait(30)
        except InputError:
            outcomes.append("refused")

    both = [threading.Thread(target=run, args=(config,)) for config in configs]
    for thread in both:
        thread.start()
    for _ in range(600):
        if len(outcomes) == 2:
            break
        time.sleep(0.05)
    done.set()
    for thread in both:
        thread.join(30)
    assert sorted(outcomes) == ["held", "refused"]


def test_what_is_made_without_some_questions_is_needed_too(jobs: list[RunSession]) -> None:
    job = jobs[0]
    write_references(job, "diagnose", diagnosis_stages())
    before = reachable(job.store)
    job.keys.leave_out(job.keys.questions[:2])
    prior = f"prior/{job.keys.key('prior', job.keys.questions[0])}"
    assert prior not in before
    add_references(job, "diagnose", diagnosis_stages())
    assert before | {prior} <= reachable(job.store)
    write_references(start_session(job.config), "diagnose", diagnosis_stages())  # the same run beside it begins
    assert before | {prior} <= reachable(job.store)
    write_references(jobs[1], "diagnose", diagnosis_stages())  # another, later
    assert not (before | {prior}) & reachable(job.store)
