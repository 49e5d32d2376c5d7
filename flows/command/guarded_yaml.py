"""Reads untrusted YAML (or JSON) within limits: no text takes long to read, and none has a surprising meaning.

In plain YAML the last duplicate of a key wins, names that look like dates become dates, a few lines of aliases give
values of unbounded size, and text may contain unpaired surrogates. Here each is rejected with its line or read as text.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

from schemas.limits import MOST_CONFIGURATION_BYTES, MOST_CONFIGURATION_VALUES, MOST_DIGITS, MOST_NESTING
from schemas.text import quoted, reason


class RefusedError(ValueError):
    """A text that is not YAML or exceeds a limit; one line that says what is wrong and where."""


class _GuardError(RefusedError):
    """A limit is exceeded or a meaning is ambiguous, as opposed to a syntax error."""

    def __init__(self, message: str) -> None:
        super().__init__(f"cannot be used: {message}")


def parse(data: bytes | str) -> Any:
    """The values of a YAML or JSON document.

    Raises:
        RefusedError: too long, not UTF-8, not YAML, nested too deeply, with duplicate or non-text keys, with numbers
            of too many digits, or with aliases that expand to too much.
    """
    if len(data) > MOST_CONFIGURATION_BYTES:
        raise _GuardError(f"is longer than {MOST_CONFIGURATION_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        raise _GuardError(f"is not UTF-8 text: {reason(error)}") from error
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise RefusedError(f"is not YAML: {where}{reason(error.problem or str(error))}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _GuardError(
            f"line {line}: the character {quoted(chr(error.character))} is not allowed in YAML"
        ) from error


def parse_value(text: str) -> Any:
    """The value of an assignment: YAML, or text if it is a template or not valid YAML.

    Raises:
        RefusedError: a limit is exceeded or a meaning is ambiguous.
    """
    if text.startswith(("{{", "{%")) or (("{{" in text or "{%" in text) and text.strip()[0] not in "[{\"'"):
        return text
    try:
        return parse(text)
    except _GuardError:
        raise
    except RefusedError:
        return text


def _refused(mark: yaml.Mark, message: str) -> _GuardError:
    return _GuardError(f"line {mark.line + 1}: {message}")


_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Texts, numbers, true, false, null, lists and mappings with text keys, within limits.

    Words and numbers are those of YAML 1.2: yes, no, on, off, 2026-11-30 and 1:30 are texts, 1e-3 is a number.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - as its base class declares it
        first: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] in ("null", "merge", "value")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._total = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MOST_NESTING:
            raise _refused(event.start_mark, f"lists and mappings are nested more than {MOST_NESTING} levels deep")
        repeated = isinstance(event, yaml.AliasEvent)
        before = self._total
        node = super().compose_node(parent, index)
        self._depth -= 1
        if repeated and id(node) not in self._sizes:
            raise _refused(event.start_mark, f"alias {quoted(event.anchor)} refers to a value that contains it")
        self._total += self._sizes[id(node)] if repeated else 1
        self._sizes.setdefault(id(node), self._total - before)  # nodes live as long as this loader
        if self._total > MOST_CONFIGURATION_VALUES:
            raise _refused(event.start_mark, f"more than {MOST_CONFIGURATION_VALUES:,} values, repeated ones counted")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == _TAG + "merge":
                continue
            if key.tag != _TAG + "str":
                described = quoted(key.value) if isinstance(key, yaml.ScalarNode) else f"of kind {key.id}"
                raise _refused(key.start_mark, f"key {described} is not text; put it in quotes")
            if key.value in lines:
                raise _refused(key.start_mark, f"{quoted(key.value)} appears twice, also in line {lines[key.value]}")
            lines[key.value] = key.start_mark.line + 1
        return node

    def _text(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        if text.isprintable():
            return text
        try:  # JSON writes characters beyond U+FFFF as surrogate pairs
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError as error:
            raise _refused(node.start_mark, f"{quoted(text)} contains an unpaired surrogate") from error

    def _whole(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MOST_DIGITS:
            raise _refused(node.start_mark, f"{quoted(node.value)} has more than {MOST_DIGITS} digits")
        if _OCTAL.fullmatch(node.value):  # octal in YAML 1.1, decimal in YAML 1.2
            raise _refused(node.start_mark, f"{quoted(node.value)} starts with 0; remove the 0, or quote a text")
        return int(self._plain(node, "a whole number", self.construct_yaml_int))

    def _number(self, node: yaml.ScalarNode) -> float:
        return float(self._plain(node, "a number", self.construct_yaml_float))

    def _plain(self, node: yaml.ScalarNode, expected: str, read: Callable[[yaml.ScalarNode], Any]) -> Any:
        """A number without colons, which YAML 1.1 reads as base 60."""
        refused = _refused(node.start_mark, f"{quoted(node.value)} is not {expected}")
        if ":" in node.value:
            raise refused
        try:
            return read(node)
        except (ValueError, IndexError) as error:
            raise refused from error

    def _unknown(self, node: yaml.Node) -> Any:
        raise _refused(node.start_mark, f"tag {quoted(node.tag)} is not supported; remove it")


_OCTAL = re.compile(r"[-+]?0[0-9_]+")

for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?([0-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)", "-+0123456789"),
    ("float", r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
):
    _Loader.add_implicit_resolver(_TAG + _tag, re.compile(rf"(?:{_pattern})\Z"), list(_first))

for _tag, _constructor in (
    ("str", _Loader._text),
    ("value", _Loader._text),
    ("int", _Loader._whole),
    ("float", _Loader._number),
    *((name, _Loader._unknown) for name in ("timestamp", "binary", "omap", "pairs", "set")),
):
    _Loader.add_constructor(_TAG + _tag, _constructor)
_Loader.add_constructor(None, _Loader._unknown)
