"""Templates of prompts: Jinja, of which only what puts texts in is allowed.

A configuration may come from a form or from somebody else, so templates are read as data: no calls, no attributes but
those of a row in a loop, no arithmetic, no filters that can make much of little. What is left is inserting, comparing,
choosing, and going once over a list.
"""

from collections.abc import Iterator, Mapping, Sequence

from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas import limits
from schemas.config.base import invalid
from schemas.text import quoted, reason

_FILTERS = ("trim", "length", "lower", "upper", "first", "last")
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


def _sandbox() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals.clear()
    environment.tests.clear()
    environment.filters = {name: environment.filters[name] for name in _FILTERS}
    return environment


_SANDBOX = _sandbox()


def template_fields(template: str) -> list[str]:
    """Names of the texts and lists that a template inserts, in order of appearance, each once.

    Raises:
        PydanticCustomError: it is no template, or does what templates may not. It is a ValueError.
    """
    tree = _parsed(template)
    found: list[str] = []
    inside: set[str] = set()
    for node in _every(tree):
        if not isinstance(node, _ALLOWED):
            raise invalid("template", f"{quoted(template)} has {_kind(node)}, which a template may not; {_HINT}")
        if isinstance(node, nodes.For):
            _check_loop(template, node, inside)
        if isinstance(node, nodes.Getattr) and not (isinstance(node.node, nodes.Name) and node.node.name in inside):
            raise invalid("template", f"{quoted(template)} asks for .{node.attr} of a text; {_HINT}")
        if isinstance(node, nodes.Filter) and (node.name not in _FILTERS or node.args or node.kwargs):
            raise invalid(
                "template", f"{quoted(template)} has the filter {node.name}; allowed are {', '.join(_FILTERS)}"
            )
        if isinstance(node, nodes.Name) and node.name not in inside:
            found.append(node.name)
    if len(found) > limits.MOST_FIELDS:
        raise invalid("template", f"contains {len(found):,} fields; a template has at most {limits.MOST_FIELDS}")
    return list(dict.fromkeys(found))


def loops_over(template: str) -> list[str]:
    """Names of the lists that a template goes over."""
    loops = _parsed(template).find_all(nodes.For)
    return list(dict.fromkeys(loop.iter.name for loop in loops if isinstance(loop.iter, nodes.Name)))


Values = Mapping[str, str | Sequence[Mapping[str, str]]]
"""Texts and lists by the names that templates have for them."""


class TooLongError(ValueError):
    """A rendered template would have more than `limits.MOST_PROMPT` characters."""


def rendered(template: str, values: Values) -> str:
    """A template with its texts put in as they are.

    Raises:
        TooLongError: it is too long.
        ValueError: a name is missing.
    """
    parts, length = [], 0
    try:
        for part in _SANDBOX.from_string(template).generate(values):
            length += len(part)
            if length > limits.MOST_PROMPT:
                raise TooLongError(f"would give a prompt of more than {limits.MOST_PROMPT:,} characters")
            parts.append(part)
    except TemplateError as error:
        raise ValueError(reason(error)) from error
    return "".join(parts)


def _parsed(template: str) -> nodes.Template:
    try:
        tree = _SANDBOX.parse(template)
        if not any(isinstance(node, nodes.Filter) for node in _every(tree)):
            _SANDBOX.compile(tree)
        return tree
    except TemplateError as error:
        raise invalid("template", f"{quoted(template)} is not a template: {reason(error)}; {_HINT}") from error
    except (RecursionError, SyntaxError) as error:
        raise invalid("template", f"{quoted(template)} is nested too deeply; {_HINT}") from error


def _every(tree: nodes.Node) -> Iterator[nodes.Node]:
    """All nodes in the order of the text, each before what is in it."""
    yield tree
    for child in tree.iter_child_nodes():
        yield from _every(child)


def _check_loop(template: str, loop: nodes.For, inside: set[str]) -> None:
    """Allow a loop over a named list, not in another loop; its name stands for a row from then on."""
    nested = any(True for _ in loop.find_all(nodes.For))
    if not isinstance(loop.iter, nodes.Name) or not isinstance(loop.target, nodes.Name) or loop.test or nested:
        raise invalid("template", f"{quoted(template)} has a loop over something else than one named list")
    inside.add(loop.target.name)


def _kind(node: nodes.Node) -> str:
    return {"Call": "a call", "Getitem": "an index", "Add": "a sum", "Mul": "a product"}.get(
        type(node).__name__, f"a {type(node).__name__}"
    )
