"""Configuration files: reading, overriding, and checking with one-line errors."""

import difflib
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flows.command.guarded_yaml import RefusedError, parse, parse_value
from schemas.config import Execution, RolloutTable, RunConfig, settings_in
from schemas.config.trainers import TRAINERS
from schemas.limits import MOST_CONFIGURATION_BYTES, MOST_ERRORS, MOST_NESTING
from schemas.signals import ranked_signals, unranked_losses
from schemas.text import listed, quoted, reason, visible
from tasks.inputs.files import read_file


class ConfigurationError(ValueError):
    """An invalid configuration; one line per wrong field."""


def read_configuration(path: Path) -> dict[str, Any]:
    """The content of a YAML (or JSON) configuration.

    Raises:
        ConfigurationError: missing, rejected by `flows.command.guarded_yaml`, or not a mapping.
    """
    try:
        data = parse(read_file(path, MOST_CONFIGURATION_BYTES + 1))
    except FileNotFoundError:
        raise ConfigurationError(f"configuration: {quoted(str(path))} does not exist; give a YAML file") from None
    except RefusedError as error:
        raise ConfigurationError(f"configuration: {quoted(str(path))} {error}") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"configuration: {quoted(str(path))} cannot be read: {reason(error)}") from error
    if not isinstance(data, dict):
        raise ConfigurationError(f"configuration: {quoted(str(path))} contains {quoted(data)}, not a mapping of fields")
    return data


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """`a.b=c` assignments as nested fields; values are YAML, or text if they are not valid YAML.

    Raises:
        ConfigurationError: an assignment that lacks = or conflicts with another, or a value that exceeds a limit.
    """
    out: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        *parents, last = name.split(".")
        if not equals or not all((*parents, last)) or len(parents) >= MOST_NESTING:
            raise ConfigurationError(f"--set: {quoted(assignment)} is not of the form field.field=value")
        try:
            value = parse_value(text)
        except RefusedError as error:
            raise ConfigurationError(f"--set: {quoted(assignment)} {error}") from error
        fields = out
        for parent in parents:
            fields = fields.setdefault(parent, {})
            if not isinstance(fields, dict):
                raise ConfigurationError(
                    f"--set: {quoted(assignment)} sets a field of {quoted(parent)}, which is already set as a whole"
                )
        fields[last] = value
    return out


def merged(base: dict[str, Any], overrides: dict[str, Any], place: tuple[str, ...] = ()) -> dict[str, Any]:
    """`base` updated with the nested fields of `overrides`; items of lists are addressed by index.

    Settings of another kind replace the existing ones entirely, as their fields are unrelated.

    Args:
        place: path of `base` in the configuration, for errors.

    Raises:
        ConfigurationError: an index beyond the end of a list.
    """
    out = dict(base)
    for name, value in overrides.items():
        old, inner = out.get(name), (*place, name)
        if isinstance(value, dict) and isinstance(old, dict) and _same_kind(value, old):
            out[name] = merged(old, value, inner)
        elif isinstance(value, dict) and isinstance(old, list) and value and all(map(_INDEX.fullmatch, value)):
            items = {str(i): item for i, item in enumerate(old)}
            past = next((index for index in value if index not in items), None)
            if past is not None:
                raise ConfigurationError(_past_the_end(".".join(map(_part, inner)), len(old), past))
            out[name] = list(merged(items, value, inner).values())
        else:
            out[name] = value
    return out


_INDEX = re.compile(r"[0-9]+")


def _past_the_end(place: str, entries: int, index: str) -> str:
    has = f"has {entries} entries, from 0 to {entries - 1}" if entries else "has no entries"
    return f"--set: {place} {has}, but no entry {_part(index)}; give the whole list to add one"


