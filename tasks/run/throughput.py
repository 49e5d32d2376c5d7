"""How fast a run's models work on this machine: measured by a short probe, and kept for the next plan."""

import os
import platform
import resource
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.arrays import AnyArray
from schemas.config import RunConfig
from schemas.signals import losses, ranked_signals, sources, written_sources
from tasks.engines.counts import SCORED
from tasks.engines.device import resolve_device
from tasks.engines.memory import weights
from tasks.engines.protocol import Continuation, Draw, Trunk
from tasks.operations.progress import publish
from tasks.operations.threads import beside_each_other
from tasks.run.keys import RunKeys
from tasks.run.models import LoadedModels
from tasks.run.session import RunSession
from tasks.stages.distillation.stage import NO_NODES
from tasks.stages.models import ModelProvider
from tasks.statistics.streams import stream_seed
from tasks.store.keys import digest

_VERSION = 3
_QUESTIONS = 8
_FEW, _MANY = 16, {"cpu": 256, "cuda": 2048}
"""Rows that are decoded together in a probe."""
_LONGEST = 64
_BUDGET = 10.0
"""Seconds that decoding with few rows may take."""


_MOST = 10**9
_Amount = Annotated[float, Field(ge=0, le=_MOST)]
_Positive = Annotated[float, Field(ge=1e-9, le=_MOST)]


class Throughput(BaseModel):
    """Speed and memory of a run's models on this machine.

    Attributes:
        load_seconds: to load and to test all models.
        completion: expected tokens of a completion that no limit ends; None if none of the probe's has ended.
        prompt: mean tokens of the student's prompts.
        passes: passes over a question's rollouts that a pass of the student and one of each source take, as a share of
            these; those with equal prompts are one.
        passed_prompt: tokens of prompts in one of them.
        rows, step_seconds: rows decoded together, few and many, and what one token of each of them takes.
        context: mean tokens that these attended to.
        context_slowdown: by how much each further token attended to slows decoding, as a share.
        scored: tokens per second through the student and all teachers, with all losses.
        cache_bytes: of the keys and values of a token.
        most_rows, cache_tokens: `tasks.engines.protocol.Capacity`.
        memory: bytes at most so far, of this process or on its GPU.
        seconds: that the probe took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    load_seconds: _Amount
    completion: Annotated[float, Field(ge=1, le=_MOST)] | None
    prompt: _Amount
    passes: Annotated[float, Field(gt=0, le=1)]
    passed_prompt: _Amount
    rows: tuple[Annotated[int, Field(ge=1, le=_MOST)], Annotated[int, Field(ge=1, le=_MOST)]]
    step_seconds: tuple[_Positive, _Positive]
    context: _Amount
    context_slowdown: _Amount
    scored: _Positive
    cache_bytes: Annotated[int, Field(ge=0, le=_MOST)]
    most_rows: Annotated[int, Field(ge=1, le=_MOST)]
    cache_tokens: Annotated[int, Field(ge=0)]
    memory: Annotated[int, Field(ge=0)]
    seconds: _Amount

    def length(self, limit: float) -> float:
        """Expected tokens of a draw, if each of them is the last with the same probability, or the limit's."""
        if self.completion is None:
            return limit
        return self.completion * (1 - float((1 - 1 / self.completion) ** limit))

    def decoded_per_second(self, rows: int, context: float) -> float:
        """Tokens per second where so many rows are decoded together, and attend to so many tokens on average.

        A step is taken to cost a constant and a share for each row.
        """
        (few, many), (short, long) = self.rows, self.step_seconds
        by_row = max(0.0, (long - short) / (many - few)) if many > few else short / few
        step = max(short + by_row * (rows - few), short / few)
        slower = (1 + self.context_slowdown * context) / (1 + self.context_slowdown * self.context)
        return rows / (step * max(1.0, slower))


