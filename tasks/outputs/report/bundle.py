"""The page's JavaScript modules and styles, put together as readable text."""

import base64
import hashlib
import re
from importlib.resources import files

_ROOM = files("tasks.outputs.report") / "app"
_IMPORT = re.compile(r"^import \{([^}]*)\} from \"\./([a-z]+)\.js\";\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function |const |class )", re.MULTILINE)
FIRST = "main"
"""The module that the page starts with."""


def script() -> str:
    """All modules that `main.js` needs, each after those it imports, as one module.

    A page that is opened from a file can import nothing. So imports of the form `import {a, b} from "./c.js";` and the
    word `export` are left out; all modules share one scope, which is why no two may declare the same name.
    """
    return "\n".join(_without_modules(source) for source in modules().values())


def style() -> str:
    """The styles."""
    return (_ROOM / "style.css").read_text()


def allowed(text: str) -> str:
    """The text of an inline script or style, as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def modules() -> dict[str, str]:
    """The source of every module, by name, each after those it imports."""
    found: dict[str, str] = {}

    def visit(name: str) -> None:
        source = (_ROOM / f"{name}.js").read_text()
        for _, needed in _IMPORT.findall(source):
            if needed not in found:
                visit(needed)
        found[name] = source

    visit(FIRST)
    return found


def _without_modules(source: str) -> str:
    return _EXPORT.sub("", _IMPORT.sub("", source))
