"""The demo: trains its models, then runs the usual diagnosis, or a validation."""

from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow

from flows.command.configuration import checked, merged
from flows.diagnose import diagnose
from flows.validate import validate
from schemas.config import DemoConfig
from tasks.demo.models import models_task, write_inputs


@flow(name="demo", flow_run_name="train and diagnose", persist_result=False)
def demo(settings: DemoConfig, root: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Train a small student and its teachers, then diagnose, or train on every signal and compare.

    Args:
        root: local folder of the models.
        overrides: nested fields of the configuration.

    Returns:
        the content of `run.json`, or of `validation.json`.
    """
    models_task(settings, root, return_state=True).result()
    config = checked(write_inputs(Path(root), settings, partial(merged, overrides=overrides)))
    return validate(config) if settings.validate_forecast else diagnose(config)
