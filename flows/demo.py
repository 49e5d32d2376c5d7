"""The demo: trains its models, then runs the same diagnosis as for any other model."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.configuration import checked, merged
from flows.diagnose import diagnose
from schemas.config import DemoConfig
from tasks.demo.models import demo_configuration, models_task


@flow(name="demo", persist_result=False)
def demo(settings: DemoConfig, root: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Train a small student and a larger teacher, then diagnose.

    Args:
        root: local folder of the models.
        overrides: fields of the configuration, nested.

    Returns:
        the content of `run.json`.
    """
    folder = Path(models_task(settings, root, return_state=True).result())
    return diagnose(checked(merged(demo_configuration(folder, settings), overrides)))
