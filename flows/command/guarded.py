"""How every command ends: errors that the user can fix become lines on stderr and an exit code."""

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

from flows.command.configuration import ConfigurationError
from flows.command.environment import prepare
from flows.command.signals import signals_first
from schemas.text import reason, visible, without_user

_MOST_LINE = 1_000

OK, FAILED, BAD_INPUT = 0, 1, 2

ERRORS = Console(stderr=True, highlight=False, emoji=False)


def _output() -> Console:
    console = Console(highlight=False, emoji=False)
    # a file or a pipe has no width
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=112)


CONSOLE = _output()


def guarded(action: Callable[[], int]) -> int:
    """Run a command; errors that the user can fix become lines on stderr and exit code 2, transient ones 1."""
    try:
        prepare()  # before anything reads the environment
    except ConfigurationError as error:
        _refuse(error)
        return BAD_INPUT
    from tasks.engines.protocol import EngineError
    from tasks.inputs.errors import InputError
    from tasks.store.outages import LASTING
    from tasks.store.store import StoreError

    try:
        with signals_first():
            return action()
    except (ConfigurationError, InputError, EngineError, StoreError) as error:
        _refuse(error)
        return BAD_INPUT
    except LASTING as error:
        _refuse(ValueError(reason(error)))
        return BAD_INPUT
    except OSError as error:
        ERRORS.print(
            f"{escape(reason(error))}; completed work is kept, run again to continue", style="red", soft_wrap=True
        )
        return FAILED


def _refuse(error: Exception) -> None:
    """Print the lines of an error, each truncated and without control characters and secrets, whatever its source."""
    for line in str(error).split("\n"):
        ERRORS.print(escape(visible(without_user(line))[:_MOST_LINE]), style="red", soft_wrap=True)
