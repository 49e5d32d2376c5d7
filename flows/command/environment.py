"""Settings of Prefect and of other libraries, set before these are imported; existing variables are kept."""

import os
from pathlib import Path

from flows.command.configuration import ConfigurationError


def prepare(home: Path | None = None) -> None:
    """Everything that a command sets: `set_prefect`, `make_home`, and no messages of libraries.

    Args:
        home: as for `set_prefect`.

    Raises:
        ConfigurationError: the folder of Prefect's state cannot be created.
    """
    set_prefect(home)
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",  # what it warns of is checked here, and refused in one line
        "TQDM_DISABLE": "1",  # progress is shown by the stages
    }.items():
        os.environ.setdefault(name, value)
    make_home()


def set_prefect(home: Path | None = None) -> None:
    """Keep Prefect's state in one folder, disable its telemetry, and give its server time to start.

    Args:
        home: parent of the folder `prefect`; `.opdscope` in the working folder if None. PREFECT_HOME takes precedence.
    """
    folder = (home or Path(".opdscope")) / "prefect"
    for name, value in {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_HOME": str(folder.resolve()),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str((folder / "results").resolve()),
        "PREFECT_SERVER_MEMO_STORE_PATH": str((folder / "memo_store.toml").resolve()),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks,flows",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command reports; the UI has all logs
    }.items():
        os.environ.setdefault(name, value)


def make_home() -> None:
    """Create the folder of Prefect's state.

    Raises:
        ConfigurationError: it cannot be created.
    """
    path = os.environ["PREFECT_HOME"]
    try:
        Path(path).mkdir(parents=True, exist_ok=True)  # SQLite needs it for its file
    except OSError as error:
        message = f"PREFECT_HOME: {path!r} cannot be created ({error.strerror}); set it to a folder that can"
        raise ConfigurationError(message) from error
