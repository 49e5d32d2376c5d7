"""What is written agrees with what is there: reference, example configurations, rooms and their imports."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from flows.command.configuration import checked, read_configuration
from schemas.reference import reference, written_into
from tests.helpers.places import ROOT

MAY_IMPORT = {
    "schemas": {"schemas"},
    "tasks": {"schemas", "tasks"},
    "flows": {"schemas", "tasks", "flows"},
}
NOT_IN_SCHEMAS = {"torch", "transformers", "prefect", "vllm", "zarr"}
SHELLS = {
    "tasks/run/shells.py",
    "tasks/outputs/names.py",
    "tasks/outputs/tasks.py",
    "tasks/demo/models.py",
    "tasks/store/credentials.py",
}
PIPELINE = ["rollouts", "trees", "ideal", "distillation", "alignment", "aggregate"]


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def test_the_readmes_reference_is_that_of_the_settings() -> None:
    page = (ROOT / "README.md").read_text()
    assert written_into(page) == page, "run: python -m schemas.reference README.md"
    assert "`batch_tokens`" in reference() and "`alignment_low`" in reference()


@pytest.mark.parametrize("path", sorted((ROOT / "infra" / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_example_configurations_validate(path: Path) -> None:
    config = checked(read_configuration(path))
    assert config.name == path.stem


def test_rooms_import_what_they_may() -> None:
    for room, allowed in MAY_IMPORT.items():
        for path in sources(room):
            rooms = {name.split(".")[0] for name in imports(path)} & {"schemas", "tasks", "flows", "tests", "infra"}
            assert rooms <= allowed, path
    for path in sources("schemas"):
        assert not {name.split(".")[0] for name in imports(path)} & NOT_IN_SCHEMAS, path


def test_numerics_know_neither_prefect_nor_zarr() -> None:
    for path in sources("tasks"):
        packages = {name.split(".")[0] for name in imports(path)}
        place = path.relative_to(ROOT).as_posix()
        assert "prefect" not in packages or place in SHELLS, path
        assert "zarr" not in packages or place.startswith("tasks/store/"), path


def test_no_stage_imports_a_later_one() -> None:
    for i, stage in enumerate(PIPELINE):
        later = {f"tasks.stages.{name}" for name in PIPELINE[i + 1 :]}
        stages = ROOT / "tasks" / "stages"
        own = [p for p in sources("tasks/stages") if p.relative_to(stages).parts[0].removesuffix(".py") == stage]
        assert own
        for path in own:
            assert not {".".join(name.split(".")[:3]) for name in imports(path)} & later, path


def test_nothing_else_stands_at_the_top() -> None:
    known = {
        "opdscope.py",
        "schemas",
        "tasks",
        "flows",
        "infra",
        "tests",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "constraints.txt",
    }
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= known


def test_the_readme_is_finished_and_its_links_lead_somewhere() -> None:
    page = (ROOT / "README.md").read_text()
    assert "@@" not in page
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        assert target.startswith("https://") or (ROOT / target).exists(), target
