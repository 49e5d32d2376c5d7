"""GGUF files as models: what transformers needs of one, read from its header."""

import struct
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.text import reason
from tasks.engines.protocol import EngineError

if TYPE_CHECKING:
    import torch

_NEEDED = {
    "general.architecture": "it does not name its architecture",
    "tokenizer.ggml.tokens": "it has no tokenizer",
}
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_gguf(path: Path) -> None:
    """Refuse a file that transformers could not load, or would load as something else.

    Raises:
        EngineError: the message gives the file, and what to do.
    """
    if path.is_dir():
        raise EngineError(f"{str(path)!r} is a folder; give the GGUF file in it")
    if not path.is_file():
        raise EngineError(f"{str(path)!r} is not there; give a GGUF file on this machine")
    beside = [name for name in _TOKENIZERS if path.with_name(name).exists()]
    if beside:  # transformers would take it in place of the file's own
        raise EngineError(f"{str(path)!r} is beside another model's {beside[0]}; move it to a folder of its own")
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise EngineError(f"{str(path)!r} needs {package}: pip install -c constraints.txt -e '.[gguf]'")
    fields = _read(path).fields
    for name, problem in _NEEDED.items():
        if name not in fields:
            raise EngineError(f"{str(path)!r} cannot be used: {problem} ({name} is missing)")
    parts = fields.get("split.count")
    if parts is not None and int(parts.contents()) > 1:
        raise EngineError(
            f"{str(path)!r} is one of {parts.contents()} parts of a model; join them (gguf-split --merge)"
        )


def gguf_bytes(path: Path, dtype: "torch.dtype") -> int:
    """Bytes of a file's weights, expanded to a dtype."""
    return sum(int(tensor.n_elements) for tensor in _read(path).tensors) * dtype.itemsize


def _read(path: Path) -> Any:
    """The open file; its header takes seconds to read, so the last one is kept until it changes.

    Raises:
        EngineError: it is not a whole GGUF file.
    """
    try:
        return _reader(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise EngineError(f"{str(path)!r} cannot be read: {reason(error)}") from error


@lru_cache(maxsize=1)
def _reader(path: Path, changed: int) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, LookupError, struct.error) as error:
        raise EngineError(f"{str(path)!r} is not a whole GGUF file; download it again") from error
