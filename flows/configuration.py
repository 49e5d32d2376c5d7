"""Configuration files: read, overridden, and checked with one-line errors."""

import difflib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from schemas.config import Execution, RunConfig, settings_in


class ConfigurationError(ValueError):
    """A configuration that cannot be used; one line for each field that is wrong."""


def read_configuration(path: Path) -> dict[str, Any]:
    """The content of a YAML (or JSON) configuration.

    Raises:
        ConfigurationError: missing, not YAML, or not a mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"configuration: {str(path)!r} is not there; give a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"configuration: {str(path)!r} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"configuration: {str(path)!r} is not YAML: {reason}") from error
    if not isinstance(data, dict):
        raise ConfigurationError(f"configuration: {str(path)!r} holds {data!r}, not fields with values")
    return data


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """`a.b=c` assignments as nested fields; values are YAML.

    Raises:
        ConfigurationError: an assignment without = or with two meanings.
    """
    out: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not all(name.split(".")):
            raise ConfigurationError(f"--set: {assignment!r} is not of the form field.field=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        *parents, last = name.split(".")
        here = out
        for parent in parents:
            here = here.setdefault(parent, {})
            if not isinstance(here, dict):
                raise ConfigurationError(f"--set: {assignment!r} sets a field of {parent!r}, which is set itself")
        here[last] = value
    return out


def merged(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`base` with the nested fields of `overrides` in their places; items of lists go by index.

    Settings of another kind replace what stands there: their fields have nothing to do with each other.
    """
    out = dict(base)
    for name, value in overrides.items():
        here = out.get(name)
        if isinstance(value, dict) and isinstance(here, dict) and _same_kind(value, here):
            out[name] = merged(here, value)
        elif isinstance(value, dict) and isinstance(here, list) and all(k.isdigit() for k in value):
            items = merged({str(i): item for i, item in enumerate(here)}, value)
            out[name] = [items[k] for k in sorted(items, key=int)]
        else:
            out[name] = value
    return out


def _same_kind(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return "kind" not in a or "kind" not in b or a["kind"] == b["kind"]


def checked(data: dict[str, Any]) -> RunConfig:
    """A run's configuration.

    Raises:
        ConfigurationError: naming every field that is wrong, its value, and what would be right.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError("\n".join(explain(error, RunConfig))) from error


def check_ranked(config: RunConfig) -> None:
    """Refuse what cannot be ranked.

    Raises:
        ConfigurationError: there is no student, or only one rollout a question.
    """
    if config.student is None:
        raise ConfigurationError(
            "tree.kind: 'recorded', but a ranking is made from rollouts of a model; give questions and student"
        )
    if config.sampling.rollouts < 2:
        raise ConfigurationError(
            f"sampling.rollouts: {config.sampling.rollouts}, but a ranking needs two rollouts a question or more"
        )


def check_execution(execution: Execution) -> None:
    """Refuse to start on Ray, or under a limit on GPUs, without what that needs.

    Raises:
        ConfigurationError: a package, a Prefect server or the limit is missing.
    """
    on_ray, limit = execution.task_runner == "ray", execution.gpu_limit
    if not on_ray and limit is None:
        return
    if on_ray and find_spec("prefect_ray") is None:
        raise ConfigurationError(
            "execution.task_runner: 'ray', but prefect-ray is not installed: pip install 'opdscope[ray]'"
        )
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import get_current_settings

    if get_current_settings().api.url is None:
        field = "task_runner: 'ray'" if on_ray else f"gpu_limit: {limit!r}"
        raise ConfigurationError(
            f"execution.{field} needs a running Prefect server that all processes share; "
            "start `opdscope serve` and set PREFECT_API_URL"
        )
    if limit is not None:
        with get_client(sync_client=True) as client:
            try:
                client.read_global_concurrency_limit_by_name(limit)
            except ObjectNotFound as error:
                raise ConfigurationError(
                    f"execution.gpu_limit: {limit!r} is no global concurrency limit of the Prefect server; make it "
                    f"with `prefect gcl create {limit} --limit N`"
                ) from error


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each wrong field."""
    lines = []
    for detail in error.errors(include_url=False):
        place = ".".join(_place(model, detail["loc"]))
        context = detail.get("ctx", {})
        if detail["type"] == "opdscope":
            named = str(context["field"])
            if place.rpartition(".")[2] != named:  # a field's own validator names the field that the place ends in
                place = ".".join(part for part in (place, named) if part)
            lines.append(f"{place}: {context['message']}")
        elif detail["type"] == "extra_forbidden":
            known = sorted(_fields(model, detail["loc"][:-1]))
            close = difflib.get_close_matches(str(detail["loc"][-1]), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            lines.append(f"{place}: unknown field, given {detail['input']!r}; {hint}")
        elif detail["type"] == "missing":
            lines.append(f"{place}: missing; it has no default")
        else:
            message = detail["msg"].removeprefix("Value error, ")
            lines.append(f"{place}: {message[0].lower()}{message[1:]}, given {_short(detail['input'])}")
    return lines


def _place(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """A place in the configuration as the user writes it: without the kinds that pydantic tells unions apart by."""
    out: list[str] = []
    models = [model]
    for part in path:
        fields = [m.model_fields[part] for m in models if isinstance(part, str) and part in m.model_fields]
        kinds = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == part]
        if fields or not kinds:
            out.append(str(part))
        if fields:
            models = [inner for field in fields for inner in settings_in(field.annotation)]
        elif kinds:
            models = kinds
    return out


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fields(annotation: Any, path: tuple[int | str, ...]) -> set[str]:
    """Names of the fields at a place in the configuration."""
    models = settings_in(annotation)
    if not path:
        return {name for model in models for name in model.model_fields}
    head, rest = path[0], path[1:]
    inner = [m.model_fields[head].annotation for m in models if isinstance(head, str) and head in m.model_fields]
    if not inner:  # a list's index, or the kind that a union was told apart by
        kinds = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == head]
        return set().union(*(_fields(m, rest) for m in kinds or models))
    return set().union(*(_fields(a, rest) for a in inner))
