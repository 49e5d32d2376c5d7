"""Gradients of a loaded model with respect to its parameters, from those with respect to its logits."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from tasks.engines.counts import MODEL_TIME, SCORED
from tasks.engines.protocol import Completed, EngineError
from tasks.engines.transformers.padding import length, padded, predicting
from tasks.engines.transformers.scorer import TransformersScorer


class BackwardPass:
    """`tasks.engines.protocol.Backward` on a transformers model.

    Attributes:
        hidden: final hidden states before each token of the completions, [T, H].
    """

    def __init__(self, scorer: TransformersScorer, sequences: Sequence[Completed]) -> None:
        """Compute the hidden states, and keep what their gradients need.

        Raises:
            EngineError: the model's weights have no gradients, as those of quantised models.
        """
        scorer.check_length(max(map(length, sequences)))
        if any(parameter.is_inference() for parameter in scorer.model.parameters()):
            scorer.unload()  # was loaded where gradients are off
        self._scorer = scorer
        self._body = dict(_trainable(scorer.model.base_model))
        self._head = {name: p for name, p in _trainable(scorer.model) if any(p is q for q in scorer.head.parameters())}
        if not self._body:
            raise EngineError(
                f"{type(scorer.model).__name__} has no weights with gradients; use one that is not quantised"
            )
        ids = padded(sequences).to(scorer.device)
        SCORED.add(ids.numel())
        with MODEL_TIME.measured(), torch.enable_grad():
            states = scorer.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            self._states = torch.cat([states[i, predicting(sequence)] for i, sequence in enumerate(sequences)])
        self.hidden = self._states.detach().requires_grad_(True)

    def logits(self, rows: slice) -> Tensor:
        """See the protocol; they depend on `hidden`."""
        with torch.enable_grad():
            return self._scorer.logits(self.hidden[rows])

    def gradient(self, pulled: Iterable[tuple[Tensor, Tensor]], *, last: bool) -> dict[str, Tensor]:
        """See the protocol."""
        of_hidden = torch.zeros_like(self.hidden)
        of_head = {name: torch.zeros_like(p) for name, p in self._head.items()}
        with MODEL_TIME.measured():
            for logits, direction in pulled:
                inputs = [self.hidden, *self._head.values()]
                found = torch.autograd.grad(logits, inputs, direction.to(logits.dtype), allow_unused=True)
                for total, part in zip((of_hidden, *of_head.values()), found, strict=True):
                    if part is not None:
                        total += part
            found = torch.autograd.grad(
                self._states, list(self._body.values()), of_hidden, retain_graph=not last, materialize_grads=True
            )
        out: dict[str, Tensor] = dict(zip(self._body, found, strict=True))
        for name, part in of_head.items():  # a tied head is in the body too, under another name
            own = next((n for n, p in self._body.items() if p is self._head[name]), name)
            out[own] = part + out[own] if own in out else part
        return out

    def by_parameter(self, gradient: dict[str, Tensor]) -> dict[torch.nn.Parameter, Tensor]:
        """A gradient by the parameters themselves."""
        every = {**self._head, **self._body}
        return {every[name]: part for name, part in gradient.items()}


def _trainable(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.is_floating_point() and p.requires_grad)
