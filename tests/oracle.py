"""The exact oracle (statistics of section 8) as an engine: chains in the place of language models, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from schemas.config import RunConfig
from tasks.calibration.chain import Chain, exact_scores
from tasks.engines.protocol import Continuation, Draw, Trunk
from tasks.inputs.questions import Question
from tasks.statistics.streams import uniforms
from tasks.store.store import Artefact
from tasks.verifiers.verifier import Verifier

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PROMPT = [0]


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

    def release(self) -> None:
        """Nothing is held."""

    def hidden(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[torch.Tensor]:
        """(depth, state) before each completion token."""
        return [
            torch.tensor(list(enumerate(self.chain.states(s[start:]))))
            for s, start in zip(sequences, starts, strict=True)
        ]

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """Rows of the tables."""
        return torch.from_numpy(self._rows[hidden[:, 0].numpy(), hidden[:, 1].numpy()]).log()


class IdTokenizer:
    """Text of token ids: the ids."""

    def batch_decode(self, ids: Sequence[Sequence[int]], **_: object) -> list[str]:
        return [" ".join(str(int(i)) for i in row) for row in ids]


class OracleJob:
    """What stages ask of a `tasks.run.session.Job`, on a chain."""

    def __init__(self, chain: Chain, config: RunConfig) -> None:
        self.config, self.student, self.tokenizer = config, OracleEngine(chain), IdTokenizer()
        self.sampler = self.student
        self.verifier = Verifier(config.verifier)
        self.question = Question("oracle", str(chain.passes), {})


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
        }
    )


def oracle_rollouts(job: OracleJob) -> Artefact:
    """Rollouts of the chain's student, as stage 1 would store them."""
    from tasks.stages.rollouts import sample_rollouts

    ends = sample_rollouts(job.student, PROMPT, job.config.sampling, job.config.seed, job.question.id)
    return Artefact(
        "rollouts",
        "",
        {
            "prompt": np.array(PROMPT, dtype=np.int32),
            "tokens": np.concatenate([e.tokens for e in ends]),
            "offsets": np.cumsum([0, *(len(e.tokens) for e in ends)]).astype(np.int64),
            "correct": np.array([e.tokens[-1] == job.student.chain.passes for e in ends]),
            "truncated": np.array([e.cut for e in ends]),
        },
    )


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


def exact(chain: Chain, teacher: Chain, loss: Any, rollouts: Artefact) -> Exact:
    """Exact g, d and their products at every position of the rollouts."""
    scores, offsets = exact_scores(chain, teacher, loss), rollouts["offsets"]
    completions = [rollouts["tokens"][a:b].tolist() for a, b in pairwise(offsets)]
    depth = np.concatenate([np.arange(len(c)) for c in completions])
    state = np.concatenate([chain.states(c) for c in completions])
    return Exact(*(table[depth, state] for table in (scores.inner, scores.g_sq, scores.d_sq, chain.values)))
