"""How unions of settings appear in the JSON schema that forms are generated from."""

from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema


@dataclass(frozen=True)
class ByKind:
    """Marks a union whose members are distinguished by `kind`, for forms generated from the JSON schema.

    Attributes:
        flat: one object with the kind as a choice and the fields of all kinds: for lists, whose items such forms
            cannot choose a member for, and for kinds without fields of their own. Otherwise a choice of members.
    """

    flat: bool = False

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        schema.pop("discriminator", None)
        if not self.flat:
            return {"anyOf" if name == "oneOf" else name: value for name, value in schema.items()}
        members = [handler.resolve_ref_schema(member) for member in schema.pop("oneOf")]
        kinds = [member["properties"]["kind"]["const"] for member in members]
        properties: dict[str, Any] = {"kind": {"title": "Kind", "type": "string", "enum": kinds}}
        for name in dict.fromkeys(name for member in members for name in member["properties"] if name != "kind"):
            having = {k: m["properties"][name] for k, m in zip(kinds, members, strict=True) if name in m["properties"]}
            first = {key: value for key, value in next(iter(having.values())).items() if key != "default"}
            if first.get("type") == "boolean":  # forms send an untouched switch as false, which other kinds refuse
                first = {**{key: value for key, value in first.items() if key != "type"}, "enum": [True, False]}
            if len(having) < len(kinds):
                first["description"] = f"{', '.join(having)}: {first.get('description', name)}"
            properties[name] = first
        required = [n for n in properties if n == "kind" or all(n in m.get("required", []) for m in members)]
        flat = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        return {**schema, **flat}
