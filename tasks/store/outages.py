"""The errors of remote file systems, told apart: a store that is away for now, and one that cannot be used as asked.

The libraries behind fsspec raise their own classes, few of which are an `OSError`. Which there are is looked up by name
among the modules that are loaded, so that none of the libraries is imported for it.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tasks.inputs.files import NotAFileError

LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, NotAFileError)
"""Errors that say what is the matter, and that waiting does not change."""

_PASSING = {
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
"""Base classes of what a server that is away, overloaded or cut off gives, by the module that defines them."""
_WRONG = {
    "azure.core.exceptions": ("AzureError",),
    "botocore.exceptions": ("BotoCoreError",),
    "google.auth.exceptions": ("GoogleAuthError",),
}
"""Base classes of the rest: no credentials, no region, parameters that are refused."""


class StoreError(RuntimeError):
    """The store cannot be used as asked."""


class StoreAwayError(OSError):
    """The store does not answer, or refuses for now: the same call may succeed later."""


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Errors of the file system behind a URL as this project's own; those in `LASTING` pass as they are.

    Raises:
        StoreAwayError: it may answer later.
        StoreError: it cannot be used as asked.
    """
    try:
        yield
    except LASTING:
        raise
    except _loaded(_PASSING) as error:
        if isinstance(error, ValueError):  # a URL of no host, an operation that there is none of
            raise StoreError(f"cannot use the store {url!r}: {one_line(error)}") from error
        raise StoreAwayError(f"the store {url!r} does not answer, or refuses for now ({one_line(error)})") from error
    except _loaded(_WRONG) as error:
        raise StoreError(f"cannot use the store {url!r}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """What an error says, or its name where it says nothing."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def _loaded(named: Mapping[str, tuple[str, ...]]) -> tuple[type[Exception], ...]:
    modules = ((sys.modules.get(module), names) for module, names in named.items())
    return tuple(getattr(module, name) for module, names in modules if module is not None for name in names)
