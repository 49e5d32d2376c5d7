"""The demo: trains its models, then runs the same diagnosis as for any other model."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.diagnose import diagnose
from schemas.config import DemoConfig, RunConfig
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
    folder = Path(models_task(settings, root))
    return diagnose(RunConfig.model_validate(merged(demo_configuration(folder, settings), overrides)))


def merged(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`base` with the nested fields of `overrides` in their places; list items go by index."""
    out = dict(base)
    for name, value in overrides.items():
        here = out.get(name)
        if isinstance(value, dict) and isinstance(here, dict):
            out[name] = merged(here, value)
        elif isinstance(value, dict) and isinstance(here, list) and value and all(k.isdigit() for k in value):
            items = {str(i): item for i, item in enumerate(here)}
            out[name] = list(merged(items, value).values())
        else:
            out[name] = value
    return out
