"""Stores that commands are given, and commands on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.command.configuration import ConfigurationError
from flows.command.guarded import CONSOLE, guarded
from schemas.config import place_problem
from schemas.text import quoted
from schemas.urls import store_of_run


def check_place(store: str) -> None:
    """Reject a store that a configuration may not name.

    Raises:
        ConfigurationError: a URL with a password, or no path.
    """
    problem = place_problem(store)
    if problem is not None:
        raise ConfigurationError(f"--store: {problem if problem.startswith('the ') else f'{quoted(store)} {problem}'}")


def absolute(store: str) -> str:
    """A store that does not depend on the working folder.

    Raises:
        ConfigurationError: it cannot be a store.
    """
    check_place(store)
    return store if "://" in store else str(Path(store).expanduser().resolve())


def check_writable(field: str, store: str) -> None:
    """Reject a store that cannot be written to.

    Raises:
        ConfigurationError: it names the field and the reason.
    """
    from tasks.store.store import Store, StoreError

    try:
        Store(store).check_writable()
    except StoreError as error:
        raise ConfigurationError(f"{field}: {error}") from error


def on_store(url: str, act: Callable[[Any, Console], int]) -> int:
    """Run a subcommand of `opdscope store`.

    Args:
        act: the subcommand on an open store; returns the exit code.
    """

    def action() -> int:
        from tasks.store.store import Store

        check_place(url)
        store = Store(url)
        if not store.exists():
            raise ConfigurationError(f"--store: {quoted(url)} does not exist; give the store of a run")
        if store.is_file():
            raise ConfigurationError(f"--store: {quoted(url)} is a file; give the folder of a store")
        return act(store, CONSOLE)

    return guarded(action)


def put_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a symbolic link in its place is replaced, not followed.

    Raises:
        ConfigurationError: it cannot be written.
    """
    from tasks.store.atomic import write_whole

    try:
        write_whole(path, content)
    except OSError as error:
        raise ConfigurationError(f"--output: {quoted(str(path))} cannot be written: {error.strerror}") from error


def place(run: str, store: str) -> tuple[str, str]:
    """The store and the name of a run that a command is given.

    Raises:
        ConfigurationError: a path that is not the folder of a run.
    """
    other, sign, name = run.rpartition("#")
    if sign:
        if not other or not name or "/" in name:
            raise ConfigurationError(f"RUN: {quoted(run)} lacks its store or its name; give STORE#NAME")
        return other, name
    if "/" not in run:
        return store, run
    found = store_of_run(run)
    if found is None:
        raise ConfigurationError(
            f"RUN: {quoted(run)} is not the folder of a run; give STORE/runs/NAME, or a name alone"
        )
    return found
