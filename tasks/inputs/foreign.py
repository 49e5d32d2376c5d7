"""Errors of reading a model's files: their content may be anything, so libraries may fail on it in any way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

from schemas.text import reason


@contextmanager
def reading(what: str, error: Callable[[str], Exception]) -> Iterator[None]:
    """Turn whatever is raised in the block into one error.

    Args:
        what: what is wrong, for the message.
        error: makes the error of a message.
    """
    try:
        yield
    except UnpicklingError as raised:
        why = "its weights are a pickle that would run code, which is refused; save them as safetensors"
        raise error(f"{what}: {why}") from raised
    except Exception as raised:
        raise error(f"{what}: {reason(raised)}") from raised