def _same_kind(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return "kind" not in a or "kind" not in b or a["kind"] == b["kind"]


def checked(data: dict[str, Any]) -> RunConfig:
    """A run's validated configuration.

    Raises:
        ConfigurationError: names each wrong field, its value, and what would be right.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError("\n".join(explain(error, RunConfig))) from error


def check_ranked(config: RunConfig) -> None:
    """Reject a configuration that cannot be ranked.

    Raises:
        ConfigurationError: no student, only one rollout per question, or no loss that does without draws.
    """
    if config.student is None:
        raise ConfigurationError(
            "tree.kind: 'recorded', but a ranking needs rollouts of a model; give questions and student"
        )
    if config.sampling.rollouts < 2 and not isinstance(config.rollouts, RolloutTable):
        raise ConfigurationError(
            f"sampling.rollouts: {config.sampling.rollouts}, but a ranking needs at least two rollouts per question"
        )
    if not ranked_signals(config):
        raise ConfigurationError(
            f"losses: {listed(unranked_losses(config))}, but a ranking has no draws for these; add reverse_kl, or such"
        )


def check_execution(execution: Execution) -> None:
    """Reject Ray or a GPU limit if their requirements are not met.

    Raises:
        ConfigurationError: a package, a Prefect server or the limit is missing.
    """
    on_ray, limit = execution.task_runner == "ray", execution.gpu_limit
    if not on_ray and limit is None:
        return
    if on_ray and find_spec("prefect_ray") is None:
        raise ConfigurationError(
            "execution.task_runner: 'ray', but prefect-ray is not installed: pip install -c constraints.txt -e '.[ray]'"
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
                    f"execution.gpu_limit: {limit!r} is not a global concurrency limit of the Prefect server; create "
                    f"it with `prefect gcl create {limit} --limit N`"
                ) from error


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per wrong field, for the first 20; given values are shortened, and secrets removed."""
    details = error.errors(include_url=False)
    lines = [visible(_line(detail, model)) for detail in details[:MOST_ERRORS]]
    rest = len(details) - len(lines)
    return [*lines, *([f"and {rest:,} more wrong fields"] if rest else [])]


def _line(detail: ErrorDetails, model: type[BaseModel]) -> str:
    place = ".".join(_place(model, detail["loc"]))
    context = detail.get("ctx", {})
    if detail["type"] == "opdscope":
        named = str(context["field"])
        if place.rpartition(".")[2] != named:  # a field's own validator names the last part of the place
            place = ".".join(part for part in (place, named) if part)
        return f"{place}: {context['message']}"
    if detail["type"] == "extra_forbidden":
        known = sorted(_fields(model, detail["loc"][:-1]))
        wrong = _part(detail["loc"][-1])
        close = [] if wrong in known else difflib.get_close_matches(wrong, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"known are {listed(known)}"
        return f"{place}: unknown field, given {quoted(detail['input'])}; {hint}"
    if detail["type"] == "missing":
        return f"{place}: missing; it has no default"
    if detail["type"] == "union_tag_invalid":
        known = [tag.strip("' ") for tag in str(context["expected_tags"]).split(",")]
        known += TRAINERS if place.startswith("losses") and ".of" not in place else []
        close = difflib.get_close_matches(str(context["tag"]), known, 1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        return f"{place}: kind {quoted(context['tag'])} is not known; {hint}"
    if detail["type"] == "union_tag_not_found":
        return f"{place}: given {quoted(detail['input'])} without its kind; add kind, such as {{kind: ...}}"
    message = detail["msg"].removeprefix("Value error, ")
    given = quoted(detail["input"]) if detail["input"] is not None else "null (nothing, null or ~ in YAML)"
    return f"{place}: {message[0].lower()}{message[1:]}, given {given}"


def _place(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """A path in the configuration as the user writes it: without the kinds by which pydantic discriminates unions."""
    out: list[str] = []
    models = [model]
    for part in path:
        kinds = _of_kind(models, part)
        fields = (
            [] if kinds else [m.model_fields[part] for m in models if isinstance(part, str) and part in m.model_fields]
        )
        if not kinds:
            out.append(_part(part))
        if fields:
            models = [inner for field in fields for inner in settings_in(field.annotation)]
        elif kinds:
            models = kinds
    return out


def _of_kind(models: list[type[BaseModel]], part: int | str) -> list[type[BaseModel]]:
    """The member of a union that this part of a path discriminates; none if the part is a field or an index."""
    kinds = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == part]
    return kinds if len(models) > 1 else []


def _part(part: int | str) -> str:
    """One part of a path, shortened: it may be arbitrary text from a file."""
    text = str(part)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fields(annotation: Any, path: tuple[int | str, ...]) -> set[str]:
    """Names of the fields at a path in the configuration."""
    return _fields_of(settings_in(annotation), path)


def _fields_of(models: list[type[BaseModel]], path: tuple[int | str, ...]) -> set[str]:
    if not path:
        return {name for model in models for name in model.model_fields}
    head, rest = path[0], path[1:]
    kinds = _of_kind(models, head)
    inner = [m.model_fields[head].annotation for m in models if isinstance(head, str) and head in m.model_fields]
    if kinds or not inner:  # a union's discriminating kind, or a list's index
        return _fields_of(kinds or models, rest)
    return {name for annotation in inner for name in _fields(annotation, rest)}
