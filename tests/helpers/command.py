"""The type of the fixture that runs a command."""

from collections.abc import Callable

from typer.testing import Result

Command = Callable[..., Result]
"""Takes a command's arguments, returns its exit code and what it printed."""
