"""What one process knows of a run: questions, keys, store, and the models it has loaded."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from schemas.config import Context, Model, RunConfig, Teacher, is_local_folder
from tasks.engines.device import resolve_device
from tasks.engines.protocol import Engine, EngineError
from tasks.lineage import Lineage, QuestionKeys, sources
from tasks.prompts import PLAIN, check_same_tokenizer, encode_prompt, prompt_text
from tasks.questions import InputError, Question, load_questions
from tasks.store.artefact import Store, StoreError
from tasks.store.keys import Recipe
from tasks.verifiers.verifier import Verifier


class Job:
    """A checked configuration with everything its stages share. Models load when they are first asked for."""

    def __init__(self, config: RunConfig) -> None:
        """Check all that can be checked without loading a model.

        Raises:
            InputError: naming the field and the value.
        """
        self.config = config
        self.questions: dict[str, Question] = {q.id: q for q in load_questions(config)}
        try:
            self.store = Store(config.store)
            self.store.check_writable()
        except StoreError as error:
            raise InputError("store", f"{error}; give a folder or URL that can be written") from error
        try:
            resolve_device(config.engine.device)
        except EngineError as error:
            raise InputError("engine.device", str(error)) from error
        self._lineage = Lineage(config)
        self._check_model("student.path", config.student)
        for i, teacher in enumerate(config.teachers):
            if teacher.model is not None:
                field = f"teachers[{i}].model.path"
                self._check_model(field, teacher.model)
                theirs = self._lineage.tokenizer(teacher.model)
                check_same_tokenizer(field, teacher.model.path, self.tokenizer, theirs)
        self.keys: dict[str, QuestionKeys] = {}
        for question in self.questions.values():
            prompt = self.prompt_ids(question)
            if not prompt:
                raise InputError("prompt.template", f"{config.prompt.template!r} gives an empty prompt")
            shown = {s: self.teacher_prompt_ids(t, c, question) for s, (t, c) in sources(config).items()}
            self.keys[question.id] = self._lineage.keys(question, prompt, shown)
        self._engines: dict[Model, Engine] = {}

    def _check_model(self, field: str, model: Model) -> None:
        """Refuse a model that is neither here nor on the hub, or has no tokenizer; nothing of it is loaded."""
        looks_local = model.path.startswith((".", "/")) or model.path.count("/") > 1
        if looks_local and not is_local_folder(model.path):
            raise InputError(field, f"{model.path!r} is not there; give a model folder or a hub name")
        try:
            self._lineage.fingerprint(model)
        except ValueError as error:
            raise InputError(field, str(error)) from error

    @cached_property
    def verifier(self) -> Verifier:
        """The verifier of the run."""
        return Verifier(self.config.verifier)

    @cached_property
    def tokenizer(self) -> Any:
        """The student's tokenizer."""
        return self._lineage.tokenizer(self.config.student)

    @property
    def student(self) -> Engine:
        """The student."""
        return self.engine(self.config.student)

    def engine(self, model: Model) -> Engine:
        """A model, loaded; the student stays, of the teachers only the last one."""
        if model not in self._engines:
            from tasks.engines.transformers import load_transformers

            for other in [m for m in self._engines if m != self.config.student]:
                del self._engines[other]
            self._engines[model] = load_transformers(model, self.config.engine, self._lineage.tokenizer(model))
        return self._engines[model]

    @property
    def decoded(self) -> int:
        """Tokens that this process has sampled for this run."""
        student = self._engines.get(self.config.student)
        return student.decoded if student is not None else 0

    def is_student(self, teacher: Teacher) -> bool:
        """True where the teacher's model is the student, named or by content."""
        return teacher.model is None or (
            self._lineage.fingerprint(teacher.model) == self._lineage.fingerprint(self.config.student)
        )

    def prompt_ids(self, question: Question) -> list[int]:
        """The student's prompt."""
        return encode_prompt(self.tokenizer, prompt_text(self.config.prompt, PLAIN, question), self.config.prompt)

    def teacher_prompt_ids(self, teacher: Teacher, context: Context, question: Question) -> list[int]:
        """A teacher's prompt."""
        own = teacher.chat_template == "own" and teacher.model is not None
        tokenizer = self._lineage.tokenizer(teacher.model) if own and teacher.model is not None else self.tokenizer
        return encode_prompt(tokenizer, prompt_text(self.config.prompt, context, question), self.config.prompt)

    def recipe(self, key: str) -> Recipe:
        """What stands behind a key."""
        return self._lineage.recipes[key]

    def aggregate_key(self, ids: Sequence[str]) -> str:
        """Key of the tables over these questions."""
        return self._lineage.aggregate_key([self.keys[i] for i in ids])

    def close(self) -> None:
        """End worker processes."""
        self.verifier.close()


_jobs: dict[str, Job] = {}


def open_job(config: RunConfig) -> Job:
    """The job of a configuration; one process keeps the last one, until its flow ends.

    Raises:
        InputError: naming the field and the value.
    """
    key = config.model_dump_json()
    if key not in _jobs:
        forget_jobs()
        _jobs[key] = Job(config)
    return _jobs[key]


def forget_jobs() -> None:
    """Let the next `open_job` look at files and models anew; worker processes end."""
    while _jobs:
        _jobs.popitem()[1].close()
