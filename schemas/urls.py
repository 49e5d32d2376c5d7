"""Locations: a path or any fsspec URL, including chained ones (`simplecache::ftp://host/x`), without secrets."""

import re
import unicodedata
from urllib.parse import parse_qsl

CREDENTIALS = re.compile(
    r"sig|signature|token|jwt|key|.*[-_]?(signature|credential|token|secret|password|passwd|api[-_]?key|accessid|"
    r"access[-_]?key(id)?)|pass|pwd|pw|auth|authorization|sas",
    re.IGNORECASE,
)
"""Names of query parameters that carry a credential: those of signed URLs of S3, Google and Azure, and API keys."""

_WITHOUT_USERS = {"github"}
"""Protocols whose URLs have `organisation:repository@` where others have `user:password@`."""

_TOKENS = {"http", "https"}
"""Protocols where a user without a password is an access token."""

_USER = re.compile(r"([\w+.-]*)://([^/?#]*)@")
_LONG_PASSWORD = re.compile(r"([\w+.-]*)://([^/?#@:]*:(?!:|\d*[/?#])[^@]*)@")
"""A password may contain characters that end a host; the text before them is then not a port."""

_HINT = "put it in the environment, or for the store in the block that storage_block names"


def url_problem(url: str) -> str | None:
    """Why a text is not a path or URL that a configuration may contain; None where it is one."""
    if not url.strip():
        return "is empty; give a path or URL"
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in url):
        return "contains a control character or a lone surrogate"
    for scheme, user in (*_USER.findall(url), *_LONG_PASSWORD.findall(url)):
        if scheme.lower() not in _WITHOUT_USERS and (":" in user or scheme.lower() in _TOKENS):
            return f"the URL contains a password; {_HINT}"
    for part in url.split("::"):
        query = "&".join(re.split("[?#]", part)[1:]) if "://" in part else ""
        for name, _ in parse_qsl(query, keep_blank_values=True):
            if CREDENTIALS.fullmatch(name):
                return f"the URL is signed or contains a key ({name[:40]}); {_HINT}"
    return None


def store_of_run(folder: str) -> tuple[str, str] | None:
    """The store and the name of a run, from the path or URL of its folder, `STORE/runs/NAME`; None if it is none."""
    above, _, name = folder.rstrip("/").rpartition("/")
    store, _, runs = above.rpartition("/")
    if runs != "runs":
        return None
    return store or ("/" if above.startswith("/") else "."), name
