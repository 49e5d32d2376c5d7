"""The demo: trains its models, then runs the usual diagnosis."""

from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow

from flows.command.configuration import checked, merged
from flows.diagnose import diagnose
from schemas.config import DemoConfig
from tasks.demo.models import models_task, write_inputs


@flow(name="demo", flow_run_name="train and diagnose", persist_result=False)
def demo(settings: DemoConfig, root: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Train a small student and a larger teacher, then diagnose.

    Args:
        root: local folder of the models.
        overrides: nested fields of the configuration.

    Returns:
        the content of `run.json`.
    """
    models_task(settings, root, return_state=True).result()
    return diagnose(checked(write_inputs(Path(root), settings, partial(merged, overrides=overrides))))
