"""Token weights in TRL's own trainers: a few real steps, whose losses equal weighting by hand."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
import torch
from datasets import Dataset  # type: ignore[import-untyped]
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from schemas.signals import Signal
from tasks.outputs.export.glue import python_files
from tasks.outputs.export.make import export_run
from tasks.stages.aggregate.token_rule_fit import RULES, Rule
from tests.helpers.finished import finished_run
from tests.helpers.small import small_settings

SIGNAL = Signal("self", "answer", "reverse_kl")
COEFFICIENTS = {"entropy": 0.6, "log_ratio": 0.5, "divergence": -0.7, "position": 0.9, "probability": -0.8}
PROMPTS = ["add 3 5", "add 4 4", "times 2 3", "add 1 9"]
MODULES = ("opdscope_rule", "opdscope_replay", "opdscope_trl")


def rules(constant: float = 0.7) -> dict[str, Rule]:
    return {name: Rule(of, constant, tuple(COEFFICIENTS[f] for f in of), 1.0) for name, of in RULES.items()}


@pytest.fixture(params=[1.0])
def glue(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The exported module for TRL of a run at a temperature, imported as a user would."""
    for name, content in python_files("trl", "small", SIGNAL, rules(), False, request.param).items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("opdscope_trl")
    for name in MODULES:
        sys.modules.pop(name, None)


def columns(student: Tensor, teacher: Tensor, ids: Tensor, temperature: float) -> dict[str, list[float]]:
    """What the rule looks at, of one completion, from the models' own logits [T, V]; the student samples tempered."""
    p, log_p, log_t = student.softmax(-1), student.log_softmax(-1), teacher.log_softmax(-1)
    sampled = (student / temperature).log_softmax(-1)
    own = sampled[torch.arange(len(ids)), ids]
    return {
        "entropy": [float(-(row.exp() * row).sum()) for row in sampled],
        "log_ratio": [float(log_t[t, y] - own[t]) for t, y in enumerate(ids)],
        "divergence": [float((p[t] * (log_p[t] - log_t[t])).sum()) for t in range(len(ids))],
        "position": [t / len(ids) for t in range(len(ids))],
        "probability": [float(own[t].exp()) for t in range(len(ids))],
    }


def by_hand(values: dict[str, list[float]]) -> list[float]:
    """Weights, from the formula alone."""
    out = []
    for row in zip(*values.values(), strict=True):
        x = dict(zip(values, row, strict=True))
        squashed = {n: v if n in ("position", "probability") else v / (1 + abs(v)) for n, v in x.items()}
        out.append(min(10.0, max(0.0, 0.7 + sum(COEFFICIENTS[n] * v for n, v in squashed.items()))))
    return out


def logits_of(model: Any, prompt: Tensor, completion: Tensor) -> Tensor:
    ids = torch.cat([prompt, completion])[None]
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids).logits[0]
    return logits[len(prompt) - 1 : -1].double()


