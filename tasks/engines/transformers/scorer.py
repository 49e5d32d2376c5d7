"""Scores with transformers: any AutoModelForCausalLM, on CPU or GPU; hidden states first, then the head in blocks."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tasks.engines.counts import MODEL_TIME, SCORED
from tasks.engines.memory import is_out_of_memory
from tasks.engines.positions import length_limit
from tasks.engines.protocol import Completed, EngineError
from tasks.engines.transformers.attention import NAME, Completions, check_layers, replace_attention
from tasks.engines.transformers.padding import length, padded, predicting

if TYPE_CHECKING:
    from tasks.engines.transformers.backward import BackwardPass

SELF_TEST_LIMIT = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest allowed difference between log-probabilities that a model computes in different ways, nat."""

PROBE_LENGTH = 24
_PROBE_ENDS = PROBE_LENGTH - 4
_PROBE_WINDOW = {"cpu": 1024, "cuda": 2048}
"""Largest window that self-tests exceed."""


class TransformersScorer:
    """`tasks.engines.protocol.Scorer` on a transformers model, whose body can be unloaded while its head stays loaded.

    Attributes:
        rows: rows of the output head, including padding.
        limit: the longest sequence, if limited.
    """

    def __init__(self, load: Callable[[], Any], vocabulary: int | None = None) -> None:
        """Load a model; `vocabulary` crops padded output rows.

        Raises:
            EngineError: the model cannot be loaded, or its log-probabilities for the same tokens differ.
        """
        self._load, self._model, self._attention = load, _prepared(load()), ""
        self._head = self._model.get_output_embeddings()
        self._embedded = int(self._model.get_input_embeddings().weight.shape[0])
        self.limit = length_limit(self._model.config)
        self.device: torch.device = self._model.device
        self.rows = int(self._head.weight.shape[0])
        self.vocabulary = vocabulary or self.rows
        self._window: int | None = getattr(self._model.config.get_text_config(), "sliding_window", None)
        self._softcap: float | None = getattr(self._model.config.get_text_config(), "final_logit_softcapping", None)
        with SCORED.paused():
            self._self_test()

    @property
    def longest(self) -> int | None:
        """See the protocol."""
        return None if self.limit is None else self.limit.tokens

    def forward(self, sequences: Sequence[Completed]) -> "BackwardPass":
        """See the protocol."""
        from tasks.engines.transformers.backward import BackwardPass

        return BackwardPass(self, sequences)

    @property
    def head(self) -> torch.nn.Module:
        """The output head."""
        head: torch.nn.Module = self._head
        return head

    @property
    def loaded(self) -> bool:
        """True if the whole model is in memory."""
        return self._model is not None

    @property
    def model(self) -> Any:
        """The whole model; loaded again if it is not in memory."""
        if self._model is None:
            self._model = _prepared(self._load())
            self._head = self._model.get_output_embeddings()
            if self._attention:
                self._model.set_attn_implementation(self._attention)
        return self._model

    def unload(self) -> None:
        """Free the memory of all but the output head."""
        self._model = None

    def check_length(self, tokens: int) -> None:
        """Refuse a sequence that is longer than the model's `length_limit`.

        Raises:
            EngineError: the message gives both lengths.
        """
        if self.limit is not None and tokens > self.limit.tokens:
            raise EngineError(
                f"a sequence of {tokens} tokens is longer than the {self.limit.tokens} that "
                f"{type(self.model).__name__} can take ({self.limit.reason})"
            )

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuse token ids without an embedding, which some tokenizers have; on CUDA, one would end the process.

        Raises:
            ValueError: the message gives the id.
        """
        if max(tokens, default=0) >= self._embedded:
            raise ValueError(
                f"token id {max(tokens)} is in a prompt, but {type(self.model).__name__} has ids up to "
                f"{self._embedded - 1}: the text contains a special token that the model was not made for"
            )

    @torch.inference_mode()
    def hidden(self, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """See the protocol. The prompt is computed once, where the model's attention can be replaced.

        Raises:
            EngineError: a sequence is longer than the model can process, or does not fit in memory even alone.
            ValueError: a token id has no embedding.
        """
        self.check_length(len(prompt) + max(map(len, completions), default=0))
        for tokens in (prompt, *completions):
            self.check_tokens(tokens)
        try:
            with MODEL_TIME.measured():
                shared = bool(self._attention)
                return (
                    self._hidden(prompt, completions)
                    if shared
                    else self._padded([Completed(prompt, c) for c in completions])
                )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(completions) == 1:
                raise EngineError(
                    f"not enough memory on {self.device} to score a sequence of {len(prompt) + len(completions[0])} "
                    "tokens"
                ) from error
        half = len(completions) // 2
        return self.hidden(prompt, completions[:half]) + self.hidden(prompt, completions[half:])

    def _hidden(self, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """One sequence of the prompt and all completions, without their last tokens, which predict nothing."""
        parts = Completions(len(prompt), [max(0, len(c) - 1) for c in completions])
        ids = [*prompt, *(token for c in completions for token in c[:-1])]
        states = self._states(torch.tensor([ids]), position_ids=parts.positions()[None], completions=parts)[0]
        ends = states[len(prompt) :].split(parts.lengths)
        first = states[len(prompt) - 1 : len(prompt)]
        return [torch.cat([first, end])[: len(c)] for end, c in zip(ends, completions, strict=True)]

    @torch.inference_mode()
    def hidden_each(self, sequences: Sequence[Completed]) -> list[torch.Tensor]:
        """See the protocol."""
        for prompt, completion in sequences:
            self.check_length(len(prompt) + len(completion))
            self.check_tokens([*prompt, *completion])
        with MODEL_TIME.measured():
            return self._padded(sequences)

    def _padded(self, sequences: Sequence[Completed]) -> list[torch.Tensor]:
        """Whole sequences, as many at a time as take no more room than prompts and completions one after another.

        Where all prompts are the same one, it counts once.
        """
        alike = all(prompt == sequences[0][0] for prompt, _ in sequences)
        prompts = len(sequences[0][0]) if alike and sequences else sum(len(prompt) for prompt, _ in sequences)
        room = prompts + sum(len(completion) for _, completion in sequences)
        out: list[torch.Tensor] = []
        while len(out) < len(sequences):
            part, width = [sequences[len(out)]], length(sequences[len(out)])
            for other in sequences[len(out) + 1 :]:
                width = max(width, length(other))
                if width * (len(part) + 1) > room:
                    break
                part.append(other)
            states = self._states(padded(part))
            out += [states[i, predicting(sequence)].clone() for i, sequence in enumerate(part)]
        return out

    def _states(self, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Final hidden states, [B, T] -> [B, T, H]."""
        SCORED.add(ids.numel())
        on_device = {n: x.to(self.device) if isinstance(x, torch.Tensor) else x for n, x in arguments.items()}
        output = self.model.base_model(input_ids=ids.to(self.device), use_cache=False, **on_device)
        return torch.as_tensor(output.last_hidden_state)

    @torch.inference_mode()
    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """See the protocol."""
        with MODEL_TIME.measured():
            return torch.log_softmax(self.logits(hidden), dim=-1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits of the vocabulary, [T, H] -> [T, V]."""
        logits = self._head(hidden)[..., : self.vocabulary].float()
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)

    def probe_length(self) -> int:
        """Number of tokens in a self-test: more than the model's window if that is affordable, within its limit."""
        window = self._window
        if window is None or window > _PROBE_WINDOW.get(self.device.type, 1024):
            return PROBE_LENGTH
        return window + PROBE_LENGTH if self.limit is None else min(window + PROBE_LENGTH, self.limit.tokens)

    def probe(self, length: int = PROBE_LENGTH) -> list[int]:
        """Token ids for self-tests."""
        return [(7 * i + 3) % self.vocabulary for i in range(length)]

    @torch.inference_mode()
    def probe_scores(self) -> torch.Tensor:
        """Log-probabilities of the probe's tokens except the first, over all output rows, by the model itself."""
        ids = torch.tensor([self.probe()], device=self.device)
        log_probs = torch.log_softmax(self.model(input_ids=ids, use_cache=False).logits[0, :-1].float(), dim=-1)
        return log_probs.gather(1, ids[0, 1:, None])[:, 0].cpu()

    @torch.inference_mode()
    def _self_test(self) -> None:
        """Choose how prompts are shared, and compare with the model itself, as it is.

        Raises:
            EngineError: the log-probabilities differ by more than `SELF_TEST_LIMIT`.
        """
        ids, own_attention = self.probe(self.probe_length()), self.model.config._attn_implementation
        logits = self.model(input_ids=torch.tensor([ids[:PROBE_LENGTH]], device=self.device), use_cache=False).logits
        start = torch.log_softmax(logits.float()[0, 3:-1, : self.vocabulary], dim=-1)
        end = self.log_probs(self._states(torch.tensor([ids]))[0, -_PROBE_ENDS - 1 : -1])
        try:
            self._check_window(len(ids))
            check_layers(self.model)
            replace_attention(self.model)
            self._attention = NAME
            self._compare_all(ids, start, end)
        except (RuntimeError, TypeError, ValueError):  # the model does not know `completions`, or does not keep to them
            self.model.set_attn_implementation(own_attention)
            self._attention = ""
            self._compare_all(ids, start, end)

    def _check_window(self, tested: int) -> None:
        """Refuse to replace attention whose window a test of so many tokens does not show.

        Raises:
            EngineError: the window is longer, and sequences may be longer than that.
        """
        longest = math.inf if self.limit is None else self.limit.tokens
        if self._window is not None and tested <= self._window < longest:
            raise EngineError(f"the window of {self._window} tokens is not tested")

    def _compare_all(self, ids: list[int], start: torch.Tensor, end: torch.Tensor) -> None:
        """Score one sequence in several ways: alone, in a batch, shorter and again.

        Args:
            start, end: the model's own log-probabilities, after the tokens from the fourth on and after the last ones.
        """
        short = ids[:PROBE_LENGTH]
        alone = self.log_probs(self.hidden(short[:4], [short[4:]])[0])
        shorter, batched, _ = self.hidden(short[:4], [short[4:9], short[4:], short[:3:-1]])
        again = self.log_probs(self.hidden(short[:4], [short[4:]])[0])
        long = self.hidden(ids[:4], [ids[4:9], ids[4:]])[1][-_PROBE_ENDS:]
        for what, own, other in (
            ("by head", start, alone),
            ("in a batch", start, self.log_probs(batched)),
            ("of a shorter sequence", start, self.log_probs(shorter)),
            ("the second time", start, again),
            ("after a prompt", end, self.log_probs(long)),
        ):
            self.compare(what, own[: len(other)], other)

    def compare(self, what: str, own: torch.Tensor, other: torch.Tensor) -> None:
        """Refuse log-probabilities that differ from the model's own.

        Raises:
            EngineError: they differ by more than `SELF_TEST_LIMIT`.
        """
        limit = SELF_TEST_LIMIT[self.model.dtype]
        error = float((own.double() - other.double()).abs().nan_to_num(torch.inf).max())
        if error > limit:
            raise EngineError(
                f"{type(self.model).__name__}: log-probabilities {what} differ from the model's own by {error:.3g} "
                f"(limit {limit}); another dtype or transformers version may help"
            )


def _prepared(model: Any) -> Any:
    """Prepare a model for scoring: if it caps attention scores, which SDPA ignores, use eager attention."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")
    return model.eval()
