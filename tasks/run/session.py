"""What one process knows of a run: questions, keys, store, and the models it has loaded."""

from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from schemas.config import Context, Model, RecordedTree, RunConfig, Teacher, is_local_folder
from tasks.engines.choice import EngineChoice
from tasks.engines.device import resolve_device
from tasks.engines.memory import check_size, fits
from tasks.engines.protocol import EngineError, Sampler
from tasks.inputs.prompts import PLAIN, check_same_tokenizer, encode_prompt, prompt_text
from tasks.inputs.questions import InputError, Question, load_questions
from tasks.inputs.recorded import RecordedQuestion, read_recorded
from tasks.run.keys import Lineage, QuestionKeys, Signal, Source, sources, taught
from tasks.store.credentials import use_block
from tasks.store.keys import Recipe
from tasks.store.leases import Claims
from tasks.store.store import Store, StoreError
from tasks.verifiers.verifier import Verifier

if TYPE_CHECKING:
    from tasks.engines.transformers import TransformersScorer


class Job:
    """A checked configuration with everything its stages share. Models load when they are first asked for."""

    def __init__(self, config: RunConfig) -> None:
        """Check all that can be checked without loading a model.

        Raises:
            InputError: naming the field and the value.
        """
        self.config = config
        if config.execution.storage_block is not None:
            use_block(config.execution.storage_block)
        self._scorers: dict[Model, TransformersScorer] = {}
        recorded = isinstance(config.tree, RecordedTree)
        self._engine = None if recorded else EngineChoice(config.engine)
        self._lineage = Lineage(config, self._engine.fingerprint if self._engine is not None else "")
        self.recorded: dict[str, RecordedQuestion] = {}
        if isinstance(config.tree, RecordedTree):
            self.recorded = read_recorded(config.tree, config.recorded_teachers)
            self.questions = {i: Question(i, "", {}) for i in self.recorded}
            rollouts = {i: self._lineage.recorded(r.digest) for i, r in self.recorded.items()}
            self.shown: dict[str, dict[Source, dict[str, object]]] = {
                i: {source: {"rows": r.teachers[source.teacher].digest} for source in sources(config)}
                for i, r in self.recorded.items()
            }
        else:
            self.questions = {q.id: q for q in load_questions(config)}
        self.store = _writable(config.store)
        if not self.recorded:
            self._check_models()
            rollouts, self.shown = {}, {}
            for question in self.questions.values():
                prompt = self.prompt_ids(question)
                if not prompt:
                    raise InputError("prompt.template", f"{config.prompt.template!r} gives an empty prompt")
                completion, whose = config.sampling.max_tokens, f"question {question.id!r}"
                self._engine_choice.check_draws("student.path", config.model, len(prompt), completion, whose)
                rollouts[question.id] = self._lineage.asked(question, prompt)
                self.shown[question.id] = {
                    source: self._lineage.shown(source, self._checked_prompt_ids(teacher, context, question))
                    for source, (teacher, context) in taught(config).items()
                }
        self._rollouts = rollouts
        self._left_out: frozenset[str] = frozenset()
        self.keys: dict[str, QuestionKeys] = self._lineage.keys(rollouts, self.shown)

    def leave_out(self, ids: Iterable[str]) -> None:
        """Questions that the run goes on without: what is made of all questions is then made of the others."""
        left_out = frozenset(ids)
        if left_out != self._left_out:
            self._left_out = left_out
            self.keys = self._lineage.keys(
                {i: key for i, key in self._rollouts.items() if i not in left_out}, self.shown
            )

    def _check_models(self) -> None:
        config = self.config
        try:
            resolve_device(config.engine.device)
        except EngineError as error:
            raise InputError("engine.device", str(error)) from error
        self._check_model("student.path", config.model)
        for i, teacher in enumerate(config.model_teachers):
            if teacher.model is not None:
                field = f"teachers[{i}].model.path"
                self._check_model(field, teacher.model)
                theirs = self._lineage.tokenizer(teacher.model)
                check_same_tokenizer(field, teacher.model.path, self.tokenizer, theirs)

    def _check_model(self, field: str, model: Model) -> None:
        """Refuse a model that is neither here nor on the hub, or has no tokenizer; nothing of it is loaded."""
        looks_local = model.path.startswith((".", "/")) or model.path.count("/") > 1
        if looks_local and not is_local_folder(model.path):
            raise InputError(field, f"{model.path!r} is not there; give a model folder or a hub name")
        try:
            check_size(model, resolve_device(self.config.engine.device))
            self._lineage.fingerprint(model)
        except (ValueError, EngineError) as error:
            raise InputError(field, str(error)) from error

    @cached_property
    def claims(self) -> Claims:
        """What this process works on, for others to see."""
        return Claims(self.store, self.config.execution.lease)

    @cached_property
    def verifier(self) -> Verifier:
        """The verifier of the run."""
        return Verifier(self.config.verifier)

    @cached_property
    def tokenizer(self) -> Any:
        """The student's tokenizer."""
        return self._lineage.tokenizer(self.config.model)

    @property
    def student(self) -> "TransformersScorer":
        """The student, for its distributions."""
        return self.scorer(self.config.model)

    @cached_property
    def sampler(self) -> Sampler:
        """The student, for draws."""
        return self._engine_choice.sampler(self.config.model, self.tokenizer, lambda: self.student)

    @property
    def _engine_choice(self) -> EngineChoice:
        if self._engine is None:
            raise ValueError("recorded outcomes have no engine")
        return self._engine

    def scorer(self, model: Model) -> "TransformersScorer":
        """A model, loaded; the student stays, of the teachers only the last one."""
        if model not in self._scorers:
            from tasks.engines.transformers import load_transformers, vocabulary_size

            for other in [m for m in self._scorers if m != self.config.student]:
                del self._scorers[other]
            vocabulary = vocabulary_size(self._lineage.tokenizer(model))
            room = partial(self._make_room, model)
            self._scorers[model] = load_transformers(model, self.config.engine, vocabulary, room)
        return self._scorers[model]

    def _make_room(self, model: Model) -> None:
        """Where memory does not hold a model beside what is there, that goes, and is loaded again when needed."""
        device = resolve_device(self.config.engine.device)
        if not fits(model, device) and "sampler" in self.__dict__:
            self.sampler.release()
        for other in [s for m, s in self._scorers.items() if m != model]:
            if not fits(model, device):
                other.unload()

    @property
    def decoded(self) -> int:
        """Tokens that this process has sampled for this run."""
        return self.sampler.decoded if "sampler" in self.__dict__ else 0

    def is_student(self, teacher: Teacher) -> bool:
        """True where the teacher's model is the student, named or by content."""
        return teacher.model is None or (
            self._lineage.fingerprint(teacher.model) == self._lineage.fingerprint(self.config.model)
        )

    def teacher_scorer(self, teacher: Teacher) -> "TransformersScorer":
        """The model of a teacher, loaded."""
        return self.student if self.is_student(teacher) else self.scorer(teacher.model or self.config.model)

    def prompt_ids(self, question: Question) -> list[int]:
        """The student's prompt."""
        return encode_prompt(self.tokenizer, prompt_text(self.config.prompt, PLAIN, question), self.config.prompt)

    def teacher_prompt_ids(self, teacher: Teacher, context: Context, question: Question) -> list[int]:
        """A teacher's prompt."""
        own = teacher.chat_template == "own" and teacher.model is not None
        tokenizer = self._lineage.tokenizer(teacher.model) if own and teacher.model is not None else self.tokenizer
        return encode_prompt(tokenizer, prompt_text(self.config.prompt, context, question), self.config.prompt)

    def _checked_prompt_ids(self, teacher: Teacher, context: Context, question: Question) -> list[int]:
        """A teacher's prompt, after which it can score completions.

        Raises:
            InputError: it cannot.
        """
        prompt, model = self.teacher_prompt_ids(teacher, context, question), teacher.model or self.config.model
        field = f"teachers[{self.config.model_teachers.index(teacher)}].model.path"
        whose = f"question {question.id!r}, teacher {teacher.name!r} with context {context.label!r}"
        self._engine_choice.check_length(field, model, len(prompt), self.config.sampling.max_tokens, whose)
        return prompt

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """Text of token ids, as the tokenizer or the recorded table has it."""
        distinct = sorted(set(ids))
        if self.recorded:
            return {token: self._recorded_texts.get(token, "" if token < 0 else f"#{token}") for token in distinct}
        texts = self.tokenizer.batch_decode([[t] for t in distinct]) if distinct else []  # of none it makes one
        return dict(zip(distinct, texts, strict=True))

    @cached_property
    def _recorded_texts(self) -> dict[int, str]:
        return {token: text for r in self.recorded.values() for token, text in r.texts.items()}

    def ranking_keys(self, question_id: str) -> dict[Signal, str]:
        """Keys of what a ranking reads of one question."""
        return self._lineage.ranking_keys(self.keys[question_id].rollouts, self.shown[question_id])

    def values_key(self, question_id: str) -> str:
        """Key of the values at the ends of a question's segments."""
        return self._lineage.values_key(self.keys[question_id].rollouts)

    def stage_keys(self, stage: str, question_id: str) -> dict[Signal | None, str]:
        """Keys of one stage of one question, by signal where there is one for each."""
        if stage == "values":
            return {None: self.values_key(question_id)}
        keys: Any = self.ranking_keys(question_id) if stage == "ranking" else getattr(self.keys[question_id], stage)
        return keys if isinstance(keys, dict) else {None: keys}

    def references(self, stages: Sequence[str]) -> list[tuple[str, str]]:
        """Every (stage, key) that a run of some stages may read or make."""
        found: list[tuple[str, str]] = []
        for i in self.keys:
            for stage in stages:
                found += [(stage, key) for key in self.stage_keys(stage, i).values()]
                found += [("rounds", key) for key in self.rounds_keys(stage, i)]
        return list(dict.fromkeys(found))

    def rounds_keys(self, stage: str, question_id: str) -> list[str]:
        """Under which a stage keeps its draws while it makes them; none where it draws nothing."""
        if self.recorded:
            return []
        match stage:
            case "rollouts":
                return [self.keys[question_id].rollouts]
            case "values":
                return [self.values_key(question_id)]
            case "trees":
                return [self.keys[question_id].rounds]
            case _:
                return []

    def recipe(self, key: str) -> Recipe:
        """What stands behind a key."""
        return self._lineage.recipes[key]

    def aggregate_key(self, ids: Sequence[str]) -> str:
        """Key of the tables over these questions."""
        return self._lineage.aggregate_key([self.keys[i] for i in ids])

    def close(self) -> None:
        """End worker processes, and what samples."""
        if "verifier" in self.__dict__:
            self.verifier.close()
        if "sampler" in self.__dict__:
            self.sampler.release()


def _writable(url: str) -> Store:
    try:
        store = Store(url)
        store.check_writable()
    except StoreError as error:
        raise InputError("store", f"{error}; give a folder or URL that can be written") from error
    return store


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
