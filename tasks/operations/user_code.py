"""Functions of the user's own, named in a configuration as `module:function`.

Whoever can fill in a configuration could have any code run by naming it, so code is run only where this process
allows it: `OPDSCOPE_ALLOW_CODE=1` in its environment, which no configuration can set.
"""

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from schemas.config import RunConfig, Settings
from schemas.text import quoted, reason
from tasks.inputs.errors import InputError

ALLOW_CODE = "OPDSCOPE_ALLOW_CODE"
"""Variable of the environment; `1` allows code that a configuration names."""

_PARSING = Lock()
"""Parsers in several threads share a counter until Python 3.12, and fail (python/cpython issue 106905)."""


def check_allowed(field: str, value: object) -> None:
    """Refuse code where it may not run.

    Raises:
        InputError: this process does not allow it.
    """
    if os.environ.get(ALLOW_CODE) != "1":
        raise InputError(
            field,
            f"{quoted(value)} runs code that the configuration names, which this process does not allow; where you "
            f"trust the configuration, set {ALLOW_CODE}=1 (opdscope serve: --allow-code)",
        )


def check_code(config: RunConfig) -> None:
    """Refuse every field that would run code where that is not allowed, or that names no function.

    Raises:
        InputError: names the first such field.
    """
    models = [("student", config.student)] if config.student is not None else []
    models += [(f"teachers[{i}].model", t.model) for i, t in enumerate(config.model_teachers) if t.model is not None]
    for field, model in models:
        if model.trust_remote_code:
            check_allowed(f"{field}.trust_remote_code", True)
    for field, settings in [("verifier", config.verifier), *((f"losses[{i}]", x) for i, x in enumerate(config.losses))]:
        function = getattr(settings, "function", None)
        if function is not None:
            user_function(f"{field}.function", function)


def user_function(field: str, place: str) -> Callable[..., Any]:
    """The function that `module:function` names; modules of the current folder are found.

    Raises:
        InputError: code is not allowed here, or there is no such function.
    """
    check_allowed(field, place)
    module, _, name = place.partition(":")
    _find_here()
    try:
        found = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # importing runs the user's code
        why = f"{type(error).__name__}: {reason(error)}"
        raise InputError(field, f"{quoted(place)} cannot be imported: {why}") from error
    if not callable(found):
        raise InputError(field, f"{quoted(place)} is of type {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def keyed_with_code(settings: Settings) -> dict[str, Any]:
    """Settings that can change a number, with the code that they name."""
    function = getattr(settings, "function", None)
    return settings.keyed() if function is None else {**settings.keyed(), "code": code_fingerprint(function)}


@cache
def code_fingerprint(place: str) -> str:
    """SHA-256 of the Python files of a function's module or whole package, and of those beside it that they import.

    Raises:
        InputError: the module has no files.
    """
    top = place.partition(":")[0].partition(".")[0]
    _find_here()
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise InputError("function", f"{quoted(place)} is not in a Python file")
    found = hashlib.sha256()
    for name, path in sorted(_with_neighbours(top, Path(spec.origin)).items()):
        content = path.read_bytes()
        found.update(f"{name} {len(content)} ".encode() + content)
    return found.hexdigest()


def _with_neighbours(top: str, origin: Path) -> dict[str, Path]:
    """The files of a module or of its whole package, and of those beside it that any of them imports, by name."""
    home = origin.parent.parent if origin.name == "__init__.py" else origin.parent
    files: dict[str, Path] = {}
    waiting = [top]
    while waiting:
        name = waiting.pop()
        package, module = home / name, home / f"{name}.py"
        for path in sorted(package.rglob("*.py")) if (package / "__init__.py").is_file() else [module]:
            place = path.relative_to(home).as_posix()
            if path.is_file() and place not in files:
                files[place] = path
                waiting += _imported(path)
    return files


def _imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports."""
    names: set[str] = set()
    with _PARSING:
        parsed = ast.parse(path.read_bytes())
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _find_here() -> None:
    """Let modules of the current folder be found, after all others."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
