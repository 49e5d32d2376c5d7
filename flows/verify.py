"""What verifiers read in rollouts, and where two of them disagree."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, get_args

from schemas.arrays import Arrays
from schemas.config import PythonVerifier, RegexVerifier, RunConfig
from schemas.config import Verifier as VerifierUnion
from schemas.config.base import settings_in
from tasks.stages.protocol import Tokenizer
from tasks.verifiers.protocol import Attempt
from tasks.verifiers.verifier import Verifier, find_bad_answer


class Reading(NamedTuple):
    """What a verifier takes for the answer of an attempt, if it tells, and its verdict."""

    answer: str | None
    correct: bool


class Sample(NamedTuple):
    """A rollout.

    Attributes:
        readings: of each verifier, by kind; that of the run first.
    """

    question: str
    rollout: int
    attempt: Attempt
    readings: dict[str, Reading]

    @property
    def disputed(self) -> list[str]:
        """Verifiers whose verdict is not that of the run's."""
        first, *others = self.readings
        return [kind for kind in others if self.readings[kind].correct != self.readings[first].correct]


def verifiers(config: RunConfig, answers: Sequence[str]) -> dict[str, VerifierUnion]:
    """The run's verifier and, with their defaults, the others that can judge these answers, by kind."""
    found: dict[str, VerifierUnion] = {config.verifier.kind: config.verifier}
    for kind in settings_in(get_args(VerifierUnion)[0]):
        name = kind.model_fields["kind"].default
        if name in found or kind in (PythonVerifier, RegexVerifier):  # which are nothing by default
            continue
        marker = getattr(config.verifier, "marker", None)
        settings = kind.model_validate({"marker": marker} if "marker" in kind.model_fields and marker else {})
        if find_bad_answer(settings, answers) is None:  # type: ignore[arg-type]
            found[name] = settings  # type: ignore[assignment]
    return found


def attempts(tokenizer: Tokenizer, answer: str, rollouts: Arrays) -> list[Attempt]:
    """The rollouts of one question as a verifier gets them."""
    tokens = [rollouts["tokens"][a:b].tolist() for a, b in pairwise(rollouts["offsets"])]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [Attempt(text, answer, bool(cut)) for text, cut in zip(texts, rollouts["truncated"], strict=True)]


def samples(chosen: Mapping[str, VerifierUnion], of_questions: Mapping[str, Sequence[Attempt]]) -> list[Sample]:
    """Every attempt with what each verifier makes of it.

    Args:
        chosen: settings of verifiers by kind, that of the run first.
        of_questions: attempts by question.
    """
    flat = [attempt for of_question in of_questions.values() for attempt in of_question]
    readings: dict[str, list[Reading]] = {}
    for kind, settings in chosen.items():
        verifier = Verifier(settings)
        try:
            read, verdicts = verifier.read_all(flat), verifier.check_all(flat)
        finally:
            verifier.close()
        readings[kind] = [Reading(answer, correct) for answer, correct in zip(read, verdicts, strict=True)]
    places = [(question, i) for question, of_question in of_questions.items() for i in range(len(of_question))]
    return [
        Sample(question, rollout, attempt, {kind: of_kind[n] for kind, of_kind in readings.items()})
        for n, ((question, rollout), attempt) in enumerate(zip(places, flat, strict=True))
    ]
