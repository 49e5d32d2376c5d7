"""Samples with transformers: trunks are computed once and cached, and draws are decoded from them in a batch."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from schemas.config import TransformersEngine
from tasks.engines.counts import SCORED, ThreadCount
from tasks.engines.memory import GIB, free_memory
from tasks.engines.protocol import Capacity, Continuation, Draw, Trunk
from tasks.engines.stream import Stream
from tasks.engines.transformers.attention import check_layers, replace_attention
from tasks.engines.transformers.batches import Batch, Cohort, KeysValues, forward, token_bytes, widen
from tasks.engines.transformers.calls import Call
from tasks.engines.transformers.joined import JoinedBatch
from tasks.engines.transformers.loop import DecodingLoop, Limits
from tasks.engines.transformers.scorer import TransformersScorer
from tasks.engines.transformers.trunks import TrunkCaches, pairs
from tasks.engines.transformers.work import Work
from tasks.engines.turn import TURN

_ROWS = {"cpu": 1024, "cuda": 4096}
_PROBE_ROWS = 16
_PROBE_STEPS = 2
_ALIKE = (16, 32, 64)
"""Numbers of rows from which on they may compute alike."""


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
        self._decoded = ThreadCount()
        self._scorer, self._stop, self._device = scorer, stop, scorer.device
        self.work = Work()
        self._caches = TrunkCaches(lambda: scorer.model, scorer.device, self.work)
        with TURN, SCORED.paused(), torch.inference_mode():
            check_layers(scorer.model)
            probe = scorer.probe(scorer.probe_length())
            own = scorer.hidden(probe[:1], [probe[1:]])[0]
            replace_attention(scorer.model)
            first = self._caches.extended(DynamicCache(), probe[:1])
            self._layers: KeysValues = [(keys[:, :, :0], values[:, :, :0]) for keys, values in pairs(first)]
            self._self_test(probe, own)
            min_rows = self._rows_that_compute_alike()
        memory = free_memory(self._device) / 2 if settings.memory is None else settings.memory * GIB
        self._limits = Limits(
            capacity=int(memory / token_bytes(self._layers)),
            rows=settings.rows or _ROWS.get(self._device.type, 1024),
            logit_rows=max(4 * settings.score_rows, 2 * (min_rows or 1)),  # so that no part has fewer than min_rows
            min_rows=min_rows,
        )
        self._stream = Stream(DecodingLoop(scorer, stop, self._layers, self._caches, self._limits, self.work))

    @property
    def decoded(self) -> int:
        """Tokens of the calling thread's finished draws."""
        return self._decoded.value

    @property
    def capacity(self) -> Capacity:
        """What it decodes at once."""
        return Capacity(self._limits.rows, self._limits.capacity)

    def release(self) -> None:
        """Free the trunks that are cached for later calls."""
        self._caches.shrink(0)

    def continue_prefixes(
        self, trunks: Sequence[Trunk], draws: Sequence[Draw], temperature: float
    ) -> list[Continuation]:
        """See the protocol. Calls of several threads are decoded together."""
        lengths = (len(trunks[d.trunk].prompt) + d.depth + (d.token is not None) + d.limit for d in draws)
        self._scorer.check_length(max(lengths, default=0))
        for trunk in trunks:
            self._scorer.check_tokens(trunk.prompt)
        with TURN:
            replace_attention(self._scorer.model)  # the model may have been unloaded since
        call = Call(trunks, draws, temperature, self._stop, self._limits.capacity // 2)
        if call.groups:
            self._stream.run(call)
        done = [r for r in call.results if r is not None]
        self._decoded.add(sum(len(r.tokens) for r in done))
        return done

    def _self_test(self, ids: list[int], own: torch.Tensor) -> None:
        """Check that decoding reproduces `own`, with rows in two cohorts at depths from zero to the end of a trunk.

        This runs once with a block per depth, and once with all rows in one block, some of which see none of the trunk.

        Args:
            ids: token ids of a sequence.
            own: hidden states of the sequence, [T-1, H], by the model's own attention.

        Raises:
            EngineError: the log-probabilities differ.
        """
        whole = Trunk(tuple(ids[:3]), tuple(ids[3:]))
        trunk = self._caches.acquire(whole, len(ids) - 1)
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
        self._caches.clear()

    def _rows_that_compute_alike(self) -> int | None:
        """Rows in a forward pass from which on the hidden states of a row do not depend on their number, bit for bit.

        Matrix products of few rows, and on some devices of any number, use other kernels than those of more rows.
        """
        tokens = torch.arange(_ALIKE[-1] * 3 + 5) * 7 % self._scorer.vocabulary

        def states(n: int) -> torch.Tensor:
            cohort = Cohort.of(range(n), [0] * n)
            widen(cohort, 1, self._layers)
            batch = Batch([cohort], {0: self._layers}, np.zeros(n, dtype=np.int64), 1, self._device)
            return self._scorer.logits(forward(self._scorer.model, JoinedBatch([batch], 0, self._device), tokens[:n]))

        whole = states(len(tokens))
        for n in _ALIKE:
            if all(torch.equal(states(m), whole[:m]) for m in (n, n + 1, n + 3, 2 * n + 1, 3 * n + 2)):
                return n
        return None
