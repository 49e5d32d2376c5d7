"""The student that is trained: its weights, its optimiser, and what is kept of both."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import Parameter

from schemas.arrays import AnyArray
from schemas.config import AdamW, Engine, Lora, NormalisedSteps, RunConfig, ScoringSettings, TransformersEngine
from tasks.engines.protocol import EngineError
from tasks.engines.transformers.loading import load_transformers, vocabulary_size
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.engines.transformers.scorer import TransformersScorer
from tasks.validation.optimisers import optimiser


class Student:
    """A copy of the student with weights of its own, which starts anew for each training.

    Attributes:
        scorer: its distributions and gradients.
        parameters: those that are trained, by name.
    """

    def __init__(self, config: RunConfig, tokenizer: object, ends: frozenset[int]) -> None:
        """Load it; all parameters are trained in float32, adapters beside weights of any kind.

        Raises:
            EngineError: it cannot be loaded, or has no weights with gradients.
        """
        lora, model = config.validation.lora, config.model
        settings = _settings(config.engine)
        model = model if lora is not None else model.model_copy(update={"dtype": "float32"})
        self.scorer: TransformersScorer = load_transformers(model, settings, vocabulary_size(tokenizer))
        if lora is not None:
            _add_adapters(self.scorer, lora)
        self.parameters = {n: p for n, p in self.scorer.model.named_parameters() if p.requires_grad}
        if not any(p.is_floating_point() for p in self.parameters.values()):
            raise EngineError(f"{model.path!r} has no weights with gradients; train adapters, or one not quantised")
        self._sampler = TransformersSampler(self.scorer, ends, settings)
        self._initial = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._optimiser: torch.optim.Optimizer | None = None

    @property
    def sampler(self) -> TransformersSampler:
        """Its sampler; nothing of other weights is cached."""
        self._sampler.release()
        return self._sampler

    @property
    def decoded(self) -> int:
        """Tokens sampled so far."""
        return self._sampler.decoded

    @torch.no_grad()
    def start(self, settings: AdamW | NormalisedSteps | None) -> None:
        """Begin a training with the initial weights; None: there is none."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self._initial[name])
        self._optimiser = None if settings is None else optimiser(settings, list(self.parameters.values()))

    def step(self, gradients: Mapping[Parameter, Tensor]) -> None:
        """One update, by gradients of the loss."""
        if self._optimiser is None:
            raise ValueError("no training has begun")
        for parameter in self.parameters.values():
            parameter.grad = gradients.get(parameter)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def state(self) -> AnyArray:
        """Weights and the optimiser's state as a safetensors file, uint8 [B]."""
        tensors = dict(self._state())
        return np.frombuffer(
            save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}), np.uint8
        )

    @torch.no_grad()
    def restore(self, state: AnyArray) -> None:
        """Go on from a state."""
        if self._optimiser is None:
            raise ValueError("no training has begun")
        saved = load(state.tobytes())
        for name, parameter in self.parameters.items():
            parameter.copy_(saved[name])
            of_parameter = {key.rpartition(_OF)[2]: t for key, t in saved.items() if key.startswith(f"{name}{_OF}")}
            if of_parameter:
                self._optimiser.state[parameter] = {
                    key: t if t.ndim == 0 else t.to(parameter.device) for key, t in of_parameter.items()
                }

    def _state(self) -> Iterable[tuple[str, Tensor]]:
        for name, parameter in self.parameters.items():
            yield name, parameter
            state = {} if self._optimiser is None else self._optimiser.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor):
                    yield f"{name}{_OF}{key}", value


def _settings(engine: Engine) -> TransformersEngine:
    """The student is trained, and sampled from, with transformers, whatever the engine of the run."""
    if isinstance(engine, TransformersEngine):
        return engine
    return TransformersEngine(**engine.model_dump(include=set(ScoringSettings.model_fields)))


_OF = "|"
"""Between the name of a parameter and that of its state."""


def _add_adapters(scorer: TransformersScorer, lora: Lora) -> None:
    """Put adapters into a model; its other weights are not trained.

    Raises:
        EngineError: peft is not installed, or the model has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise EngineError("validation.lora needs opdscope[lora]") from error
    torch.manual_seed(0)
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets or "all-linear")
    try:
        inject_adapter_in_model(settings, scorer.model)
    except ValueError as error:
        raise EngineError(f"validation.lora: {error}") from error
    if scorer.model.get_output_embeddings() is not scorer.head:
        raise EngineError(f"validation.lora.targets: {lora.targets} have the output head, which cannot be adapted")
    for parameter in scorer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small updates of narrow weights are lost
