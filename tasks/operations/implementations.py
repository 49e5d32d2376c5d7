"""Functions and classes that declarations name, imported when they are needed."""

from importlib import import_module
from typing import Any


def implementation(place: str) -> Any:
    """What `module:name` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
