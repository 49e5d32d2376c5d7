"""The exact oracle (statistics of section 8) as an engine: chains in the place of language models, token by token."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from schemas.arrays import AnyArray, Arrays
from schemas.config import (
    ForcedTree,
    ForwardKL,
    Model,
    Questions,
    ReverseKL,
    RunConfig,
    Sampling,
    Scores,
    Settings,
    Teacher,
)
from schemas.config.run import REWARD
from schemas.config.success import Success
from schemas.pipeline import diagnosis_stages
from schemas.signals import Signal, Source
from tasks.calibration.chain import Chain, exact_scores
from tasks.engines.protocol import Capacity, Completed, Continuation, Draw, Trunk
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.compute import Computed
from tasks.stages.rollouts import make_rollouts
from tasks.stages.trees.stage import make_tree
from tasks.stages.without_models import WithoutModels
from tasks.statistics.prior import Prior
from tasks.statistics.streams import uniforms
from tasks.verifiers.verifier import Verifier
from tests.helpers.drawing import NoCheckpoints

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PROMPT = [0]
QUESTION = "oracle"


def random_chain(
    seed: int, *, length: int, states: int = 6, vocabulary: int = 10, kinds: int = 3, sharpness: float = 2.0
) -> Chain:
    """A chain with peaked distributions and success probabilities from 0 to 1."""
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.standard_normal((kinds, states, vocabulary))
    step = np.exp(logits - logits.max(axis=2, keepdims=True))
    return Chain(
        np.arange(length) % kinds,
        step / step.sum(axis=2, keepdims=True),
        np.broadcast_to(rng.integers(states, size=(states, vocabulary)), logits.shape),
        rng.permutation(np.linspace(0.02, 0.98, states)),
    )


def teacher_of(chain: Chain, seed: int, strength: float, noise: float) -> Chain:
    """A teacher that leans towards success by `strength`, and elsewhere by `noise`."""
    rng = np.random.default_rng(seed)
    lean = strength * chain.success[chain.follow] + noise * rng.standard_normal(chain.step.shape)
    step = chain.step * np.exp(lean)
    return Chain(chain.kinds, step / step.sum(axis=2, keepdims=True), chain.follow, chain.success)


class OracleEngine:
    """A chain as `Sampler` and `Scorer`: hidden states are (depth, state), probabilities are rows of the tables."""

    longest = None

    def __init__(self, chain: Chain) -> None:
        self.chain, self.vocabulary, self.decoded = chain, chain.tokens, 0
        self._rows = chain.rows[chain.kind_at]

    def continue_prefixes(
        self, trunks: Sequence[Trunk], draws: Sequence[Draw], temperature: float
    ) -> list[Continuation]:
        """Samples by inverse CDF, as the real engines do."""
        chain = self.chain
        rows = self._rows ** (1 / temperature)
        cdf = np.cumsum(rows / rows.sum(axis=-1, keepdims=True), axis=-1)
        before = [chain.states([*t.completion, chain.passes]) for t in trunks]
        depth = np.array([d.depth for d in draws])
        state = np.array([before[d.trunk][d.depth] for d in draws])
        done = np.array([d.token is not None and d.token >= chain.tokens - 2 for d in draws])
        for i, d in enumerate(draws):
            if d.token is not None:
                state[i] = state[i] if done[i] else chain.follow[chain.kinds[depth[i]], state[i], d.token]
                depth[i] += 1
        seeds = np.array([d.seed for d in draws], dtype=np.uint64)
        out: list[list[int]] = [[] for _ in draws]
        step = 0
        while not done.all():
            rows_now = cdf[np.minimum(depth, chain.length), state]
            token = (rows_now <= uniforms(seeds, step)[:, None]).sum(axis=1).clip(max=chain.tokens - 1)
            for i in np.flatnonzero(~done):
                out[i].append(int(token[i]))
            self.decoded += int((~done).sum())
            ended = token >= chain.tokens - 2
            kind = chain.kinds[np.minimum(depth, chain.length - 1)]
            state = np.where(done | ended, state, chain.follow[kind, state, np.minimum(token, chain.tokens - 3)])
            depth, done, step = depth + ~done, done | ended, step + 1
        return [Continuation(np.array(t, dtype=np.int32), False) for t in out]

    capacity = Capacity(1, 0)

    def release(self) -> None:
        """Nothing is held."""

    def hidden(self, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """(depth, state) before each completion token; what follows `PROMPT` is the start of a completion."""
        before = list(prompt[len(PROMPT) :])
        places = [list(enumerate(self.chain.states([*before, *completion]))) for completion in completions]
        return [torch.tensor(of_all[len(before) :]) for of_all in places]

    def hidden_each(self, sequences: Sequence[Completed]) -> list[torch.Tensor]:
        return [self.hidden(prompt, [tokens])[0] for prompt, tokens in sequences]

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """Rows of the tables."""
        return torch.from_numpy(self._rows[hidden[:, 0].numpy(), hidden[:, 1].numpy()]).log()


class IdTokenizer:
    """Text of token ids: the ids."""

    def batch_decode(self, ids: Sequence[Sequence[int]], **_: object) -> list[str]:
        return [" ".join(str(int(i)) for i in row) for row in ids]


class OracleModels:
    """Chains as a run's models: an implementation of `tasks.stages.protocol.Models`."""

    tokenizer = IdTokenizer()

    def __init__(self, chain: Chain, config: RunConfig, teachers: Mapping[str, Chain] | None = None) -> None:
        self.config, self.student = config, OracleEngine(chain)
        self.sampler = self.student
        self.verifier = Verifier(config.verifier)
        self._teachers = {name: OracleEngine(teacher) for name, teacher in (teachers or {}).items()}

    @property
    def decoded(self) -> int:
        return self.student.decoded

    def prompt(self, question: str) -> list[int]:
        return PROMPT

    def given_rollouts(self, question: str) -> None:
        return None

    def answer(self, question: str) -> str:
        return str(self.student.chain.passes)

    def together(self, sources: Sequence[Source]) -> list[list[Source]]:
        return [list(sources)]

    def teacher(self, source: Source) -> OracleEngine:
        return self._teachers[source.teacher]

    def teacher_prompts(
        self, source: Source, question: str, rollouts: Arrays, texts: Arrays | None = None
    ) -> tuple[list[int], list[list[int]]]:
        return PROMPT, []

    def served_view(self, source: Source, prompt: Any, by_rollout: Any) -> None:
        return None

    def translation(self, source: Source) -> None:
        return None

    def writer(self, source: Source) -> "OracleEngine":
        return self.sampler

    def writer_tokenizer(self, source: Source) -> Any:
        return self.tokenizer

    def writer_prompts(self, source: Source, question: str, rollouts: Arrays) -> list[list[int]]:
        return [PROMPT]

    @property
    def differentiable(self) -> Any:
        raise NotImplementedError("a chain has no parameters")

    def answerer(self, source: Source) -> OracleEngine:
        return self._teachers[source.teacher]

    def answer_tokenizer(self, source: Source) -> Any:
        return self.tokenizer

    def as_students(self, source: Source, tokens: Sequence[int]) -> list[int]:
        return list(tokens)

    def close(self) -> None:
        self.verifier.close()


