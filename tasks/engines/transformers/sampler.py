"""Samples with transformers: trunks are computed once and cached, and draws are decoded from them in a batch."""

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from transformers import DynamicCache

from schemas.config import TransformersEngine
from tasks.engines.memory import GIB, free_memory, is_out_of_memory
from tasks.engines.protocol import Continuation, Draw, EngineError, Trunk, ended
from tasks.engines.transformers.attention import NAME
from tasks.engines.transformers.batches import Batch, Cohort, KeysValues, Row, forward, token_bytes, widen
from tasks.engines.transformers.decoding import Decoder, Work
from tasks.engines.transformers.scorer import PROBE_LENGTH, TransformersScorer

_CHUNK = {"cpu": 512, "cuda": 4096}
"""Tokens of a trunk in one forward pass."""
_ROWS = {"cpu": 1024, "cuda": 4096}
_SLACK = 16
_LAYERS = {"full_attention", "sliding_attention"}
_PROBE_WINDOW = {"cpu": 1024, "cuda": 2048}
"""Largest window that the self-test exceeds."""
_PROBE_ROWS = 16
_PROBE_STEPS = 2


class TransformersSampler:
    """`tasks.engines.protocol.Sampler` on a transformers model.

    Attributes:
        work: the cost of all calls so far.
    """

    def __init__(self, scorer: TransformersScorer, stop: frozenset[int], settings: TransformersEngine) -> None:
        """Use a model that is loaded for scoring.

        Raises:
            EngineError: the attention of the model cannot be replaced, or decoding does not agree with scoring.
        """
        self.decoded, self.work = 0, Work()
        self._scorer, self._stop, self._device = scorer, stop, scorer.device
        self._logit_rows = 4 * settings.score_rows
        self._rows = settings.rows or _ROWS.get(self._device.type, 1024)
        self._chunk = _CHUNK.get(self._device.type, 512)
        self._prompts: dict[tuple[int, ...], Any] = {}
        self._trunks: dict[Trunk, Any] = {}
        self._check_layers()
        probe = scorer.probe(self._probe_length())
        own = scorer.hidden([probe], [1])[0]
        self._replace_attention()
        self._layers: KeysValues = [
            (keys[:, :, :0], values[:, :, :0]) for keys, values in _pairs(self._extended(DynamicCache(), probe[:1]))
        ]
        memory = free_memory(self._device) / 2 if settings.memory is None else settings.memory * GIB
        self._capacity = int(memory / token_bytes(self._layers))
        self._self_test(probe, own)

    def _probe_length(self) -> int:
        """Number of tokens in the self-test: more than the model's window if that is affordable, within its limit."""
        window: int | None = getattr(self._scorer.model.config.get_text_config(), "sliding_window", None)
        if window is None or window > _PROBE_WINDOW.get(self._device.type, 1024):
            return PROBE_LENGTH
        limit = self._scorer.limit
        return window + PROBE_LENGTH if limit is None else min(window + PROBE_LENGTH, limit.tokens)

    def _check_layers(self) -> None:
        """Refuse a model with layers other than attention.

        Raises:
            EngineError: the message names the kind of such a layer.
        """
        model = self._scorer.model
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or _LAYERS) - _LAYERS
        if kinds:
            self._refuse(f"layers of kind {sorted(kinds)[0]}")

    def _replace_attention(self) -> None:
        """Replace the model's attention by `tasks.engines.transformers.attention`.

        Raises:
            EngineError: the attention cannot be replaced.
        """
        model = self._scorer.model
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            self._refuse("an attention that cannot be replaced")

    def _refuse(self, reason: str) -> NoReturn:
        name = type(self._scorer.model).__name__
        raise EngineError(f"{name} has {reason}; use engine.kind: vllm or vllm-server")

    def release(self) -> None:
        """Free the trunks that are cached for the next call."""
        self._prompts.clear()
        self._trunks.clear()

    @torch.inference_mode()
    def continue_prefixes(
        self, trunks: Sequence[Trunk], draws: Sequence[Draw], temperature: float
    ) -> list[Continuation]:
        """See the protocol. Without a forced token, the first input of a draw is the last token of its prefix."""
        forced = [d.token is not None for d in draws]
        lengths = [len(trunks[d.trunk].prompt) + d.depth + f + d.limit for d, f in zip(draws, forced, strict=True)]
        self._scorer.check_length(max(lengths, default=0))
        self._replace_attention()  # the model may have been unloaded since
        results = [ended(draw, self._stop) for draw in draws]
        visible = [len(trunks[d.trunk].prompt) + d.depth - (not f) for d, f in zip(draws, forced, strict=True)]
        needed: dict[int, int] = {}
        for i, draw in enumerate(draws):
            if results[i] is None:
                needed[draw.trunk] = max(visible[i], needed.get(draw.trunk, 0))
        self._keep_only({trunks[t] for t in needed})
        for group, caches in self._groups(trunks, needed):
            members = [i for i, d in enumerate(draws) if results[i] is None and d.trunk in group]
            rows = [_row(trunks[draws[i].trunk], draws[i], visible[i], caches[draws[i].trunk]) for i in members]
            tokens = sum(pairs[0][0].shape[2] for pairs in caches.values() if pairs)
            decoder = Decoder(
                self._scorer.model,
                self._scorer.logits,
                self._stop,
                self._layers,
                capacity=max(1, self._capacity - tokens),
                max_rows=self._rows,
                logit_rows=self._logit_rows,
                work=self.work,
            )
            for i, result in zip(members, decoder.run(rows, temperature), strict=True):
                results[i] = result
        done = [r for r in results if r is not None]
        self.decoded += sum(len(r.tokens) for r in done)
        return done

    def _keep_only(self, used: set[Trunk]) -> None:
        prompts = {trunk.prompt for trunk in used}
        self._trunks = {trunk: cache for trunk, cache in self._trunks.items() if trunk in used}
        self._prompts = {prompt: cache for prompt, cache in self._prompts.items() if prompt in prompts}

    def _groups(
        self, trunks: Sequence[Trunk], needed: dict[int, int]
    ) -> Iterator[tuple[dict[int, int], dict[int, KeysValues]]]:
        """Groups of trunks whose caches take at most half of the memory, with the caches; at least one trunk each."""
        group: dict[int, int] = {}
        pending = list(needed.items())
        while pending:
            trunk, length = pending.pop(0)
            group[trunk] = length
            if not pending or sum(group.values()) + pending[0][1] > self._capacity // 2:
                yield group, {t: self._trunk(trunks[t], n) for t, n in group.items()}
                if pending:
                    self.release()
                group = {}

    def _trunk(self, trunk: Trunk, length: int) -> KeysValues:
        """A trunk's keys and values up to `length`.

        Chunks always start at the same positions, and a cache of another length is reused only up to its last whole
        chunk. So the result depends on this call alone, bit for bit, and not on what earlier calls have cached.
        """
        prompt = len(trunk.prompt)
        if trunk.prompt not in self._prompts:
            self._prompts[trunk.prompt] = self._extended(DynamicCache(), trunk.prompt)
        if trunk not in self._trunks:
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(_pairs(self._prompts[trunk.prompt])):
                cache.update(keys, values, layer)
            self._trunks[trunk] = cache
        cache = self._trunks[trunk]
        wanted = max(0, length - prompt)
        done = cache.get_seq_length() - prompt
        if done != wanted:
            whole = min(done, wanted) // self._chunk * self._chunk
            if done > whole:
                cache.crop(whole - done)
            self._extended(cache, trunk.completion[whole:wanted])
        return _pairs(cache)

    def _extended(self, cache: Any, tokens: Sequence[int]) -> Any:
        """A cache extended by more tokens.

        Raises:
            EngineError: memory does not suffice for one chunk.
        """
        for start in range(0, len(tokens), self._chunk):
            part = torch.tensor([list(tokens[start : start + self._chunk])], device=self._device)
            try:
                self._scorer.model.base_model(input_ids=part, past_key_values=cache, use_cache=True)
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    raise EngineError(
                        f"not enough memory on {self._device} for a prefix of {cache.get_seq_length()} tokens; "
                        "lower engine.memory or sampling.max_tokens"
                    ) from error
                raise
            self.work.prefix_tokens += part.numel()
        return cache

    @torch.inference_mode()
    def _self_test(self, ids: list[int], own: torch.Tensor) -> None:
        """Check that decoding reproduces `own`, with rows in two cohorts at depths from zero to the end of a trunk.

        This runs once with a block per depth, and once with all rows in one block, some of which see none of the trunk.

        Args:
            ids: token ids of a sequence.
            own: hidden states of the sequence, [T-1, H], by the model's own attention.

        Raises:
            EngineError: the log-probabilities differ.
        """
        trunk = self._trunk(Trunk(tuple(ids[:3]), tuple(ids[3:])), len(ids) - 1)
        depths = np.linspace(0, len(own) - _PROBE_STEPS, _PROBE_ROWS).astype(int).tolist()
        for min_rows in (1, _PROBE_ROWS):
            cohorts = [Cohort.of(range(i, _PROBE_ROWS, 2), depths[i::2]) for i in range(2)]
            for cohort in cohorts:
                widen(cohort, _PROBE_STEPS, self._layers)
            batch = Batch(cohorts, {0: trunk}, np.zeros(_PROBE_ROWS, dtype=np.int64), min_rows, self._device)
            for _ in range(_PROBE_STEPS):
                at = torch.tensor(depths)[batch.rows] + torch.from_numpy(batch.steps())
                states = forward(self._scorer.model, batch, torch.tensor(ids)[at])
                expected = self._scorer.log_probs(own[at.to(own.device)])
                self._scorer.compare("by shared prefixes", expected, self._scorer.log_probs(states))
                for cohort in cohorts:
                    cohort.step += 1
        self.release()


def _row(trunk: Trunk, draw: Draw, visible: int, cache: KeysValues) -> Row:
    """A draw as a row; its expected length is that of the rest of its trunk, if known."""
    rest = len(trunk.completion) - draw.depth
    expected = min(draw.limit, rest + _SLACK) if rest > 0 else draw.limit
    token = (trunk.prompt + trunk.completion)[visible] if draw.token is None else draw.token
    return Row(draw, cache, visible, token, expected)


def _pairs(cache: Any) -> KeysValues:
    return [(layer.keys, layer.values) for layer in cache.layers]