def trainer(kind: Any, config: Any, models: Path, folder: Path, rows: dict[str, list[Any]], **given: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(models / "student")
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(models / "student", dtype=torch.float32)
    arguments = config(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=12,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        seed=3,
        disable_tqdm=True,
        **given.pop("arguments", {}),
    )
    return kind(model=model, args=arguments, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer, **given)


class EveryRollout:
    """Weights that a replay has for each rollout: .1, .2 and so on."""

    def get(self, key: tuple[tuple[int, ...], tuple[int, ...]]) -> list[float]:
        assert key[0] and key[1]
        return [0.1 * (t + 1) for t in range(len(key[1]))]


@pytest.mark.parametrize(
    ("glue", "temperature", "replay"),
    [(1.0, 1.0, None), (1.0, 1.0, EveryRollout()), (0.6, 0.6, None), (0.6, 0.9, None)],
    indirect=["glue"],
)
def test_sdft_weights_each_token(
    glue: ModuleType, models: Path, tmp_path: Path, temperature: float, replay: EveryRollout | None
) -> None:
    from trl.experimental.sdft import SDFTConfig

    seen: list[tuple[float, float, float]] = []

    class Watched(glue.WeightedSDFTTrainer):  # type: ignore[name-defined, misc]
        def compute_loss(self, model: Any, inputs: Any, **more: Any) -> Tensor:
            loss: Tensor = super().compute_loss(model, inputs, **more)
            model.eval()
            seen.append((loss.item(), expected(model, inputs, True), expected(model, inputs, False)))
            model.train()
            return loss

    def expected(model: Any, inputs: Any, weighted: bool) -> float:
        each = []
        for i, mask in enumerate(inputs["completion_mask"].bool()):
            completion = inputs["completion_ids"][i][mask]
            student = logits_of(model, inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()], completion)
            ids, attention = inputs["teacher_input_ids"][i], inputs["teacher_attention_mask"][i].bool()
            teacher = logits_of(model, ids[attention][: -len(completion)], completion)
            w = by_hand(columns(student, teacher, completion, importlib.import_module("opdscope_rule").TEMPERATURE))
            log_p, log_t = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
            kl = (log_p.exp() * (log_p - log_t)).sum(-1)
            if replay is not None:
                w = [0.1 * (t + 1) for t in range(len(w))]
            each.append(sum(a * float(b) for a, b in zip(w if weighted else [1.0] * len(w), kl, strict=True)) / len(w))
        return sum(each) / len(each)

    rows = {"prompt": PROMPTS, "privileged_context": ["8", "8", "6", "10"]}
    told = {
        "distillation_mode": "full_logits",
        "distillation_alpha": 1.0,
        "distillation_is_clip": None,
        "teacher_model_kind": "live",
        "num_loss_tokens_to_skip": 0,
        "temperature": temperature,
    }
    job = trainer(Watched, SDFTConfig, models, tmp_path / "run", rows, arguments=told)
    job.replay = replay
    before = [p.detach().clone() for p in job.model.parameters()]
    job.train()
    assert any((a != b).any() for a, b in zip(before, job.model.parameters(), strict=True))
    assert len(seen) == 2
    for loss, hand, unweighted in seen:
        assert loss > 0 and loss == pytest.approx(hand, rel=2e-5)
        assert loss != pytest.approx(unweighted, rel=1e-2)


@pytest.mark.parametrize(("glue", "temperature"), [(1.0, 1.0), (0.6, 0.8)], indirect=["glue"])
def test_sdpo_weights_each_token_of_its_distillation(
    glue: ModuleType, models: Path, tmp_path: Path, temperature: float
) -> None:
    from trl.experimental.sdpo import SDPOConfig

    seen: list[tuple[float, float]] = []

    class Watched(glue.WeightedSDPOTrainer):  # type: ignore[name-defined, misc]
        def _compute_self_distillation_loss(self, model: Any, inputs: Any, distillation_logits: Any) -> Tensor:
            loss: Tensor = super()._compute_self_distillation_loss(model, inputs, distillation_logits)
            each = []
            for i, mask in enumerate(inputs["completion_mask"].bool()):
                student, teacher = (
                    logits[i][mask].detach().double()
                    for logits in (distillation_logits.student_logits, distillation_logits.teacher_logits)
                )
                taught = distillation_logits.loss_mask[i].sum() > 0
                kl = (student.softmax(-1) * (student.log_softmax(-1) - teacher.log_softmax(-1))).sum(-1)
                at = importlib.import_module("opdscope_rule").TEMPERATURE
                ids = inputs["completion_ids"][i][mask]
                w = by_hand(columns(student * temperature, teacher * temperature, ids, at))  # TRL has divided them
                each.append(sum(a * float(b) for a, b in zip(w, kl, strict=True)) / len(w) if taught else 0.0)
            seen.append((loss.item(), sum(each) / len(each)))
            return loss

    def kinds(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(i % 2) for i, _ in enumerate(completion_ids)]  # one of each pair is a demonstration

    told = {
        "distillation_mode": "full_logits",
        "distillation_alpha": 1.0,
        "distillation_is_clip": None,
        "dont_reprompt_on_self_success": False,
        "temperature": temperature,
    }
    rows = {"prompt": [[{"role": "user", "content": prompt}] for prompt in PROMPTS]}
    job = trainer(Watched, SDPOConfig, models, tmp_path / "run", rows, arguments=told, reward_funcs=kinds)
    job.train()
    assert seen and any(loss > 0 for loss, _ in seen)
    for loss, hand in seen:
        assert loss == pytest.approx(hand, rel=2e-5, abs=1e-9)


