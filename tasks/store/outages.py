"""Classifies errors of remote file systems: a store that is unavailable for now, or cannot be used as requested.

The libraries behind fsspec raise their own classes, few of which derive from `OSError`. The classes are looked up by
name in the modules already loaded, so that no library is imported for this.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tasks.inputs.files import NotAFileError

LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, NotAFileError)
"""Specific errors that waiting does not fix."""

_TRANSIENT = {
    "builtins": ("OSError",),
    "aiohttp": ("ClientError",),
    "azure.core.exceptions": ("HttpResponseError", "ServiceRequestError", "ServiceResponseError"),
    "botocore.exceptions": (
        "ChecksumError",
        "ClientError",
        "ConnectionError",
        "CredentialRetrievalError",
        "HTTPClientError",
        "IncompleteReadError",
        "MetadataRetrievalError",
        "TokenRetrievalError",
    ),
    "botocore.parsers": ("ResponseParserError",),
    "gcsfs.retry": ("ChecksumError", "HttpError"),
    "google.api_core.exceptions": ("GoogleAPIError",),
    "google.auth.exceptions": ("RefreshError", "TransportError"),
    "http.client": ("HTTPException",),
    "httpx": ("HTTPError",),
    "paramiko.ssh_exception": ("SSHException",),
    "urllib3.exceptions": ("HTTPError",),
}
"""Base classes of errors from a server that is unreachable, overloaded or disconnected, by defining module."""
_PERMANENT = {
    "azure.core.exceptions": ("AzureError",),
    "botocore.exceptions": ("BotoCoreError",),
    "google.auth.exceptions": ("GoogleAuthError",),
}
"""Base classes of the remaining errors: no credentials, no region, refused parameters."""


class StoreError(RuntimeError):
    """The store cannot be used as requested."""


class StoreAwayError(OSError):
    """The store does not answer, or refuses for now: the same call may succeed later."""


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Translate errors of the file system behind a URL into this project's own; those in `LASTING` pass unchanged.

    Raises:
        StoreAwayError: the store may answer later.
        StoreError: it cannot be used as requested.
    """
    try:
        yield
    except LASTING:
        raise
    except _loaded(_TRANSIENT) as error:
        if isinstance(error, ValueError):  # a URL without a host, an unsupported operation
            raise StoreError(f"cannot use the store {url!r}: {one_line(error)}") from error
        raise StoreAwayError(f"the store {url!r} does not answer, or refuses for now ({one_line(error)})") from error
    except _loaded(_PERMANENT) as error:
        raise StoreError(f"cannot use the store {url!r}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The message of an error on one line, or its class name if it has none."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def _loaded(named: Mapping[str, tuple[str, ...]]) -> tuple[type[Exception], ...]:
    modules = ((sys.modules.get(module), names) for module, names in named.items())
    return tuple(getattr(module, name) for module, names in modules if module is not None for name in names)
