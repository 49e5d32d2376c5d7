"""The losses of trainers, under their names: what each computes by its defaults, as its source says."""

from typing import Any, NamedTuple


class Trainer(NamedTuple):
    """A trainer's loss.

    Attributes:
        loss: settings of `schemas.config.losses`.
        source: package or repository with its version, and the function.
        note: what differs, if anything.
    """

    loss: dict[str, Any]
    source: str
    note: str = ""


_JSD: dict[str, Any] = {"kind": "jsd", "beta": 0.5}
_POLICY_GRADIENT = {
    "kind": "top_k",
    "of": {"kind": "reverse_kl"},
    "k": 16,
    "support": "student",
    "rest": "renormalised",
    "stop_gradient": True,
}

TRAINERS: dict[str, Trainer] = {
    "trl_gkd": Trainer(_JSD, "TRL 1.16, GKDTrainer.generalized_jsd_loss", "at temperature 1; its default is .9"),
    "trl_sdft": Trainer(
        {"kind": "top_k", "of": _JSD, "k": 100, "support": "student", "rest": "renormalised"},
        "TRL 1.16, experimental.sdft.loss_utils.compute_topk_self_distillation_loss",
        "with distillation_add_tail, rest is bucket",
    ),
    "trl_sdpo": Trainer(
        {"kind": "sampled_token"},
        "TRL 1.16, experimental.sdpo.loss_utils.compute_sampled_token_self_distillation_loss",
    ),
    "verl_topk": Trainer(
        {
            "kind": "top_k",
            "of": {"kind": "forward_kl"},
            "k": 32,
            "support": "teacher",
            "rest": "dropped",
            "floor": True,
        },
        "verl, trainer/distillation/losses.py:compute_forward_kl_topk (August 2026)",
    ),
    "verl_k3": Trainer(
        {"kind": "sampled_token", "of": {"kind": "forward_kl"}, "clip": 10.0},
        "verl, kl_penalty k3 (August 2026)",
        "back-propagated",
    ),
    "nemo_rl": Trainer(
        {"kind": "top_k", "of": {"kind": "mixed_kl"}, "k": 64, "support": "teacher", "rest": "renormalised"},
        "NeMo-RL, DistillationLossFn (August 2026)",
        "with zero_outside_topk, rest is zeroed",
    ),
    "ms_swift": Trainer(
        {"kind": "top_k", "of": _JSD, "k": 64, "support": "teacher", "rest": "renormalised"},
        "ms-swift, GKD with top-k logits (August 2026)",
    ),
    "tinker": Trainer(
        {"kind": "top_k", "of": {"kind": "forward_kl"}, "k": 20, "support": "teacher", "rest": "teacher_renormalised"},
        "tinker cookbook, SDFT (August 2026)",
    ),
    "thunlp": Trainer(_POLICY_GRADIENT, "thunlp/OPD (August 2026)"),
    "miles": Trainer(_POLICY_GRADIENT, "miles, OPD (August 2026)", "its option clips a forward KL at .05 a token"),
    "slime": Trainer({"kind": "sampled_token"}, "slime, OPD advantage log T - log P (August 2026)"),
    "prime_rl": Trainer({"kind": "sampled_token"}, "prime-rl, ref_kl advantage log T - log P (August 2026)"),
}
"""By name, which stands for the loss in `losses`, alone or as `kind` with some settings changed."""


def expanded(loss: object) -> object:
    """The settings that a trainer's name stands for, under that name unless some are changed; else as it is."""
    kind = loss.get("kind") if isinstance(loss, dict) else loss
    if not isinstance(kind, str) or kind not in TRAINERS:
        return loss
    changes = {name: value for name, value in loss.items() if name != "kind"} if isinstance(loss, dict) else {}
    return {**TRAINERS[kind].loss, **(changes or {"name": kind})}
