"""Functions and classes that declarations name as `module:name`, imported on demand."""

from importlib import import_module
from typing import Any


def implementation(place: str) -> Any:
    """The object that `module:name` refers to."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
