"""What all settings have in common: values are final, unknown fields are errors, and what goes into content keys."""

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
    """Base of all settings: unknown fields are errors, values are final.

    Attributes:
        implementation: `module:name` of what does as the settings of one kind say.
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
        """What forms are made from: kinds are called by their names, and every default is shown."""
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
        """Let the class's fields of numbers take nothing but numbers; a union's `kind` may have no such check."""
        super().__init_subclass__(**options)
        errors: dict[type, Literal["int_type", "float_type"]] = {int: "int_type", float: "float_type"}
        for kind, error in errors.items():
            names = [name for name, annotation in cls.__annotations__.items() if _plain_types(annotation) == {kind}]
            if names:
                check = field_validator(*names, mode="before")(partial(refuse_other, error))
                setattr(cls, f"_{error}_{cls.__name__}", check)

    def keyed(self) -> dict[str, Any]:
        """The settings that can change a number, as JSON values: what goes into content keys."""
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
    """The short form of a list of settings: a text names the kind, all else of it is the default."""
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
    """Refuse true, false and texts, which pydantic would read as numbers: they may not be meant so."""
    if isinstance(value, bool | str | bytes):
        raise PydanticKnownError(error)
    return value


def _plain_types(annotation: Any) -> set[Any]:
    """The types that a field's values may have, null aside."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain_types(arguments[0])
    if origin in (Union, UnionType):
        return {kind for argument in arguments for kind in _plain_types(argument)} - {type(None)}
    return {annotation}


def invalid(field: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("opdscope", "{field}: {message}", {"field": field, "message": message})


def checked_text(problem: Callable[[str], str | None]) -> AfterValidator:
    """A check of one text; `problem` says what is wrong with it, beginning with a verb or as a whole sentence."""

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
            raise invalid(field, f"{quoted(name)} stands there twice; give each one entry or its own name")
