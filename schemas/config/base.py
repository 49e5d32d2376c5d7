"""Base of all settings: values are immutable, unknown fields are errors; which values go into content keys."""

from collections.abc import Callable
from functools import partial
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationInfo, field_validator
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, to_jsonable_python

from schemas import limits
from schemas.text import quoted

COSMETIC: dict[str, Any] = {"cosmetic": True}


class Settings(BaseModel):
    """Base of all settings: unknown fields are errors, values are immutable.

    Attributes:
        implementation: `module:name` of the code that implements this kind of settings.
    """

    implementation: ClassVar[str]

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        str_max_length=limits.MOST_SETTING,
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema that forms are generated from: kinds are titled by name, and every default is included."""
        reference = handler(core)
        schema = handler.resolve_ref_schema(reference)
        kind = cls.model_fields.get("kind")
        if kind is not None and len(get_args(kind.annotation)) == 1:
            schema["title"] = kind.default
        for name, field in cls.model_fields.items():
            if field.default_factory is not None:
                default = field.get_default(call_default_factory=True, validated_data={})
                schema["properties"][name]["default"] = to_jsonable_python(default)
        return reference

    def __init_subclass__(cls, **options: Any) -> None:
        """Make the class's numeric fields accept only numbers; a union's `kind` may not have such a check."""
        super().__init_subclass__(**options)
        errors: dict[type, Literal["int_type", "float_type"]] = {int: "int_type", float: "float_type"}
        for kind, error in errors.items():
            names = [name for name, annotation in cls.__annotations__.items() if _plain_types(annotation) == {kind}]
            if names:
                check = field_validator(*names, mode="before")(partial(refuse_other, error))
                setattr(cls, f"_{error}_{cls.__name__}", check)

    def keyed(self) -> dict[str, Any]:
        """The settings that can change a number, as JSON values for content keys."""
        out: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if not is_cosmetic(field.json_schema_extra):
                out[name] = _keyed_value(getattr(self, name))
        return out


def settings_in(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes that a field's annotation names, through unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [member for argument in get_args(annotation) for member in settings_in(argument)]


def with_kinds(values: object) -> object:
    """Expand the short form of a list of settings: a text names a kind, with default values for the rest."""
    return [{"kind": v} if isinstance(v, str) else v for v in values] if isinstance(values, list) else values


def is_cosmetic(extra: object) -> bool:
    """True for the `json_schema_extra` of a field that cannot change a number."""
    return isinstance(extra, dict) and extra.get("cosmetic") is True


def _keyed_value(value: object) -> object:
    if isinstance(value, Settings):
        return value.keyed()
    if isinstance(value, list | tuple):
        return [_keyed_value(v) for v in value]
    return value


def refuse_other(error: Literal["int_type", "float_type"], value: object) -> object:
    """Refuse booleans and text, which pydantic would read as numbers: that may not be intended."""
    if isinstance(value, bool | str | bytes):
        raise PydanticKnownError(error)
    return value


def _plain_types(annotation: Any) -> set[Any]:
    """The types that a field's values may have, apart from null."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain_types(arguments[0])
    if origin in (Union, UnionType):
        return {kind for argument in arguments for kind in _plain_types(argument)} - {type(None)}
    return {annotation}


def invalid(field: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("opdscope", "{field}: {message}", {"field": field, "message": message})


def checked_text(problem: Callable[[str], str | None]) -> AfterValidator:
    """A validator of one text; `problem` says what is wrong with it, starting with a verb or as a full sentence."""

    def check(text: str, info: ValidationInfo) -> str:
        message = problem(text)
        if message is None:
            return text
        whole = message if message.startswith("the ") else f"{quoted(text)} {message}"
        raise invalid(str(info.field_name), whole)

    return AfterValidator(check)


def check_unique(field: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise invalid(field, f"{quoted(name)} appears twice; remove one or give each its own name")
