"""The error of unusable input."""

from schemas.text import line


class InputError(ValueError):
    """Unusable input, in one line: the field, the value and what would be right."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {line(message)}")
        self._given = field, message

    def under(self, field: str, other: str) -> "InputError":
        """The same error where another field stands for a field, or for one that it is part of."""
        name, message = self._given
        inside = name == field or name.startswith(f"{field}.")
        return InputError(f"{other}{name.removeprefix(field)}", message) if inside else self

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str]]:
        """It passes between processes."""
        return InputError, self._given
