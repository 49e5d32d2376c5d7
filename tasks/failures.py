"""What kind a failure is: one that may pass, one of the whole run, or one of a single question."""

from tasks.engines.protocol import EngineAwayError, EngineError
from tasks.questions import InputError
from tasks.store.artefact import StoreError

_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_OF_RUN = (EngineError, InputError, StoreError, OSError, MemoryError)


def may_pass(error: BaseException) -> bool:
    """True for what may go away without a change to the run: a full disk, a store or a server out of reach."""
    if isinstance(error, EngineAwayError):
        return True
    return isinstance(error, OSError) and not isinstance(error, _LASTING)


def of_run(error: BaseException) -> bool:
    """True for what would meet every question alike; anything else is one question's own."""
    return isinstance(error, _OF_RUN)
