"""The examples, with the trainers that they are for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset  # type: ignore[import-untyped]
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from infra.examples.trl_callback import GainCallback, Question, Teacher
from tasks.demo.chains import draw_questions
from tasks.demo.train import make_tokenizer


def test_gains_are_logged_while_trl_trains(models: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    rows = draw_questions(6, 0)
    questions = [Question(row["question"], row["answer"]) for row in rows]

    def judge(question: Question, text: str) -> float:
        return float("1" in text)

    def reward(prompts: list[str], completions: list[str], **more: Any) -> list[float | None]:
        return [judge(questions[0], text) for text in completions]

    student = AutoModelForCausalLM.from_pretrained(models / "student")
    teachers = {
        "large": Teacher(AutoModelForCausalLM.from_pretrained(models / "teacher")),
        "self": Teacher(None, lambda question: f"{question.prompt} answer {question.answer}"),
    }
    options: dict[str, Any] = {"every": 2, "rollouts": 4, "max_tokens": 8, "losses": ["reverse_kl", "jsd"]}
    callback = GainCallback(questions, judge, teachers, tokenizer, **options)
    settings = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        num_generations=4,
        report_to=[],
        use_cpu=True,
        max_completion_length=8,
        logging_steps=1,
        save_strategy="no",
        bf16=False,
        disable_tqdm=True,
        learning_rate=1e-3,
    )
    trainer = GRPOTrainer(
        student,
        reward,
        settings,
        Dataset.from_list([{"prompt": q.prompt} for q in questions]),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    callback.trainer = trainer
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if any(name.startswith("gain/") for name in entry)]
    assert [entry["step"] for entry in logged] == [2]
    for signal in ("large/reverse_kl", "large/jsd", "self/reverse_kl", "self/jsd"):
        gain, low, high = (logged[0][f"gain/{signal}{end}"] for end in ("", "_low", "_high"))
        assert low < gain < high
    assert (
        sum("frac_reward_zero_std" in entry for entry in trainer.state.log_history) == 3
        and "frac_reward_zero_std" not in logged[0]
    )
    state = torch.get_rng_state()
    assert callback.gains(student) == callback.gains(student) and torch.equal(torch.get_rng_state(), state)
    assert student.training


@pytest.mark.parametrize("told", [{"repetition_penalty": 1.3}, {"min_p": 0.3}, {"bad_words_ids": [[5], [6], [7]]}])
def test_rollouts_are_sampled_from_the_models_own_distribution(
    models: Path, tokenizer: PreTrainedTokenizerFast, told: dict[str, Any]
) -> None:
    student: Any = AutoModelForCausalLM.from_pretrained(models / "student").eval()
    callback = GainCallback([], lambda question, text: 0.0, {}, tokenizer, rollouts=16, max_tokens=24)
    torch.manual_seed(0)
    plain = callback._completions(student, callback._ids("add 3 5"))
    for name, value in told.items():
        setattr(student.generation_config, name, value)
    torch.manual_seed(0)
    assert callback._completions(student, callback._ids("add 3 5")) == plain
    assert {name: getattr(student.generation_config, name) for name in told} == told


def test_prompts_are_tokenised_as_trl_does(models: Path, tmp_path: Path) -> None:
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    tokenizer = make_tokenizer()
    first = tokenizer.convert_ids_to_tokens(7)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 7)])
    callback = GainCallback([], lambda question, text: 0.0, {}, tokenizer)

    def reward(prompts: list[str], completions: list[str], **more: Any) -> list[float | None]:
        return [0.0] * len(completions)

    student = AutoModelForCausalLM.from_pretrained(models / "student")
    options: dict[str, Any] = {"output_dir": str(tmp_path), "report_to": [], "use_cpu": True, "bf16": False}
    rows = Dataset.from_list([{"prompt": "add 3 5"}])
    trainer = GRPOTrainer(student, reward, GRPOConfig(**options), rows, processing_class=tokenizer)
    ids = callback._ids("add 3 5")
    assert ids[0] == 7 and trainer._tokenize_prompts(["add 3 5"])[0] == [ids]
