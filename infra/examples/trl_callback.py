"""Gains of distillation signals while TRL, or any trainer of transformers, trains: `opdscope.score` every N steps.

    callback = GainCallback(questions, judge, {"large": Teacher(large), "self with answer": Teacher(None, with_answer)})
    trainer = GRPOTrainer(..., callbacks=[callback])
    callback.trainer = trainer
    trainer.train()

Every N steps the model in training answers held-out questions; teachers score what it wrote. Logged are, for each
teacher and loss, `gain/<teacher>/<loss>` with the ends of its interval (`_low`, `_high`): what a unit step along that
signal would add to success, to first order, per rollout. A gain whose interval holds 0 may be none at all; one that
falls during training says that the teacher has no more to teach from here.

For one process that holds the whole model; with sharded weights, gather them first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, Trainer, TrainerCallback

import opdscope


class Question(NamedTuple):
    """A held-out question: the student's prompt, and what else judge and teachers need."""

    prompt: str
    answer: str


class Teacher(NamedTuple):
    """A teacher: its model, None for the model in training, and the prompt that it sees, the student's by default."""

    model: Any
    prompt: Callable[[Question], str] = lambda question: question.prompt


class GainCallback(TrainerCallback):
    """Logs the gain of every signal, with its interval, each time a number of steps is done."""

    def __init__(
        self,
        questions: Sequence[Question],
        judge: Callable[[Question, str], float],
        teachers: Mapping[str, Teacher],
        tokenizer: Any,
        *,
        every: int = 50,
        rollouts: int = 8,
        max_tokens: int = 256,
        losses: Sequence[str | Mapping[str, Any]] = ("reverse_kl",),
        seed: int = 0,
    ) -> None:
        """Log nothing yet.

        Args:
            questions: held out; 5 or more that are neither always right nor always wrong give intervals by question.
            judge: the reward of a completion, 1 for a right and 0 for a wrong one.
            teachers: by name; they share the student's tokenizer.
            tokenizer: the student's.
            every: steps between two scores.
            rollouts: completions of a question, 2 or more.
            max_tokens: of a completion.
            losses: as in a configuration of opdscope.
            seed: of sampling and intervals.
        """
        self.questions, self.judge, self.teachers, self.tokenizer = questions, judge, dict(teachers), tokenizer
        self.every, self.rollouts, self.max_tokens, self.losses, self.seed = every, rollouts, max_tokens, losses, seed
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        """Score and log."""
        if state.global_step % self.every == 0:
            due = control.should_log
            # TRL's own `log` would add its metrics here, and forget them
            Trainer.log(self.trainer, self.gains(model))
            control.should_log = due  # the trainer's own log of this step, which that has called off

    def gains(self, model: Any) -> dict[str, float]:
        """Gains of the signals for a model, by the names under which they are logged."""
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng():  # training goes on as if nothing had been sampled
                torch.manual_seed(self.seed)
                table = opdscope.score(self._rollouts(model), self.losses, seed=self.seed)
        finally:
            model.train(training)
        named = {f"gain/{row['teacher']}/{row['loss']}": row for row in table.iter_rows(named=True)}
        ends = {"": "gain", "_low": "gain_low", "_high": "gain_high"}
        return {
            f"{n}{end}": row[column]
            for n, row in named.items()
            for end, column in ends.items()
            if row[column] is not None
        }

    def _rollouts(self, model: Any) -> Iterator[opdscope.Rollouts]:
        for question in self.questions:
            completions = self._completions(model, self._ids(question.prompt))
            texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in completions]
            yield opdscope.Rollouts(
                tokens=completions,
                rewards=[self.judge(question, text) for text in texts],
                student=Rows(model, self._ids(question.prompt), completions, len(self.tokenizer)),
                teachers={
                    name: Rows(
                        teacher.model or model, self._ids(teacher.prompt(question)), completions, len(self.tokenizer)
                    )
                    for name, teacher in self.teachers.items()
                },
            )

    def _ids(self, prompt: str) -> list[int]:
        """Tokens of a prompt, with those that the tokenizer adds to plain text, as in TRL."""
        ids: list[int] = self.tokenizer(text=prompt)["input_ids"]
        return ids

    def _completions(self, model: Any, prompt: Sequence[int]) -> list[list[int]]:
        """Completions sampled from the model's own distribution, each with the token that ends it."""
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        given = torch.tensor([prompt], device=model.device)
        beyond = list(range(len(self.tokenizer), model.config.get_text_config().vocab_size))  # logits of no token
        settings = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            suppress_tokens=beyond or None,
            num_return_sequences=self.rollouts,
            max_new_tokens=self.max_tokens,
            eos_token_id=end,
            pad_token_id=end if pad is None else pad,
        )
        own = model.generation_config
        model.generation_config = settings  # `generate` takes from there what it is not told, penalties for one
        try:
            sampled = model.generate(given, attention_mask=torch.ones_like(given))[:, len(prompt) :].tolist()
        finally:
            model.generation_config = own
        return [ids[: ids.index(end) + 1] if end in ids else ids for ids in sampled]


class Rows(Sequence[torch.Tensor]):
    """A model's log-probabilities at the tokens of completions, [T, V] each, computed as they are asked for."""

    def __init__(self, model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]], tokens: int) -> None:
        """Compute nothing yet.

        Args:
            tokens: of the tokenizer; many models have more logits.
        """
        self.model, self.prompt, self.completions, self.tokens = model, list(prompt), completions, tokens

    def __len__(self) -> int:
        return len(self.completions)

    def __getitem__(self, r: Any) -> Any:
        ids = torch.tensor([[*self.prompt, *self.completions[r]]], device=self.model.device)
        logits = self.model(ids).logits[0, len(self.prompt) - 1 : -1, : self.tokens]
        return torch.log_softmax(logits.float(), dim=-1)
