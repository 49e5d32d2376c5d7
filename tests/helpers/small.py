"""Small real models, questions for them, and the configuration of a run."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tasks.demo.chains import draw_questions
from tasks.demo.train import make_tokenizer


def random_model(
    folder: Path,
    seed: int,
    vocabulary: int,
    *,
    hidden: int = 16,
    layers: int = 2,
    head_dim: int = 8,
    scale: float = 8.0,
) -> None:
    """A Qwen3 model with random weights, its outputs sharpened, saved as an ordinary folder."""
    torch.manual_seed(seed)
    model: Any = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=head_dim,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
            initializer_range=0.2,
        )
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(scale / hidden**0.5)
    model.save_pretrained(folder)


def make_models(root: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Folder with `student`, `teacher`, and `other`, whose tokenizer has two tokens swapped.

    Their heads have more rows than the tokenizer has tokens, and not the same number, as published models do.
    """
    tokenizer = tokenizer or make_tokenizer()
    for seed, name in enumerate(("student", "teacher", "other")):
        random_model(root / name, seed, len(tokenizer) + 4 * (seed + 1))
        tokenizer.save_pretrained(root / name)
    saved = json.loads((root / "other" / "tokenizer.json").read_text())
    vocabulary = saved["model"]["vocab"]
    vocabulary["add"], vocabulary["times"] = vocabulary["times"], vocabulary["add"]
    (root / "other" / "tokenizer.json").write_text(json.dumps(saved))
    return root


def make_questions(path: Path) -> Path:
    """Six questions, written there."""
    path.write_text("".join(json.dumps(row) + "\n" for row in draw_questions(6, 0)))
    return path


def small_settings(models: Path, questions: Path, store: Path) -> dict[str, Any]:
    """A small run's configuration as plain data; the random student is right now and then."""
    return {
        "name": "small",
        "store": str(store),
        "questions": {"path": str(questions)},
        "student": {"path": str(models / "student")},
        "verifier": {"kind": "numeric"},
        "sampling": {"rollouts": 4, "max_tokens": 24},
        "tree": {"kind": "forced", "nodes": 6, "head": 3, "tail": 2, "draws": 12},
        "teachers": [
            {"name": "large", "model": {"path": str(models / "teacher")}},
            {"name": "self", "contexts": ["none", {"kind": "answer", "template": "{{ prompt }} answer {{ answer }}"}]},
        ],
        "losses": ["reverse_kl", "forward_kl"],
        "success": {"rollouts": 0},
        "scores": {"bootstrap": 200, "posterior": 100},
        "execution": {"questions_per_task": 3},
    }
