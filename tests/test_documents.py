"""What is written agrees with what is there: READMEs, reference, example configurations, rooms and their imports."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from flows.command.configuration import checked, read_configuration
from flows.command.suite import checked_suite, read_suite
from schemas.reference import reference, written_into
from tests.helpers.places import ROOT

ROOMS = ("schemas", "tasks", "flows", "infra", "tests")
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
    "tasks/validation/outputs.py",
    "tasks/validation/shells.py",
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


def pages() -> list[str]:
    """Places of everything that is written for readers."""
    found = [*ROOT.glob("*.md"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.md"))]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def links(page: str) -> list[str]:
    """Where links and pictures of a page lead to."""
    return re.findall(r"\]\(([^)]+)\)", page)


def headings(page: str) -> set[str]:
    """The headings of a page, as links name them."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in found}


def test_the_readmes_reference_is_that_of_the_settings() -> None:
    page = (ROOT / "schemas" / "README.md").read_text()
    assert written_into(page) == page, "run: python -m schemas.reference schemas/README.md"
    assert "`batch_tokens`" in reference() and "`alignment_low`" in reference()


@pytest.mark.parametrize("path", sorted((ROOT / "infra" / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_example_configurations_validate(path: Path) -> None:
    if "runs" in read_configuration(path):
        assert checked_suite(read_suite(path)).name == path.stem
    else:
        assert checked(read_configuration(path)).name == path.stem


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
    known = {*ROOMS, "opdscope.py", "pyproject.toml", "README.md", "CHANGES.md", "LICENSE", "constraints.txt"}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= known


def test_the_readme_is_short_and_leads_to_every_other() -> None:
    page = (ROOT / "README.md").read_bytes()
    assert len(page) <= 16_000
    others = {place for place in pages() if place.endswith("README.md")} - {"README.md"}
    assert {f"{room}/README.md" for room in ROOMS} <= others
    assert others <= set(links(page.decode()))


@pytest.mark.parametrize("place", pages())
def test_a_page_is_finished_and_its_links_lead_somewhere(place: str) -> None:
    page = (ROOT / place).read_text()
    assert "@@" not in page
    for target in links(page):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        led = (ROOT / place).parent / file if file else ROOT / place
        assert led.exists(), target
        assert not heading or heading in headings(led.read_text()), target


@pytest.mark.parametrize("place", pages())
def test_what_a_page_names_is_there(place: str) -> None:
    page = (ROOT / place).read_text()
    for path in re.findall(r"\b(?:schemas|tasks|flows|infra|tests)/[\w./-]*\w", page):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ((?:schemas|tasks|flows|tests)\.[\w.]*\w)", page):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module


@pytest.mark.parametrize("room", ["schemas", "tasks", "flows"])
def test_a_rooms_picture_shows_all_its_modules(room: str) -> None:
    picture = (ROOT / room / "README.md").read_text().split("```")[1]
    modules = {path.name for path in sources(room)} - {"__init__.py"}
    assert set(re.findall(r"\w+\.py", picture)) == modules
    folders = {path.parent.name for path in sources(room) if path.parent != ROOT / room}
    assert {f"{folder}/" for folder in folders} == set(re.findall(r"^ *(\w+/)", picture, re.MULTILINE))
    house = (ROOT / "README.md").read_text().partition("## The house")[2].split("```")[1]
    assert folders <= set(re.findall(r"(\w+)/", house))
