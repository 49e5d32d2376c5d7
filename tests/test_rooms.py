"""What rooms may import, directly and through others."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.places import ROOT

NUMERICS = ("statistics", "stages", "calibration")
OUTSIDE = {"zarr", "prefect", "httpx", "huggingface_hub", "fsspec", "transformers", "psutil", "pebble"}


def module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def source(name: str) -> Path | None:
    """The file of a module of this project."""
    for path in (ROOT / f"{name.replace('.', '/')}.py", ROOT / name.replace(".", "/") / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def imports(name: str, everywhere: bool) -> frozenset[str]:
    """Modules that one imports: of this project by their whole names, of others by the package's.

    Args:
        everywhere: in functions too, and for type checking.
    """
    path = source(name)
    assert path is not None
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        for imported in names:
            if source(imported) is not None:
                found.add(imported)
            elif source(imported.split(".")[0]) is None and not (ROOT / imported.split(".")[0]).is_dir():
                found.add(imported.split(".")[0])
    return frozenset(found)


def way_to(name: str, wanted: set[str]) -> list[str] | None:
    """How a module reaches one of some packages; None where it does not."""
    waiting, seen = [[name]], {name}
    while waiting:
        way = waiting.pop(0)
        for imported in sorted(imports(way[-1], True)):
            if imported in wanted:
                return [*way, imported]
            if source(imported) is not None and imported not in seen:
                seen.add(imported)
                waiting.append([*way, imported])
    return None


@pytest.mark.parametrize("room", NUMERICS)
def test_numerics_reach_neither_store_nor_prefect_nor_network(room: str) -> None:
    modules = [module(path) for path in sorted((ROOT / "tasks" / room).rglob("*.py"))]
    assert len(modules) > 5
    for name in modules:
        assert way_to(name, OUTSIDE) is None


def test_the_way_to_a_package_is_found_through_others() -> None:
    assert (
        way_to("tasks.run.session", {"zarr"}) is not None and way_to("tasks.engines.vllm.server", {"httpx"}) is not None
    )


def test_no_modules_import_each_other_in_a_circle() -> None:
    done: set[str] = set()
    for path in sorted(p for room in ("schemas", "tasks", "flows") for p in (ROOT / room).rglob("*.py")):
        _descend(module(path), [], done)


def _descend(name: str, way: list[str], done: set[str]) -> None:
    assert name not in way, " imports ".join([*way[way.index(name) :], name])
    if name in done:
        return
    for imported in imports(name, False):
        if source(imported) is not None:
            _descend(imported, [*way, name], done)
    done.add(name)


def test_modules_and_functions_are_short() -> None:
    lengths: dict[str, int] = {}
    for path in (p for room in ("schemas", "tasks", "flows") for p in (ROOT / room).rglob("*.py")):
        lengths[module(path)] = len(path.read_text().splitlines())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, (path, node.name)
    assert max(lengths.values()) <= 300, max(lengths, key=lengths.__getitem__)
    assert sorted(lengths.values())[len(lengths) // 2] < 120
