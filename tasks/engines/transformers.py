"""The transformers engine: any AutoModelForCausalLM, on CPU or GPU.

A prefix that draws share is computed once: the longest common prefix of all sequences, then the rest of each
sequence. A batch of draws gathers its rows' caches from there, aligned to the right; rows that end leave the batch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, DynamicCache

from schemas.config import Model, TransformersEngine
from tasks.engines.device import resolve_device
from tasks.engines.protocol import Continuation, Draw, EngineError
from tasks.engines.streams import uniforms

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]

_COMPACT_BELOW = 0.75  # a batch is compacted when fewer of its rows are still running
_SELF_TEST_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.05}


class TransformersLM:
    """`tasks.engines.protocol.Engine` on a transformers model."""

    def __init__(
        self,
        model: Any,
        stop_tokens: Sequence[int],
        settings: TransformersEngine,
        vocabulary: int | None = None,
    ) -> None:
        """Wrap a loaded model; `vocabulary` crops padded output rows.

        Raises:
            EngineError: head or cache of this architecture do not do what this engine needs.
        """
        self.model = model.eval()
        self.vocabulary = vocabulary or int(model.get_output_embeddings().weight.shape[0])
        self.decoded = 0
        self._stop = np.array(sorted(set(stop_tokens)), dtype=np.int64)
        self._settings = settings
        self._device: torch.device = model.device
        self._softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self._self_test()

    @torch.inference_mode()
    def continue_prefixes(
        self, sequences: Sequence[Sequence[int]], draws: Sequence[Draw], temperature: float
    ) -> list[Continuation]:
        """See the protocol. A draw without a forced token takes its prefix's last token as input."""
        results: list[Continuation | None] = [None] * len(draws)
        running = []
        for i, draw in enumerate(draws):
            if draw.token is not None and draw.token in self._stop:
                results[i] = Continuation(np.empty(0, np.int32), False)
            elif draw.limit <= 0:
                results[i] = Continuation(np.empty(0, np.int32), True)
            else:
                running.append(i)
        if running:
            for deepest in self._sequence_groups([draws[i] for i in running]):
                # as much of each sequence as its draws need, and the draws, longest prefix first
                prefixes = [sequences[s][:length] for s, length in deepest.items()]
                cache = self._prefill(prefixes)
                members = sorted((i for i in running if draws[i].sequence in deepest), key=lambda i: -draws[i].length)
                local = {s: row for row, s in enumerate(deepest)}
                moved = [draws[i]._replace(sequence=local[draws[i].sequence]) for i in members]
                for rows in self._row_batches(moved):
                    ends = self._decode(prefixes, moved[rows], cache, temperature)
                    for i, end in zip(members[rows], ends, strict=True):
                        results[i] = end
        return [r for r in results if r is not None]

    @torch.inference_mode()
    def hidden(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[torch.Tensor]:
        """See the protocol. Padding stands on the right, where a causal model cannot see it."""
        width = max(map(len, sequences))
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        for i, sequence in enumerate(sequences):
            ids[i, : len(sequence)] = torch.tensor(sequence)
        states = self.model.base_model(input_ids=ids.to(self._device), use_cache=False).last_hidden_state
        return [
            states[i, start - 1 : len(sequence) - 1].clone()
            for i, (sequence, start) in enumerate(zip(sequences, starts, strict=True))
        ]

    @torch.inference_mode()
    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """See the protocol."""
        return torch.log_softmax(self._logits(hidden), dim=-1)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.model.get_output_embeddings()(hidden)[..., : self.vocabulary].float()
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)

    def _prefill(self, sequences: Sequence[Sequence[int]]) -> KeysValues:
        """Keys and values of all sequences, by layer, each [S, heads, T, size]; unused places hold noise."""
        shared = _common_prefix(sequences)
        cache: Any = DynamicCache()
        if shared:
            ids = torch.tensor([list(sequences[0][:shared])], device=self._device)
            self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(sequences))
        rest = max(map(len, sequences)) - shared
        if rest:
            ids = torch.zeros(len(sequences), rest, dtype=torch.long)
            for i, sequence in enumerate(sequences):
                ids[i, : len(sequence) - shared] = torch.tensor(list(sequence[shared:]))
            self.model.base_model(input_ids=ids.to(self._device), past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _sequence_groups(self, draws: Sequence[Draw]) -> Iterator[dict[int, int]]:
        """Sequences with the length that their draws need, whose padded prefixes stay within `batch_tokens`."""
        lengths: dict[int, int] = {}
        for draw in draws:
            lengths[draw.sequence] = max(draw.length, lengths.get(draw.sequence, 0))
        group: dict[int, int] = {}
        width = 0
        for sequence, length in sorted(lengths.items()):
            if group and max(width, length) * (len(group) + 1) > self._settings.batch_tokens:
                yield group
                group, width = {}, 0
            group[sequence] = length
            width = max(width, length)
        yield group

    def _row_batches(self, draws: Sequence[Draw]) -> Iterator[slice]:
        """Slices of draws, longest prefix first, whose caches stay within `batch_tokens`."""
        start = 0
        while start < len(draws):
            longest = draws[start].length + max(d.limit for d in draws[start:]) + 1
            rows = max(1, self._settings.batch_tokens // longest)
            yield slice(start, start + rows)
            start += rows

    def _decode(
        self,
        sequences: Sequence[Sequence[int]],
        draws: Sequence[Draw],
        prefixes: KeysValues,
        temperature: float,
    ) -> list[Continuation]:
        """Sample one batch of draws to their ends."""
        held = np.array([d.length - (d.token is None) for d in draws])
        inputs = np.array([sequences[d.sequence][d.length - 1] if d.token is None else d.token for d in draws])
        limits = np.array([d.limit for d in draws])
        seeds = np.array([d.seed for d in draws], dtype=np.uint64)
        sampled = np.zeros((len(draws), int(limits.max())), dtype=np.int32)
        lengths = np.zeros(len(draws), dtype=np.int64)
        cut = np.zeros(len(draws), dtype=bool)

        width = int(held.max())
        cache = _gather(prefixes, [d.sequence for d in draws], held, width)
        mask = (torch.arange(width)[None] >= torch.from_numpy(width - held)[:, None]).long().to(self._device)
        alive = np.arange(len(draws))  # the draw in each row of the batch
        done = np.zeros(len(draws), dtype=bool)
        for step in range(int(limits.max())):
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            states = self.model.base_model(
                input_ids=torch.from_numpy(inputs)[:, None].to(self._device),
                attention_mask=mask,
                position_ids=torch.from_numpy(held[alive] + step)[:, None].to(self._device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            inputs = self._sample(states, uniforms(seeds[alive], step), temperature)
            rows = np.flatnonzero(~done[alive])
            running, tokens = alive[rows], inputs[rows]
            sampled[running, step] = tokens
            lengths[running] = step + 1
            self.decoded += len(running)
            stopped, full = np.isin(tokens, self._stop), limits[running] == step + 1
            cut[running] = full & ~stopped
            done[running] = full | stopped
            keep = np.flatnonzero(~done[alive])
            if not len(keep):
                break
            if len(keep) < _COMPACT_BELOW * len(alive):
                kept = torch.from_numpy(keep).to(self._device)
                cache.batch_select_indices(kept)
                mask, alive, inputs = mask[kept], alive[keep], inputs[keep]
        return [Continuation(sampled[i, : lengths[i]].copy(), bool(cut[i])) for i in range(len(draws))]

    def _sample(self, hidden: torch.Tensor, u: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.int64]:
        """Inverse CDF in the order of token ids: [B, H], [B] -> [B]."""
        tokens = np.empty(len(u), dtype=np.int64)
        for start in range(0, len(u), self._settings.score_rows * 4):
            rows = slice(start, start + self._settings.score_rows * 4)
            cdf = torch.softmax(self._logits(hidden[rows]).double() / temperature, dim=-1).cumsum(-1)
            if not bool(torch.isfinite(cdf[:, -1]).all()):
                raise EngineError("the model gives logits that are not numbers; try dtype float32 or bfloat16")
            target = torch.from_numpy(u[rows]).to(cdf)[:, None] * cdf[:, -1:]
            found = torch.searchsorted(cdf, target, right=True)[:, 0].clamp(max=self.vocabulary - 1)
            tokens[rows] = found.cpu().numpy()
        return tokens

    @torch.inference_mode()
    def _self_test(self) -> None:
        """Head, cache and padding must reproduce the model's own logits.

        Raises:
            EngineError: they do not.
        """
        ids = [(7 * i + 3) % self.vocabulary for i in range(9)]
        tensor = torch.tensor([ids], device=self._device)
        own = torch.log_softmax(
            self.model(input_ids=tensor, use_cache=False).logits.float()[0, 3:8, : self.vocabulary], -1
        )
        ours = self.log_probs(self.hidden([ids], [4])[0])
        prefixes = self._prefill([ids[:6], ids])
        held = np.array([3, 7])
        cache = _gather(prefixes, [0, 1], held, 7)
        states = self.model.base_model(
            input_ids=torch.tensor([[ids[3]], [ids[7]]], device=self._device),
            attention_mask=torch.tensor([[0] * 4 + [1] * 4, [1] * 8], device=self._device),
            position_ids=torch.tensor([[3], [7]], device=self._device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        limit = _SELF_TEST_TOLERANCE[self.model.dtype]
        for what, a, b in (("head", own, ours), ("cache", own[[0, 4]], self.log_probs(states))):
            error = float((a - b).abs().max())
            if not error <= limit:
                raise EngineError(
                    f"{type(self.model).__name__}: log-probabilities by {what} differ from the model's own by "
                    f"{error:.3g} (limit {limit}); this architecture needs another engine"
                )


def load_transformers(model: Model, settings: TransformersEngine, tokenizer: Any) -> TransformersLM:
    """Load a model folder or hub name.

    Raises:
        EngineError: no such device, or nothing that can be loaded.
    """
    device = resolve_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model.path,
            revision=model.revision,
            dtype=getattr(torch, model.dtype),
            trust_remote_code=model.trust_remote_code,
        )
        loaded.to(device)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EngineError(f"{model.path!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    ends = loaded.generation_config.eos_token_id
    stop = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    return TransformersLM(loaded, sorted(stop), settings, vocabulary_size(tokenizer))


def vocabulary_size(tokenizer: Any) -> int:
    """Number of token ids that the tokenizer can make or read; output rows past it are padding."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def _common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all sequences share."""
    shortest = min(map(len, sequences))
    first = sequences[0]
    return next(
        (i for i in range(shortest) if any(s[i] != first[i] for s in sequences)),
        shortest,
    )


def _gather(prefixes: KeysValues, sequences: Sequence[int], held: npt.NDArray[np.int64], width: int) -> DynamicCache:
    """A batch's cache: the first `held` places of each row's sequence, aligned to the right of `width`."""
    cache = DynamicCache()
    device = prefixes[0][0].device
    row = torch.tensor(sequences, device=device)[:, None]
    place = (torch.arange(width)[None] - torch.from_numpy(width - held)[:, None]).clamp(min=0).to(device)
    for layer, (keys, values) in enumerate(prefixes):
        cache.update(
            keys.transpose(1, 2)[row, place].transpose(1, 2),
            values.transpose(1, 2)[row, place].transpose(1, 2),
            layer,
        )
    return cache
