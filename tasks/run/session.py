"""The state of a run in one process: configuration, questions, keys, store, and the provider of its evidence."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from schemas.config import RecordedTree, RunConfig
from tasks.engines.choice import EngineChoice, choose
from tasks.engines.identity import ModelLibrary
from tasks.inputs.errors import InputError
from tasks.inputs.questions import load_questions
from tasks.inputs.recorded import read_recorded
from tasks.operations.errors import patiently
from tasks.operations.user_code import check_code
from tasks.run.keys import RunKeys
from tasks.run.models import LoadedModels
from tasks.run.preflight import ModelIdentities, check_models
from tasks.run.recorded import RecordedProvider
from tasks.stages.models import ModelProvider
from tasks.stages.protocol import Provider
from tasks.store.checkpoints import StoreCheckpoints
from tasks.store.credentials import use_block
from tasks.store.leases import LeaseManager
from tasks.store.store import Store, StoreError

Result = TypeVar("Result")


class RunSession(NamedTuple):
    """A checked configuration with the resources that its stages share.

    Attributes:
        provider: source of rollouts, trees and distillation gradients.
        leases: leases of this process on the work it does.
    """

    config: RunConfig
    store: Store
    keys: RunKeys
    provider: Provider
    leases: LeaseManager
    checkpoints: StoreCheckpoints

    def with_retries(self, action: Callable[[], Result]) -> Result:
        """The result of an action, retried after transient errors as the settings say."""
        return patiently(action, self.config.execution.retries, self.config.execution.retry_seconds)


def start_session(config: RunConfig) -> RunSession:
    """Check everything that can be checked without loading a model, and open the session.

    Raises:
        InputError: the message gives the field and the value.
    """
    if config.execution.storage_block is not None:
        use_block(config.execution.storage_block)
    make = _from_tables if isinstance(config.tree, RecordedTree) else _from_models
    return make(config)


def _from_tables(config: RunConfig) -> RunSession:
    tables = RecordedProvider(config, read_recorded(config.recorded_tree, config.recorded_teachers))
    store = _writable(config.store)
    keys = RunKeys(config, tables, tables.questions)
    return _session(config, store, keys, tables, StoreCheckpoints(store, keys, config))


def _from_models(config: RunConfig) -> RunSession:
    check_code(config)
    settings, _ = choose(config)
    config = config.model_copy(update={"engine": settings})
    engine, library = EngineChoice(settings), ModelLibrary()
    questions = {q.id: q for q in load_questions(config)}
    store = _writable(config.store)
    check_models(config, library)
    models = LoadedModels(config, library, engine, questions)
    identities = ModelIdentities(config, library, engine, models, questions)
    keys = RunKeys(config, identities, identities.with_rollouts())
    checkpoints = StoreCheckpoints(store, keys, config)
    return _session(config, store, keys, ModelProvider(models, config, checkpoints), checkpoints)


def _session(
    config: RunConfig, store: Store, keys: RunKeys, provider: Provider, checkpoints: StoreCheckpoints
) -> RunSession:
    return RunSession(config, store, keys, provider, LeaseManager(store, config.execution.lease), checkpoints)


def _writable(url: str) -> Store:
    try:
        store = Store(url)
        store.check_writable()
    except StoreError as error:
        raise InputError("store", f"{error}; give a writable folder or URL") from error
    return store


_sessions: dict[str, RunSession] = {}


def open_session(config: RunConfig) -> RunSession:
    """The session of a configuration; a process keeps the last one until its flow ends.

    Raises:
        InputError: the message gives the field and the value.
    """
    key = config.model_dump_json()
    if key not in _sessions:
        close_sessions()
        _sessions[key] = start_session(config)
    return _sessions[key]


def close_sessions() -> None:
    """End worker processes; the next `open_session` reads files and models again."""
    while _sessions:
        _sessions.popitem()[1].provider.close()
