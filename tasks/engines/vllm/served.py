"""Queries what the servers serve, before a run starts."""

import time
from dataclasses import dataclass

from schemas.config import VLLMServerEngine
from tasks.engines.protocol import EngineError
from tasks.engines.vllm import answers
from tasks.engines.vllm.bounds import NoAnswerError
from tasks.engines.vllm.connection import Connection, api_key

_LOOK_UP_SECONDS = 10.0


@dataclass(frozen=True)
class Served:
    """A server's own description: model name, longest sequence, vLLM version."""

    url: str
    model: str
    length: int
    version: str


def look_up(settings: VLLMServerEngine) -> list[Served]:
    """Ask every server what it serves.

    Raises:
        EngineError: one cannot be reached within 10 s, does not serve the model, or differs from the others.
    """
    key = api_key(settings.api_key_variable)
    found = []
    for url in settings.urls:
        with Connection(url, key) as connection:
            found.append(_served(connection, settings.model))
    for other in found[1:]:
        if (other.model, other.version) != (found[0].model, found[0].version):
            raise EngineError(
                f"{other.url} serves {other.model!r} with vLLM {other.version}, but {found[0].url} serves "
                f"{found[0].model!r} with vLLM {found[0].version}; give servers of one kind"
            )
    return found


def look_up_one(url: str, model: str | None, api_key_variable: str) -> Served:
    """Ask one server what it serves.

    Raises:
        EngineError: it cannot be reached within 10 s, or does not serve the model.
    """
    with Connection(url, api_key(api_key_variable)) as connection:
        return _served(connection, model)


def _served(connection: Connection, wanted: str | None) -> Served:
    end = time.monotonic() + _LOOK_UP_SECONDS
    try:
        models = connection.ask("/v1/models", seconds=_LOOK_UP_SECONDS)
        version = connection.ask("/version", seconds=end - time.monotonic())
    except NoAnswerError as error:
        raise EngineError(f"{connection.url} does not answer as a vLLM server ({error})") from error
    name, length = answers.model(models, wanted)
    return Served(connection.url, name, length, answers.version(version))