def throughput(session: RunSession) -> Throughput | None:
    """The speed of a run's models: that of an earlier probe on this machine, or of one now; None without weights here.

    Raises:
        EngineError: a model cannot run here.
    """
    config, keys, provider = session.config, session.keys, session.provider
    if not isinstance(provider, ModelProvider) or not isinstance(provider.models, LoadedModels):
        return None
    known = {config.model, *(t.model for t in config.model_teachers if t.model is not None)}
    if any(weights(model) is None for model in known):
        return None
    questions = keys.questions[:_QUESTIONS]
    path = _folder() / f"{_identity(config, keys, questions)}.json"
    try:
        return Throughput.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):  # none yet, or a damaged one
        measured = _Probe(config, provider, provider.models, questions).measure()
    with suppress(OSError):  # a folder that cannot be written costs the next plan a probe
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(measured.model_dump_json())
        partial.replace(path)
    return measured


def _folder() -> Path:
    """Where probes are kept, for all runs of a user; a relative `XDG_CACHE_HOME` is ignored, as its standard wants."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "opdscope" / "throughput"


def _identity(config: RunConfig, keys: RunKeys, questions: Sequence[str]) -> str:
    """Digest of the machine, the engine and all that its models were asked for."""
    device = resolve_device(config.engine.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    wanted = [keys.key("ranking", question, signal) for question in questions for signal in ranked_signals(config)]
    machine = [name, os.cpu_count(), torch.get_num_threads()]
    engine, flight = config.engine.model_dump(mode="json"), config.execution.questions_in_flight
    return digest([_VERSION, machine, engine, flight, config.sampling.keyed(), wanted])


def _processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _steps(ends: Sequence[Continuation]) -> int:
    """Steps of decoding that draws took together."""
    return max(len(end.tokens) for end in ends)


class _Probe:
    """Measures a run's own models on some of its questions."""

    def __init__(
        self, config: RunConfig, provider: ModelProvider, models: LoadedModels, questions: Sequence[str]
    ) -> None:
        self._config, self._provider, self._models, self._questions = config, provider, models, questions
        self._device = resolve_device(config.engine.device)
        dtype: torch.dtype = getattr(torch, config.model.dtype)
        self._number_bytes = dtype.itemsize
        self._trunks = [Trunk(tuple(self._models.prompt(question))) for question in questions]

    def measure(self) -> Throughput:
        """Load the models, decode with few rows and with many, and score what was decoded."""
        began = time.monotonic()
        publish("probe", 0, 4)
        self._decode(len(self._trunks), 1)  # loads the student, starts the engine, and computes the prompts
        loaded = time.monotonic() - began
        _, first = self._decode(1, 2)
        publish("probe", 1)
        limit = self._config.sampling.max_tokens
        longest = min(limit, _LONGEST, max(4, int(_BUDGET / first)))
        ends, few = self._decode(_FEW, longest)
        publish("probe", 1)
        rows = _MANY.get(self._device.type, _MANY["cpu"])
        last, many = self._decode(rows, 2)
        if many < 1.0:
            last, many = self._decode(rows, min(limit, 16))
        publish("probe", 1)
        loaded += self._load_teachers()
        scored, seconds, passes, passed_prompt = self._score(ends)
        publish("probe", 1)
        finished = sum(not end.truncated for end in ends)
        tokens = sum(len(end.tokens) for end in ends)
        prompt = float(np.mean([len(trunk.prompt) for trunk in self._trunks]))
        return Throughput(
            load_seconds=loaded,
            completion=tokens / finished if finished else None,
            prompt=prompt,
            passes=passes,
            passed_prompt=passed_prompt,
            rows=(_FEW, rows),
            step_seconds=(few / _steps(ends), many / _steps(last)),
            context=prompt + longest / 2,
            context_slowdown=self._context_slowdown(),
            scored=scored / seconds,
            cache_bytes=self._cache_bytes(),
            most_rows=self._models.sampler.capacity.rows,
            cache_tokens=self._models.sampler.capacity.tokens,
            memory=self._memory(),
            seconds=time.monotonic() - began,
        )

    def _decode(self, rows: int, limit: int) -> tuple[list[Continuation], float]:
        """Draws after the prompts, of as many questions beside each other as in a run, and the seconds they took."""
        calls = min(rows, self._config.execution.questions_in_flight)
        sampler, temperature = self._models.sampler, self._config.sampling.temperature

        def decode(call: int) -> list[Continuation]:
            own = range(call, rows, calls)
            draws = [Draw(0, 0, None, limit, stream_seed(0, "probe", i)) for i in own]
            return sampler.continue_prefixes([self._trunks[call % len(self._trunks)]], draws, temperature)

        began = time.monotonic()
        ends = [end for made in beside_each_other(decode, range(calls), calls) for end in made]
        return ends, time.monotonic() - began

    def _load_teachers(self) -> float:
        began = time.monotonic()
        for group in self._provider.together(sources(self._config)):
            for source in group:
                self._models.teacher(source)
        return time.monotonic() - began

    def _score(self, ends: Sequence[Continuation]) -> tuple[int, float, float, float]:
        """All teachers and losses on the draws, as if they were the rollouts of one question.

        Returns:
            tokens and seconds, and what `Throughput` says of passes.
        """
        tokens = [end.tokens for end in ends[: self._config.sampling.rollouts]]
        rollouts: dict[str, AnyArray] = {
            "prompt": np.array(self._trunks[0].prompt, dtype=np.int32),
            "tokens": np.concatenate(tokens),
            "offsets": np.cumsum([0, *map(len, tokens)]).astype(np.int64),
            "correct": np.arange(len(tokens)) % 2 == 0,
        }
        # what is written for contexts stands for it here: texts as long as completions
        text = {**rollouts, "place": np.arange(len(tokens)), "verdict": np.zeros(len(tokens), dtype=np.int8)}
        texts = dict.fromkeys(written_sources(self._config), text)
        ranked = {signal.loss for signal in ranked_signals(self._config)}
        of_run = {name: loss for name, loss in losses(self._config).items() if name in ranked}
        before, began = SCORED.value, time.monotonic()
        for group in self._provider.together(sources(self._config)):
            self._provider.distillation(self._questions[0], dict.fromkeys(group, of_run), rollouts, NO_NODES, texts)
        scored, seconds = SCORED.value - before, time.monotonic() - began
        views: set[tuple[int, tuple[tuple[int, ...], ...]]] = {(id(self._models.student), (self._trunks[0].prompt,))}
        for source in sources(self._config):
            prompt, by_rollout = self._models.teacher_prompts(source, self._questions[0], rollouts, texts.get(source))
            each = [tuple(p) for p in by_rollout or [prompt]]
            views.add((id(self._models.teacher(source)), tuple(each)))
        completions = sum(max(0, len(completion) - 1) for completion in tokens)
        passes = len(views) / (1 + len(sources(self._config)))
        return scored, seconds, passes, max(0.0, scored / len(views) - completions)

    def _cache_bytes(self) -> int:
        layers, heads, size = self._attention("num_key_value_heads")
        return 2 * layers * heads * size * self._number_bytes

    def _context_slowdown(self) -> float:
        """Of the work of a token: on a CPU its multiplications, on a GPU the bytes that are read for it."""
        parameters: int = sum(p.numel() for p in self._models.student.model.parameters())
        if self._device.type == "cuda":
            return self._cache_bytes() / (parameters * self._number_bytes / _MANY["cuda"])
        layers, heads, size = self._attention("num_attention_heads")
        return 2 * layers * heads * size / parameters

    def _attention(self, heads: str) -> tuple[int, int, int]:
        """Layers, heads of a kind, and their size."""
        config = self._models.student.model.config.get_text_config()
        queries: int = config.num_attention_heads
        size: int = getattr(config, "head_dim", None) or config.hidden_size // queries
        return config.num_hidden_layers, getattr(config, heads, None) or queries, size

    def _memory(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
