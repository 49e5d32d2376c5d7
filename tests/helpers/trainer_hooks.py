"""Recorded copies of hooks of trainers that are not installed: their names and parameters, read in their repositories.

They stand in for the trainers where exported modules are imported; what they do is written here, by what the trainers
document. Read on 28 November 2026, at these commits:

* verl-project/verl 1dda039 (22 August 2026): verl/trainer/distillation/losses.py, verl/trainer/ppo/core_algos.py,
  verl/workers/utils/padding.py
* PrimeIntellect-ai/prime-rl 559b447 (21 August 2026): src/prime_rl/orchestrator/algo/{base,opd,routing}.py, with
  PrimeIntellect-ai/verifiers a60a606 (21 August 2026): verifiers/v1/graph.py
* radixark/miles 31f1ca9 (21 August 2026): miles/rollout/on_policy_distillation.py, miles/utils/types.py
* NVIDIA-NeMo/RL 7ea279a (22 August 2026): nemo_rl/algorithms/distillation.py, nemo_rl/models/policy/lm_policy.py
* thinking-machines-lab/tinker-cookbook 9dfcc3a (19 August 2026): tinker_cookbook/distillation/train_on_policy.py
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

LOSSES: dict[str, tuple[Any, Callable[..., Any]]] = {}
"""verl's registry: settings and function of each loss."""


@dataclass
class DistillationLossSettings:
    """verl's."""

    names: list[str] = field(default_factory=list)
    use_topk: bool = False
    use_estimator: bool = False


def register_distillation_loss(loss_settings: DistillationLossSettings) -> Callable[..., Any]:
    """verl's decorator."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in loss_settings.names:
            LOSSES[name] = loss_settings, function
        return function

    return register


def compute_forward_kl_topk(
    config: Any, distillation_config: Any, model_output: Any, data: Any
) -> tuple[Tensor, dict[str, Any]]:
    """verl's: the losses were computed with the logits."""
    return no_padding_2_padding(model_output["distillation_losses"], data), {}


def kl_penalty(logprob: Tensor, ref_logprob: Tensor, kl_penalty: str) -> Tensor:
    """verl's estimators of the reverse KL, k1 and k3 of http://joschu.net/blog/kl-approx.html."""
    ratio = ref_logprob - logprob
    return -ratio if kl_penalty == "k1" else ratio.exp() - ratio - 1


def no_padding_2_padding(tensor: Tensor, data: Any) -> Tensor:
    """verl's, for tensors that are padded already."""
    return tensor


class OPDAlgorithm:
    """prime-rl's: attaches a teacher's log-probabilities to the sampled tokens."""

    action_loss_type = "ref_kl"

    async def score_episode(self, episode: Any) -> None:
        for trace in episode.traces:
            for node in trace.nodes:
                if any(node.mask):
                    node.reference_logprobs = list(node.given)


def iter_trainable_traces(episodes: list[Any]) -> Iterator[tuple[Any, Any]]:
    """prime-rl's."""
    for episode in episodes:
        for trace in episode.traces:
            yield episode, trace


def assign_advantages(trace: Any, values: float | list[float]) -> None:
    """prime-rl's: a value for each sampled token of the trace, in order."""
    assert isinstance(values, list)
    left = list(values)
    for node in trace.nodes:
        if any(node.mask):
            node.advantages, left = left[: sum(node.mask)], left[sum(node.mask) :]
    assert not left


def post_process_rewards(args: Any, samples: list[Any], **kwargs: Any) -> tuple[list[float], list[float]]:
    """miles': attaches a teacher's log-probabilities, as tensors."""
    for sample in samples:
        sample.teacher_log_probs = torch.tensor(sample.reward["teacher"])
    return [0.0] * len(samples), [0.0] * len(samples)


class TensorData:
    """tinker's."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    @classmethod
    def from_torch(cls, values: Tensor) -> "TensorData":
        return cls(values)

    def to_torch(self) -> Tensor:
        return self._values


async def incorporate_kl_penalty(
    data_D: list[Any],
    teacher_clients_D: list[Any],
    dataset_indices_D: list[int],
    kl_penalty_coef: float,
    kl_discount_factor: float,
) -> dict[str, float]:
    """tinker's cookbook's: adds the coefficient times log T - log P to the advantages of sampled tokens."""
    for datum, teacher in zip(data_D, teacher_clients_D, strict=True):
        inputs = datum.loss_fn_inputs
        change = kl_penalty_coef * inputs["mask"].to_torch() * (teacher - inputs["logprobs"].to_torch())
        inputs["advantages"] = TensorData(inputs["advantages"].to_torch() + change)
    return {"teacher_kl": 0.0}


RECORDED: dict[str, dict[str, Any]] = {
    "verl.trainer.distillation.losses": {
        "DistillationLossSettings": DistillationLossSettings,
        "compute_forward_kl_topk": compute_forward_kl_topk,
        "register_distillation_loss": register_distillation_loss,
    },
    "verl.trainer.ppo.core_algos": {"kl_penalty": kl_penalty},
    "verl.workers.utils.padding": {"no_padding_2_padding": no_padding_2_padding},
    "prime_rl.orchestrator.algo.base": {"iter_trainable_traces": iter_trainable_traces},
    "prime_rl.orchestrator.algo.opd": {"OPDAlgorithm": OPDAlgorithm},
    "prime_rl.orchestrator.algo.routing": {"assign_advantages": assign_advantages},
    "miles.rollout.on_policy_distillation": {"post_process_rewards": post_process_rewards},
    "tinker": {"TensorData": TensorData},
    "tinker_cookbook.distillation.train_on_policy": {"incorporate_kl_penalty": incorporate_kl_penalty},
}


def recorded_modules() -> dict[str, ModuleType]:
    """Modules with these names and what they hold, with the packages around them."""
    modules: dict[str, ModuleType] = {}
    for name, content in RECORDED.items():
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            part = ".".join(parts[:i])
            if part not in modules:
                modules[part] = ModuleType(part)
                modules[part].__path__ = []
                if i > 1:
                    setattr(modules[".".join(parts[: i - 1])], parts[i - 1], modules[part])
        vars(modules[name]).update(content)
    assert not set(modules) & set(sys.modules), "a trainer is installed: test with it"
    return modules


def sample(prompt: list[int], response: list[int], own: list[float], teacher: list[float]) -> SimpleNamespace:
    """A miles `Sample`."""
    return SimpleNamespace(
        tokens=[*prompt, *response],
        response_length=len(response),
        rollout_log_probs=own,
        reward={"teacher": teacher},
        teacher_log_probs=None,
        opd_reverse_kl=None,
    )


def node(mask: list[bool], own: list[float], teacher: list[float]) -> SimpleNamespace:
    """A node of a verifiers trace."""
    return SimpleNamespace(mask=mask, token_ids=list(range(len(mask))), logprobs=own, given=teacher, advantages=None)


def datum(mask: list[float], own: list[float]) -> SimpleNamespace:
    """A tinker `Datum`."""
    inputs = {"mask": mask, "logprobs": own, "advantages": [0.5] * len(mask)}
    return SimpleNamespace(loss_fn_inputs={n: TensorData(torch.tensor(v)) for n, v in inputs.items()})
