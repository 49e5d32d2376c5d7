"""The reference of settings and columns in `schemas/README.md`, generated from the settings themselves.

python -m schemas.reference schemas/README.md     # writes it between its two markers
"""

import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from schemas.columns import Column
from schemas.config import Loss, RunConfig, is_cosmetic, loss_name, settings_in
from schemas.config.trainers import TRAINERS
from schemas.question_tables import COMPARISON
from schemas.tables import HISTORY, RANKS, RUN_TABLES
from schemas.training_tables import VALIDATION_TABLES

BEGIN = "<!-- reference: made by `python -m schemas.reference schemas/README.md` -->"
END = "<!-- end of reference -->"


def reference() -> str:
    """All settings, the losses of trainers, then the columns of all tables, as Markdown."""
    done: set[type[BaseModel]] = set()
    parts = [_section("(top level)", RunConfig)]
    queue = _children("", RunConfig)
    while queue:
        place, model = queue.pop(0)
        if model in done:
            continue
        done.add(model)
        parts.append(_section(place, model))
        queue += _children(f"{place.split(' ')[0]}.", model)
    parts.append(_trainers())
    tables = {**RUN_TABLES, "ranks": RANKS, **VALIDATION_TABLES, "history": HISTORY, "comparison": COMPARISON}
    return "\n".join([*parts, *(_columns(f"{name}.parquet", columns) for name, columns in tables.items())])


def _section(place: str, model: type[BaseModel]) -> str:
    document = " ".join((model.__doc__ or "").split())
    rows = [
        f"| `{name}` | {_type(field)} | {_default(field)} | {_escape(field.description or '')}"
        f"{' (cosmetic)' if is_cosmetic(field.json_schema_extra) else ''} |"
        for name, field in model.model_fields.items()
        if name != "kind" or len(get_args(field.annotation)) > 1
    ]
    table = ["| field | type | default | meaning |", "|---|---|---|---|", *rows] if rows else []
    return "\n".join([f"**`{place}`** {_escape(document)}", "", *table, ""])


def _trainers() -> str:
    adapter: TypeAdapter[Any] = TypeAdapter(Loss)
    rows = [
        f"| `{name}` | `{loss_name(adapter.validate_python(t.loss))}` | {_escape(t.source)} | {_escape(t.note)} |"
        for name, t in TRAINERS.items()
    ]
    head = "**`losses` by the name of a trainer**: what it computes by its defaults, as its source says"
    return "\n".join([head, "", "| name | stands for | source | note |", "|---|---|---|---|", *rows, ""])


def _columns(name: str, columns: dict[str, Column]) -> str:
    rows = [f"| `{column}` | {c.dtype} | {_escape(c.meaning)} |" for column, c in columns.items()]
    return "\n".join([f"**`{name}`**", "", "| column | type | meaning |", "|---|---|---|", *rows, ""])


def _children(prefix: str, model: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    out = []
    for name, field in model.model_fields.items():
        inner = settings_in(field.annotation)
        for member in inner:
            kind = member.model_fields.get("kind")
            suffix = f" (kind: {kind.default})" if kind is not None and kind.default != "none" else ""
            out.append((f"{prefix}{name}{suffix}", member))
    return out


def _type(field: FieldInfo) -> str:
    return _escape(_name(field.annotation))


def _name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _name(arguments[0])
    if origin is Literal:
        return ", ".join(str(a) for a in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys("null" if a is NoneType else _name(a) for a in arguments))
    if origin is list:
        return f"list of {_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "settings below"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true, false"}[annotation.__name__]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or (isinstance(value, list) and value and isinstance(value[0], BaseModel)):
        return "see below"
    return "null" if value is None or value is PydanticUndefined else f"`{_escape(str(value))}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def written_into(page: str) -> str:
    """The page with the reference between its markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(written_into(page.read_text()))
