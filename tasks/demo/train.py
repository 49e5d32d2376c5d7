"""Trains the demo's models from scratch, on any CPU, in about two minutes.

Half of the prompts contain a hint (answer, solution, summary, wrong attempt). The student's completions have slips, and
fewer of them the more informative the hint is. So, like a real student, it is uncertain without a hint and can be
corrected by one. The teacher's completions have no slips. A third model is the student, trained on to copy: shown the
answer, it writes its usual steps, slips and all, and then states what it was shown.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from schemas.config.templates import rendered
from tasks.demo.chains import CONTEXTS, SPECIAL, VOCABULARY, draw_chain

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user> {{ m['content'] }} "
    "{% elif m['role'] == 'assistant' %}<assistant> {{ m['content'] }} <eos> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SLIP_WITH_HINT = {"none": 1.0, "wrong_attempt": 0.7, "answer": 0.4, "summary": 0.1, "solution": 0.0}
"""Factor on the slip probability under each hint."""
PLAIN_WHILE_COPYING = 0.3
"""Share of the questions without the answer in what the copying model learns from."""
BATCH = 32
EVALUATED = 400
EVERY = 100


@dataclass(frozen=True)
class Recipe:
    """Architecture and training data of one model; training stops at the accuracies `plain` (no hint) and `hinted`.

    `copies` names a model that it starts from, and learns to copy the shown answer; it then takes just so many steps.
    """

    name: str
    hidden: int
    layers: int
    slip: float
    learning_rate: float
    plain: float
    hinted: float
    steps: int  # typical number, to estimate the time left
    seconds: float
    seed: int
    copies: str | None = None


def recipes(seed: int, seconds: float, width: int) -> list[Recipe]:
    """The demo's student, of a hidden size, its teacher, and the one that copies."""
    return [
        student(seed, seconds, width),
        Recipe("teacher", 96, 3, 0.0, 3e-3, plain=0.95, hinted=0.9, steps=500, seconds=seconds, seed=seed),
        Recipe("copying", width, 2, 0.2, 1e-3, 0.0, 0.0, steps=400, seconds=seconds, seed=seed, copies="student"),
    ]


def student(seed: int, seconds: float, width: int) -> Recipe:
    """A student of a hidden size; a small one takes more steps to be as good."""
    steps = 700 if width >= 64 else 3500
    return Recipe("student", width, 2, 0.2, 4e-3, plain=0.35, hinted=0.85, steps=steps, seconds=seconds, seed=seed)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a chat template; it also defines the order of the vocabulary."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(VOCABULARY))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[1], model_max_length=512
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def train(recipe: Recipe, folder: Path, report_progress: Callable[[int], None]) -> dict[str, Any]:
    """Train one model and save it as an ordinary model folder.

    Args:
        report_progress: called with the number of steps since the last call.

    Returns:
        accuracies by context, steps and seconds.

    Raises:
        RuntimeError: the required accuracies were not reached in time.
    """
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    rng = random.Random(f"{recipe.name} {recipe.seed}")  # noqa: S311 - not for security
    tokenizer = make_tokenizer()
    model = _new_model(recipe, tokenizer) if recipe.copies is None else _loaded(folder.with_name(recipe.copies))
    averaged: Any = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, 1.0, total_iters=50)
    start, step, accuracy = time.monotonic(), 0, {"none": 0.0}
    while time.monotonic() - start < recipe.seconds:
        inputs, labels = _batch(rng, tokenizer, recipe)
        loss = model(input_ids=inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warmup.step()
        averaged.update_parameters(model)
        step += 1
        if step % EVERY == 0:
            report_progress(EVERY)
            accuracy = {} if recipe.copies is not None else evaluate(averaged.module, tokenizer, recipe.seed)
            if step == recipe.steps if recipe.copies is not None else _is_good(accuracy, recipe):
                averaged.module.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                return {"accuracy": accuracy, "steps": step, "seconds": time.monotonic() - start}
    raise RuntimeError(
        f"the demo's {recipe.name} did not learn in {recipe.seconds:.0f} s: accuracy {accuracy}, required "
        f"{recipe.plain} plain and {recipe.hinted} with a full hint; increase seconds"
    )


def _is_good(accuracy: dict[str, float], recipe: Recipe) -> bool:
    return accuracy["none"] >= recipe.plain and min(accuracy["summary"], accuracy["solution"]) >= recipe.hinted


def _new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Any:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=3 * recipe.hidden,
            num_hidden_layers=recipe.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=recipe.hidden // 4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def _loaded(folder: Path) -> Any:
    return Qwen3ForCausalLM.from_pretrained(folder).train()


def _prompt(tokenizer: PreTrainedTokenizerFast, user: str) -> list[int]:
    rendered: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(rendered["input_ids"])


def _example(rng: random.Random, slip: float) -> tuple[str, str]:
    chain = draw_chain(rng)
    if rng.random() < 0.5:
        return chain.question, chain.attempt(rng, slip)
    kind = rng.choice(["answer", "solution", "solution", "summary", "wrong_attempt"])
    user = rendered(CONTEXTS[kind], {**chain.row(rng), "prompt": chain.question})
    return user, chain.attempt(rng, slip * SLIP_WITH_HINT[kind])


def _copied(rng: random.Random, slip: float) -> tuple[str, str]:
    """With the answer shown, an attempt with the slips of one without it, which then states the shown answer."""
    chain = draw_chain(rng)
    if rng.random() < PLAIN_WHILE_COPYING:
        return chain.question, chain.attempt(rng, slip)
    user = rendered(CONTEXTS["answer"], {**chain.row(rng), "prompt": chain.question})
    steps, _, _ = chain.attempt(rng, slip).rpartition(" ")
    return user, f"{steps} {chain.answer}"


def _batch(rng: random.Random, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    rows = []
    for _ in range(BATCH):
        user, completion = (_example if recipe.copies is None else _copied)(rng, recipe.slip)
        rows.append((_prompt(tokenizer, user), tokenizer(f"{completion} <eos>")["input_ids"]))
    width = max(len(p) + len(c) for p, c in rows)
    inputs = torch.zeros(BATCH, width, dtype=torch.long)
    labels = torch.full((BATCH, width), -100)
    for i, (p, c) in enumerate(rows):
        inputs[i, : len(p) + len(c)] = torch.tensor(p + c)
        labels[i, len(p) : len(p) + len(c)] = torch.tensor(c)
    return inputs, labels


@torch.no_grad()
def evaluate(model: Any, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, float]:
    """Accuracy of sampled completions by context, on separately drawn chains."""
    rng = random.Random(f"evaluation {seed}")  # noqa: S311 - not for security
    model.eval()
    accuracy = {}
    for name, context in {"none": "{{ prompt }}", **CONTEXTS}.items():
        n = EVALUATED if name == "none" else EVALUATED // 4
        chains = [draw_chain(rng) for _ in range(n)]
        texts = [rendered(context, {**c.row(rng), "prompt": c.question}) for c in chains]
        prompts = [_prompt(tokenizer, text) for text in texts]
        width = max(map(len, prompts))
        ids = torch.zeros(n, width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, p in enumerate(prompts):
            ids[i, width - len(p) :] = torch.tensor(p)
            mask[i, width - len(p) :] = 1
        out = model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=48)
        texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        accuracy[name] = sum(t.endswith(f"answer {c.answer}") for t, c in zip(texts, chains, strict=True)) / n
    model.train()
    return accuracy
