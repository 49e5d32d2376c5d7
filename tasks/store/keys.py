"""Content keys: SHA-256 over canonical JSON of everything that can change a result."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from schemas.config import Model, is_local_folder
from schemas.text import quoted, reason


def canonical(value: object) -> str:
    """Canonical JSON: sorted keys, no white space, shortest round-trip floats, no NaN.

    Raises:
        ValueError: the value contains a NaN or an infinity.
        TypeError: it cannot be written as JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True)
class Recipe:
    """Everything that a key is computed from.

    Attributes:
        stage, version: the stage; its version is raised whenever its code gives different results.
        settings: every setting that can change a result.
        inputs: keys of the artefacts that the stage reads.
        fingerprints: of models, tokenizers, questions and, for data produced by an engine, the engine.
    """

    stage: str
    version: int
    settings: dict[str, object]
    inputs: list[str]
    fingerprints: dict[str, str]

    @cached_property
    def key(self) -> str:
        """SHA-256 over the canonical JSON of all fields."""
        return digest(asdict(self))


def engine_fingerprint(kind: str) -> str:
    """Name and library versions of the engine that computes draws and probabilities."""
    return f"{kind} {version('transformers')} torch {version('torch')}"


def installed_version(*names: str) -> str:
    """Version of the first of these distributions that is installed.

    Raises:
        PackageNotFoundError: none is installed.
    """
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise PackageNotFoundError(" or ".join(names))


def model_fingerprint(model: Model) -> str:
    """SHA-256 of the content of a model folder or GGUF file, or the commit that a hub name resolves to.

    Raises:
        ValueError: the path is neither a readable model folder or file nor a hub name that can be resolved.
    """
    if model.is_gguf:
        try:
            return f"gguf {installed_version('gguf')} {_file_digest(Path(model.path))}"  # which expands the weights
        except OSError as error:
            raise ValueError(f"{quoted(model.path)} cannot be read: {reason(error)}") from error
    if is_local_folder(model.path):
        folder = Path(model.path)
        try:
            if not (folder / "config.json").is_file():  # otherwise any folder, however large, would be read
                raise ValueError(f"{quoted(model.path)} has no config.json; give a model folder")
            return folder_fingerprint(folder)
        except OSError as error:
            raise ValueError(f"{quoted(model.path)} cannot be read: {reason(error)}") from error
    return f"hub:{model.path}@{_hub_commit(model)}"


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over relative names and contents of all files except hidden ones."""
    files = sorted(
        p for p in folder.rglob("*") if p.is_file() and not any(s.startswith(".") for s in p.relative_to(folder).parts)
    )
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_file_digest, files))
    return digest([[p.relative_to(folder).as_posix(), d] for p, d in zip(files, digests, strict=True)])


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hub_errors() -> tuple[type[Exception], ...]:
    """Errors of the hub client when the hub is unreachable, refuses, or does not know a name.

    They include the errors of the client's HTTP library, which is not the same one in all versions of the client.
    """
    from huggingface_hub import get_session
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, StrictDataclassError

    http = import_module(type(get_session()).__module__.partition(".")[0])
    return (HfHubHTTPError, OfflineModeIsEnabled, StrictDataclassError, http.HTTPError, OSError, ValueError)


def _hub_commit(model: Model) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache

    revision = model.revision or "main"
    cached: str | None = None
    try:
        found = try_to_load_from_cache(model.path, "config.json", revision=revision)
        cached = Path(found).parent.name if isinstance(found, str) else None
        return str(HfApi().model_info(model.path, revision=revision, timeout=10).sha)
    except hub_errors() as error:
        if cached is not None:
            return cached
        raise ValueError(
            f"{quoted(model.path)} is neither a local folder nor a reachable or cached hub model "
            f"({type(error).__name__}: {reason(error)}); give a model folder, or a hub name and network access"
        ) from error
