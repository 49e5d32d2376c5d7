"""A small diagnosis that is done, in a store of its own, made without Prefect."""

from pathlib import Path
from typing import Any

from prefect.logging import disable_run_logger

from flows.command.configuration import checked
from schemas.pipeline import diagnosis_stages
from tasks.outputs.diagnosis import make_outputs
from tasks.outputs.files import write_files, write_run
from tasks.run.session import close_sessions, start_session
from tasks.run.shells import run_stage


def finished_run(settings: dict[str, Any]) -> Path:
    """Run every stage, write the outputs; returns the store."""
    job = start_session(checked(settings))
    try:
        ids = job.keys.questions
        for stage in diagnosis_stages():
            run_stage(job, stage, ids)
        with disable_run_logger():
            outputs = make_outputs(job, ids, {})
            digests = write_files(job, outputs.files)
            write_run(job, ids, {}, [], {"files": digests, "why_unresolved": outputs.why_unresolved}, {})
    finally:
        close_sessions()
    return Path(settings["store"])
