"""Templates of prompts: Jinja, of which only what puts texts in is allowed.

A configuration may come from a form or from somebody else, so templates are read as data: no calls, no attributes but
the columns of a row in a loop, no arithmetic, no filters that can make much of little. What is left is inserting,
comparing, choosing, and going once over a list.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas import limits
from schemas.config.base import invalid
from schemas.text import quoted, reason

_FILTERS = ("trim", "lower", "upper")
_COMPARISONS = ("eq", "ne", "in", "notin")
_ALLOWED = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.Getattr,
    nodes.If,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.Not,
    nodes.And,
    nodes.Or,
    nodes.For,
    nodes.Filter,
)
_HINT = "write {{ name }} for a column"

Values = Mapping[str, str | Sequence[Mapping[str, str]]]
"""Texts and lists by the names that templates have for them."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja without globals and tests, in which the attributes of a row are its columns and nothing else."""

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True)
        self.globals.clear()
        self.tests.clear()
        self.filters = {name: self.filters[name] for name in _FILTERS}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A column of a row."""
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return self.undefined(f"there is no column {attribute!r}")


_SANDBOX = _Sandbox()


class TooLongError(ValueError):
    """A rendered template would have more than `limits.MOST_PROMPT` characters."""


class Names(NamedTuple):
    """What a template names, in order of appearance, each once.

    Attributes:
        texts: texts that it inserts or compares.
        lists: lists that it goes over.
        columns: columns of their rows.
    """

    texts: list[str]
    lists: list[str]
    columns: list[str]


@lru_cache(maxsize=1024)
def names_in(template: str) -> Names:
    """What a template names.

    Raises:
        PydanticCustomError: it is no template, or does what templates may not. It is a ValueError.
    """
    tree = _parsed(template)
    texts, lists, columns = list[str](), list[str](), list[str]()
    rows: set[str] = set()
    placed: set[int] = set()  # names that are part of a loop or of a row's column
    looped = {id(inner) for loop in _every(tree) if isinstance(loop, nodes.For) for inner in _every(loop)}
    for node in _every(tree):
        _check_node(template, node)
        if isinstance(node, nodes.For):
            iterated, target = _loop_names(template, node)
            lists.append(iterated.name)
            rows.add(target.name)
            placed |= {id(iterated), id(target)}
        elif isinstance(node, nodes.Getattr):
            if not isinstance(node.node, nodes.Name) or node.node.name not in rows or id(node) not in looped:
                raise invalid("template", f"{quoted(template)} asks for .{node.attr} of a text; {_HINT}")
            columns.append(node.attr)
            placed.add(id(node.node))
        elif isinstance(node, nodes.Name) and id(node) not in placed:
            if node.name in rows or node.name in lists:
                raise invalid("template", f"{quoted(template)} inserts {node.name}, which is no text; name its columns")
            texts.append(node.name)
    if len(texts) + len(columns) > limits.MOST_FIELDS:
        many = len(texts) + len(columns)
        raise invalid("template", f"contains {many:,} fields; a template has at most {limits.MOST_FIELDS}")
    _check_compiles(template, tree)
    return Names(*(list(dict.fromkeys(found)) for found in (texts, lists, columns)))


def rendered(template: str, values: Values) -> str:
    """A template with its texts put in as they are.

    Raises:
        TooLongError: it is too long.
        ValueError: a name is missing.
    """
    parts, length = [], 0
    try:
        for part in _compiled(template).generate(values):
            length += len(part)
            if length > limits.MOST_PROMPT:
                raise TooLongError(f"would give a prompt of more than {limits.MOST_PROMPT:,} characters")
            parts.append(part)
    except TemplateError as error:
        raise ValueError(reason(error)) from error
    return "".join(parts)


@lru_cache(maxsize=1024)
def _compiled(template: str) -> Template:
    return _SANDBOX.from_string(template)


def _parsed(template: str) -> nodes.Template:
    try:
        return _SANDBOX.parse(template)
    except TemplateError as error:
        raise invalid(
            "template", f"{quoted(template)} is not a template: {reason(error).rstrip('.')}; {_HINT}"
        ) from error
    except RecursionError as error:
        raise invalid("template", f"{quoted(template)} is nested too deeply; {_HINT}") from error


def _check_compiles(template: str, tree: nodes.Template) -> None:
    try:
        _SANDBOX.compile(tree)
    except (RecursionError, SyntaxError) as error:
        raise invalid("template", f"{quoted(template)} is nested too deeply; {_HINT}") from error


def _every(tree: nodes.Node) -> Iterator[nodes.Node]:
    """All nodes in the order of the text, each before what is in it."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += reversed(list(node.iter_child_nodes()))


def _check_node(template: str, node: nodes.Node) -> None:
    """Refuse what a template may not contain."""
    if not isinstance(node, _ALLOWED):
        raise invalid("template", f"{quoted(template)} has {_kind(node)}, which a template may not; {_HINT}")
    if isinstance(node, nodes.Filter) and (node.name not in _FILTERS or node.args or node.kwargs):
        allowed = ", ".join(_FILTERS)
        raise invalid("template", f"{quoted(template)} has the filter {node.name}; allowed are {allowed}")
    if isinstance(node, nodes.Operand) and node.op not in _COMPARISONS:
        raise invalid("template", f"{quoted(template)} orders texts; compare by ==, !=, in or not in")
    if isinstance(node, nodes.Const) and not isinstance(node.value, str):
        raise invalid("template", f"{quoted(template)} has {node.value!r} in it, but all values are texts; quote it")


def _loop_names(template: str, loop: nodes.For) -> tuple[nodes.Name, nodes.Name]:
    """The list that a loop goes over, and what its rows are called; a loop in a loop is refused."""
    nested = sum(isinstance(inner, nodes.For) for inner in _every(loop)) > 1
    if not isinstance(loop.iter, nodes.Name) or not isinstance(loop.target, nodes.Name) or loop.test or nested:
        raise invalid("template", f"{quoted(template)} has a loop over something else than one named list")
    return loop.iter, loop.target


_KINDS = {
    "Call": "a call",
    "Getitem": "an index",
    "Add": "a sum",
    "Sub": "a difference",
    "Mul": "a product",
    "Neg": "a minus sign",
    "Concat": "texts joined by ~",
    "List": "a list",
    "Test": "a test (is ...)",
    "Assign": "an assignment (set)",
}


def _kind(node: nodes.Node) -> str:
    kind = type(node).__name__
    return _KINDS.get(kind, f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}")
