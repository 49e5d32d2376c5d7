"""The examples, with the trainers that they are for."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from infra.examples.trl_callback import GainCallback, Question, Teacher
from tasks.demo.chains import draw_questions


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