class Given(NamedTuple):
    """What a test has made already of one question."""

    rollouts: Arrays
    tree: Arrays
    distillation: Mapping[Signal, Arrays]


class GivenProvider(WithoutModels):
    """Evidence that is there already, by question: a `tasks.stages.protocol.Provider`."""

    decoded = 0

    def __init__(self, given: Mapping[str, Given]) -> None:
        self._given = given

    def rollouts(self, question: str) -> Arrays:
        return self._given[question].rollouts

    def tree(self, question: str, rollouts: Arrays) -> Arrays:
        return self._given[question].tree

    def distillation(
        self,
        question: str,
        losses: Mapping[Source, Mapping[str, Settings]],
        rollouts: Arrays,
        tree: Arrays,
        texts: Mapping[Source, Arrays],
    ) -> Mapping[Signal, Arrays]:
        wanted = [Signal(*source, name) for source, of_source in losses.items() for name in of_source]
        return {signal: self._given[question].distillation[signal] for signal in wanted}

    def values(self, question: str, rollouts: Arrays) -> Arrays:
        raise NotImplementedError

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        return {token: str(token) for token in ids}

    def decode(self, runs: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(map(str, run)) for run in runs]

    def close(self) -> None:
        """Nothing is held."""


def scored_trees(
    given: Mapping[str, Given],
    *,
    seed: Callable[[str], int] = lambda question: 0,
    temperature: float = 1.0,
    scores: Scores | None = None,
    losses: Sequence[Any] = (ReverseKL(), ForwardKL()),
    **settings: Any,
) -> tuple[list[QuestionScores], Prior]:
    """Stages 3 to 5 of trees that are there, and their prior; `settings` are of the forced planner."""
    signals = list(next(iter(given.values())).distillation)
    config = RunConfig(
        questions=Questions(path="none.jsonl"),
        student=Model(path="none"),
        teachers=[Teacher(name=name) for name in dict.fromkeys(signal.teacher for signal in signals) if name != REWARD],
        losses=list(losses),
        sampling=Sampling(temperature=temperature),
        tree=ForcedTree(**settings),
        success=Success(rollouts=0),
        scores=scores or Scores(),
    )
    computed = Computed(config, GivenProvider(given), list(given), signals, lambda _, __, question: seed(question))
    computed.run(*diagnosis_stages())
    questions = [QuestionScores.of(i, signals, computed.artefact, config.tree.sampled) for i in given]
    return questions, Prior.of(computed.artefact("prior", next(iter(given))))


