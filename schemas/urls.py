"""Places: a path, or any fsspec URL, chained ones too (`simplecache::ftp://host/x`). None holds a secret."""

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
"""A password may hold the characters that end a host; what stands before them is then no port."""

_HINT = "put it in the environment, or for the store in the block that storage_block names"


def url_problem(url: str) -> str | None:
    """Why a text is no path or URL to be kept in a configuration; None where it is one."""
    if not url.strip():
        return "is empty; give a path or URL"
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in url):
        return "holds a control character or half of a character"
    for scheme, user in (*_USER.findall(url), *_LONG_PASSWORD.findall(url)):
        if scheme.lower() not in _WITHOUT_USERS and (":" in user or scheme.lower() in _TOKENS):
            return f"the URL holds a password; {_HINT}"
    for part in url.split("::"):
        query = "&".join(re.split("[?#]", part)[1:]) if "://" in part else ""
        for name, _ in parse_qsl(query, keep_blank_values=True):
            if CREDENTIALS.fullmatch(name):
                return f"the URL is signed or holds a key ({name[:40]}); {_HINT}"
    return None
