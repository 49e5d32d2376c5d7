"""Identity of a model, independent of its location: its tokenizer, and a fingerprint of its content."""

from typing import TYPE_CHECKING, Any

from schemas.config import Model, TeacherServer
from tasks.engines.translation import Translation
from tasks.inputs.prompts import load_tokenizer, tokenizer_fingerprint
from tasks.store.keys import digest, model_fingerprint

if TYPE_CHECKING:
    from tasks.engines.vllm.teacher import ServedTeacher


class ModelLibrary:
    """Tokenizers and fingerprints of models; each model is read once."""

    def __init__(self) -> None:
        self._fingerprints: dict[Model, str] = {}
        self._tokenizers: dict[Model, Any] = {}
        self._served: dict[TeacherServer, ServedTeacher] = {}
        self._translations: dict[tuple[Model, Model], Translation] = {}

    def tokenizer(self, model: Model) -> Any:
        """A model's tokenizer.

        Raises:
            ValueError: it has no tokenizer.
        """
        if model not in self._tokenizers:
            self._tokenizers[model] = load_tokenizer(model)
        return self._tokenizers[model]

    def translation(self, student: Model, teacher: Model) -> Translation:
        """Between the tokenizers of two models.

        Raises:
            ValueError: the teacher's does not tell enough.
        """
        if (student, teacher) not in self._translations:
            from tasks.engines.transformers.loading import stop_tokens

            own = self.tokenizer(student)
            ends = stop_tokens(student, own)
            self._translations[student, teacher] = Translation(own, self.tokenizer(teacher), ends)
        return self._translations[student, teacher]

    def served(self, server: TeacherServer, tokenizer: Any) -> "ServedTeacher":
        """A teacher on a server, which is asked once.

        Raises:
            EngineError: it cannot be used.
        """
        from tasks.engines.vllm.teacher import ServedTeacher

        if server not in self._served:
            self._served[server] = ServedTeacher(server, tokenizer)
        return self._served[server]

    def fingerprint(self, model: Model) -> str:
        """Digest of the content of model and tokenizer, and of the dtype the model runs in.

        Raises:
            ValueError: the model is not available.
        """
        if model not in self._fingerprints:
            content = model_fingerprint(model)
            self._fingerprints[model] = digest([content, tokenizer_fingerprint(self.tokenizer(model)), model.dtype])
        return self._fingerprints[model]