def scored_tree(given: Given, *, question: str = QUESTION, seed: int = 0, **settings: Any) -> QuestionScores:
    """The same of one tree."""
    return scored_trees({question: given}, seed=lambda question: seed, **settings)[0][0]


def oracle_config(chain: Chain, *, seed: int = 0, rollouts: int = 8, **tree: Any) -> RunConfig:
    """A configuration for a chain; models and questions are placeholders that nothing reads."""
    return RunConfig.model_validate(
        {
            "seed": seed,
            "questions": {"path": "oracle.jsonl"},
            "student": {"path": "oracle"},
            "teachers": [{"name": "teacher"}],
            "verifier": {"kind": "exact", "marker": " "},
            "sampling": {"rollouts": rollouts, "max_tokens": chain.length + 2},
            "tree": {"kind": "forced", **tree},
            "success": {"rollouts": 0},
        }
    )


def oracle_rollouts(models: OracleModels) -> dict[str, AnyArray]:
    """Rollouts of the chain's student."""
    return make_rollouts(models, models.config, QUESTION, NoCheckpoints())


def oracle_tree(models: OracleModels, rollouts: Arrays) -> dict[str, AnyArray]:
    """One tree."""
    return make_tree(models, models.config, QUESTION, rollouts, NoCheckpoints())


@dataclass(frozen=True)
class Exact:
    """Exact values at every completion position, [T] each."""

    inner: Floats
    g_sq: Floats
    d_sq: Floats
    value: Floats

    @property
    def cosine(self) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.inner / np.sqrt(self.g_sq * self.d_sq))

    @property
    def alignment(self) -> float:
        return float(self.inner.sum() / np.sqrt(self.g_sq.sum() * self.d_sq.sum()))


def exact(chain: Chain, teacher: Chain, loss: Any, rollouts: Arrays) -> Exact:
    """Exact g, d and their products at every position of the rollouts."""
    scores, offsets = exact_scores(chain, teacher, loss), rollouts["offsets"]
    completions = [rollouts["tokens"][a:b].tolist() for a, b in pairwise(offsets)]
    depth = np.concatenate([np.arange(len(c)) for c in completions])
    state = np.concatenate([chain.states(c) for c in completions])
    return Exact(*(table[depth, state] for table in (scores.inner, scores.g_sq, scores.d_sq, chain.values)))
