"""Prefect's settings for runs of this project, set before Prefect is imported; what is set already stays."""

import os
from pathlib import Path

from flows.command.configuration import ConfigurationError


def prepare(home: Path | None = None) -> None:
    """Keep Prefect's state in one folder, its telemetry off, and give its server time to start.

    Args:
        home: the folder; `.opdscope/prefect` here where None. Nothing is moved if PREFECT_HOME is set.
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
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command tells; the UI has all logs
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",  # progress is shown by the stages
    }.items():
        os.environ.setdefault(name, value)
    place = os.environ["PREFECT_HOME"]
    try:
        Path(place).mkdir(parents=True, exist_ok=True)  # else SQLite cannot open its file there
    except OSError as error:
        message = f"PREFECT_HOME: {place!r} cannot be made ({error.strerror}); set it to a folder that can"
        raise ConfigurationError(message) from error