@pytest.mark.parametrize(("glue", "temperature"), [(1.0, 1.0), (0.6, 0.6)], indirect=["glue"])
def test_grpo_weights_each_advantage(glue: ModuleType, models: Path, tmp_path: Path, temperature: float) -> None:
    from trl.trainer.grpo_config import GRPOConfig

    seen: list[tuple[float, float]] = []

    def kinds(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(len(set(ids))) for ids in completion_ids]

    class Watched(glue.WeightedGRPOTrainer):  # type: ignore[name-defined, misc]
        def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
            loss: Tensor = super()._compute_loss(model, inputs)
            model.eval()
            seen.append((loss.item(), expected(model, inputs)))
            model.train()
            return loss

    def expected(model: Any, inputs: Any) -> float:
        prompts = [
            tuple(p[m.bool()].tolist()) for p, m in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)
        ]
        texts = [c[m.bool()] for c, m in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)]
        rewards = kinds([t.tolist() for t in texts])
        each = []
        for prompt, text, reward in zip(prompts, texts, rewards, strict=True):
            group = [r for p, r in zip(prompts, rewards, strict=True) if p == prompt]
            student = logits_of(model, torch.tensor(prompt), text)
            values = columns(student, student, text, temperature)
            w = by_hand({name: values[name] for name in RULES["student"]})
            each.append(-(reward - sum(group) / len(group)) * sum(w) / len(w))
        return sum(each) / len(each)

    told = {"loss_type": "grpo", "scale_rewards": "none", "beta": 0.0, "temperature": temperature}
    job = trainer(
        Watched, GRPOConfig, models, tmp_path / "run", {"prompt": PROMPTS}, arguments=told, reward_funcs=kinds
    )
    job.train()
    assert len(seen) == 2 and any(abs(loss) > 1e-3 for loss, _ in seen)
    for loss, hand in seen:
        assert loss == pytest.approx(hand, rel=2e-4, abs=1e-5)


@pytest.mark.parametrize("glue", [0.6], indirect=True)
def test_grpo_at_another_temperature_is_refused(glue: ModuleType, models: Path, tmp_path: Path) -> None:
    from trl.trainer.grpo_config import GRPOConfig

    with pytest.raises(
        ValueError, match=r"temperature is 1\.0, but the rule is for rollouts sampled at 0\.6: set that"
    ):
        trainer(
            glue.WeightedGRPOTrainer,
            GRPOConfig,
            models,
            tmp_path / "run",
            {"prompt": PROMPTS},
            reward_funcs=lambda completion_ids, **_: [0.0] * len(completion_ids),
        )


def test_features_are_those_of_the_fit(models: Path, questions: Path, tmp_path: Path) -> None:
    settings = small_settings(models, questions, tmp_path / "store")
    settings["sampling"] = {**settings["sampling"], "temperature": 0.6}
    finished_run(settings | {"losses": ["reverse_kl"]})
    told = export_run(str(tmp_path / "store"), "small", "trl", signal="large/none/reverse_kl", output=tmp_path / "out")
    assert told["temperature"] == json.loads((tmp_path / "out/rule.json").read_text())["temperature"] == 0.6
    assert "\nTEMPERATURE = 0.6\n" in (tmp_path / "out/opdscope_rule.py").read_text()
    table = pl.read_parquet(tmp_path / "out/weights.parquet")
    prompts = {
        row["question_id"]: row["prompt_ids"] for row in map(json.loads, (tmp_path / "out/weights.jsonl").open())
    }
    student, teacher = (AutoModelForCausalLM.from_pretrained(models / name) for name in ("student", "teacher"))
    tokens = len(AutoTokenizer.from_pretrained(models / "student"))
    names = {"entropy": "entropy", "log_ratio": "log_ratio", "divergence": "divergence", "probability": "student_prob"}
    for (question, _), part in table.group_by("question_id", "rollout_id", maintain_order=True):
        prompt, text = torch.tensor(prompts[str(question)]), torch.tensor(part["token_id"].to_list())
        own, taught = (logits_of(model, prompt, text)[:, :tokens] for model in (student, teacher))
        expected = columns(own, taught, text, 0.6)
        for feature, column in names.items():
            assert part[column].to_list() == pytest.approx(expected[feature], abs=1e-4), feature
