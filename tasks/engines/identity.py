"""What a model is, whatever its place: its tokenizer, and a fingerprint of all that it gives."""

from typing import Any

from schemas.config import Model
from tasks.inputs.prompts import load_tokenizer, tokenizer_fingerprint
from tasks.store.keys import digest, model_fingerprint


class ModelLibrary:
    """Tokenizers and fingerprints of models; each model is looked at once."""

    def __init__(self) -> None:
        self._fingerprints: dict[Model, str] = {}
        self._tokenizers: dict[Model, Any] = {}

    def tokenizer(self, model: Model) -> Any:
        """A model's tokenizer.

        Raises:
            ValueError: it has none.
        """
        if model not in self._tokenizers:
            self._tokenizers[model] = load_tokenizer(model)
        return self._tokenizers[model]

    def fingerprint(self, model: Model) -> str:
        """Content of model and tokenizer, with the dtype it is run in.

        Raises:
            ValueError: the model is not to be had.
        """
        if model not in self._fingerprints:
            content = model_fingerprint(model)
            self._fingerprints[model] = digest([content, tokenizer_fingerprint(self.tokenizer(model)), model.dtype])
        return self._fingerprints[model]
