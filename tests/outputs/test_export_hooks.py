"""Token weights in trainers that are not installed, against recorded copies of their hooks (tests.helpers)."""

import asyncio
import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from schemas.signals import Signal
from tasks.outputs.export.glue import TRAINERS, python_files
from tasks.stages.aggregate.token_rule_fit import RULES, Rule
from tests.helpers import trainer_hooks as recorded

SIGNAL = Signal("large", "none", "reverse_kl")
COEFFICIENTS = {"entropy": 0.6, "log_ratio": 0.5, "divergence": -0.7, "position": 0.9, "probability": -0.8}
OWN, TEACHER = [-0.1, -2.0, -0.7, -0.05], [-0.3, -0.4, -3.0, -0.01]
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports the exported module of a trainer, in the presence of recorded copies of what it imports."""
    rules = {name: Rule(of, 0.7, tuple(COEFFICIENTS[f] for f in of), 1.0) for name, of in RULES.items()}
    for name, module in recorded.recorded_modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(tmp_path))

    def loaded(to: str) -> ModuleType:
        for name, content in python_files(to, "run", SIGNAL, rules, False, 0.6).items():
            (tmp_path / name).write_bytes(content)
        return importlib.import_module(TRAINERS[to].removesuffix(".py"))

    yield loaded
    for name in ("opdscope_rule", "opdscope_replay", *(n.removesuffix(".py") for n in TRAINERS.values())):
        sys.modules.pop(name, None)


def sampled(own: list[float], teacher: list[float]) -> list[float]:
    """Weights by hand of a completion, from log-probabilities of its tokens."""
    out = []
    for t, (a, b) in enumerate(zip(own, teacher, strict=True)):
        ratio, p = b - a, math.exp(a)
        out.append(max(0.0, 0.7 + 0.5 * ratio / (1 + abs(ratio)) + 0.9 * t / len(own) - 0.8 * p))
    return out


def padded(values: list[float], *rest: float) -> torch.Tensor:
    return torch.tensor([[*values, *rest]], dtype=torch.float64)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_verl(load: Load, estimator: str) -> None:
    load("verl")
    settings, loss = recorded.LOSSES[f"opdscope_{estimator}"]
    assert settings.use_estimator and not settings.use_topk
    assert list(inspect.signature(loss).parameters) == list(
        inspect.signature(recorded.compute_forward_kl_topk).parameters
    )
    own = padded(OWN, 0.0).requires_grad_()
    data = {"teacher_logprobs": padded(TEACHER, 0.0).unsqueeze(-1), "response_mask": padded([1.0] * 4, 0.0)}
    found, metrics = loss(config=None, distillation_config=None, model_output={"log_probs": own}, data=data)
    kl = recorded.kl_penalty(padded(OWN), padded(TEACHER), estimator)
    assert found[:, :4].detach().tolist()[0] == pytest.approx((padded(sampled(OWN, TEACHER)) * kl).tolist()[0])
    assert metrics["opdscope/mean_weight"] == pytest.approx(sum(sampled(OWN, TEACHER)) / 4)
    (gradient,) = torch.autograd.grad(found.sum(), own)
    slope = torch.ones(1, 4) if estimator == "k1" else 1 - (padded(TEACHER) - padded(OWN)).exp()
    assert gradient[:, :4].tolist()[0] == pytest.approx((padded(sampled(OWN, TEACHER)) * slope).tolist()[0])
    loss(None, None, {"log_probs": own}, {**data, "temperature": torch.full((1,), 0.6)})
    for other in (1.0, torch.ones(1)):
        with pytest.raises(ValueError, match=r"temperature is 1\.0, but .* rollouts sampled at 0\.6"):
            loss(None, None, {"log_probs": own}, {**data, "temperature": other})
    given = {**data, "token_weight": padded([1.0, 0.0, 2.0, 3.0], 0.0)}
    found, _ = loss(config=None, distillation_config=None, model_output={"log_probs": own}, data=given)
    assert found[:, :4].tolist()[0] == pytest.approx((padded([1.0, 0.0, 2.0, 3.0]) * kl).tolist()[0])


def test_verl_over_the_largest_probabilities(load: Load) -> None:
    load("verl")
    settings, loss = recorded.LOSSES["opdscope_forward_kl_topk"]
    assert settings.use_topk and not settings.use_estimator
    output = {"log_probs": padded(OWN), "distillation_losses": padded([1.0, 2.0, 3.0, 4.0])}
    data = {"response_mask": padded([1.0] * 4)}
    with pytest.raises(ValueError, match="needs data\\['token_weight'\\], or entropies"):
        loss(None, None, output, data)
    entropy = [0.3, 1.5, 0.2, 0.1]
    found, _ = loss(None, None, {**output, "entropy": padded(entropy)}, data)
    w = [0.7 + 0.6 * h / (1 + h) + 0.9 * t / 4 - 0.8 * math.exp(OWN[t]) for t, h in enumerate(entropy)]
    assert found.tolist()[0] == pytest.approx([max(0.0, a) * b for a, b in zip(w, (1.0, 2.0, 3.0, 4.0), strict=True)])


def test_prime_rl(load: Load) -> None:
    glue = load("prime-rl")
    assert issubclass(glue.WeightedOPDAlgorithm, recorded.OPDAlgorithm)
    assert glue.WeightedOPDAlgorithm.action_loss_type == "rl"
    first = recorded.node([False, True, True], OWN[:2], TEACHER[:2])
    asked = recorded.node([False], [], [])
    second = recorded.node([True, True], OWN[2:], TEACHER[2:])
    episode = SimpleNamespace(traces=[SimpleNamespace(nodes=[first, asked, second])])
    asyncio.run(glue.WeightedOPDAlgorithm().score_episode(episode))
    for node, own, teacher in ((first, OWN[:2], TEACHER[:2]), (second, OWN[2:], TEACHER[2:])):
        w = sampled(own, teacher)
        assert node.advantages == pytest.approx([a * (t - o) for a, o, t in zip(w, own, teacher, strict=True)])
    assert asked.advantages is None


def test_miles(load: Load) -> None:
    glue = load("miles")
    assert inspect.signature(glue.post_process_rewards).parameters.keys() == (
        inspect.signature(recorded.post_process_rewards).parameters.keys()
    )
    one, empty = recorded.sample([7, 8], [1, 2, 3, 4], OWN, TEACHER), recorded.sample([7], [], [], [])
    assert glue.post_process_rewards(None, [one, empty]) == ([0.0, 0.0], [0.0, 0.0])
    with pytest.raises(ValueError, match=r"--rollout-temperature is 1\.0, but .* sampled at 0\.6"):
        glue.post_process_rewards(SimpleNamespace(rollout_temperature=1.0), [one])
    kl = [o - t for o, t in zip(OWN, TEACHER, strict=True)]
    assert all(type(value) is float for value in one.opd_reverse_kl)
    assert one.opd_reverse_kl == pytest.approx([a * b for a, b in zip(sampled(OWN, TEACHER), kl, strict=True)])
    assert empty.opd_reverse_kl == []
    vars(glue)["REPLAY"] = {((7, 8), (1, 2, 3, 4)): [1.0, 0.0, 2.0, 3.0]}
    glue.post_process_rewards(None, [one])
    assert one.opd_reverse_kl == pytest.approx([a * b for a, b in zip([1.0, 0.0, 2.0, 3.0], kl, strict=True)])


def test_nemo_rl(load: Load) -> None:
    glue = load("nemo-rl")
    data = {
        "input_ids": torch.tensor([[7, 8, 1, 2, 3, 4, 0], [7, 8, 9, 5, 0, 0, 0]]),
        "input_lengths": torch.tensor([6, 4]),
        "token_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0, 0]]),
    }
    student, teacher = torch.zeros(2, 7), torch.zeros(2, 7)
    student[0, 2:6], teacher[0, 2:6] = torch.tensor(OWN), torch.tensor(TEACHER)
    mask = glue.weighted_mask(data, student, teacher)
    assert mask[0].tolist() == pytest.approx([0, 0, *sampled(OWN, TEACHER), 0])
    assert mask[1].nonzero().tolist() in ([[3]], [])
    replay = {((7, 8), (1, 2, 3, 4)): [1.0, 0.0, 2.0, 3.0]}
    assert glue.replayed_mask(data, replay).tolist() == [[0, 0, 1, 0, 2, 3, 0], [0, 0, 0, 1, 0, 0, 0]]


def test_tinker(load: Load) -> None:
    glue = load("tinker")
    names = inspect.signature(recorded.incorporate_kl_penalty).parameters
    assert list(inspect.signature(glue.incorporate_kl_penalty).parameters) == list(names)
    datum = recorded.datum([0.0, 0.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, *OWN])
    teacher = torch.tensor([0.0, 0.0, *TEACHER])
    told = asyncio.run(glue.incorporate_kl_penalty([datum], [teacher], [0], 2.0, 0.0))
    assert told == {"teacher_kl": 0.0}
    w = sampled(OWN, TEACHER)
    change = [2 * a * (t - o) for a, o, t in zip(w, OWN, TEACHER, strict=True)]
    found = datum.loss_fn_inputs["advantages"].to_torch().tolist()
    assert found == pytest.approx([0.5, 0.5, *(0.5 + c for c in change)], rel=1e-5)
    with pytest.raises(ValueError, match="kl_discount_factor"):
        asyncio.run(glue.incorporate_kl_penalty([datum], [teacher], [0], 2.0, 0.9))
    inputs = glue.replay_inputs({"prompt_ids": [7, 8], "token_ids": [1, 2], "weights": [0.5, 2.0]})
    assert inputs["target_tokens"].to_torch().tolist() == [8, 1, 2]
    assert inputs["weights"].to_torch().tolist() == [0.0, 0.5, 2.0]


def test_replays_are_found_by_their_tokens(load: Load, tmp_path: Path) -> None:
    load("nemo-rl")
    replay = importlib.import_module("opdscope_replay")
    rows = [
        {"prompt_ids": [1], "token_ids": [2, 3], "weights": [1.0, None]},
        {"prompt_ids": [1], "token_ids": [2, 3], "weights": [2.0, 1.0]},
        {"prompt_ids": [9], "token_ids": [2], "weights": [4.0]},
    ]
    (tmp_path / "weights.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert replay.by_tokens() == {((1,), (2, 3)): [1.5, 0.5], ((9,), (2,)): [4.0]}
    assert next(row["weights"] for row in replay.rollouts()) == [1.0, 0.0]
