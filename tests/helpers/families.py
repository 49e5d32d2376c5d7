"""Small random models of each family of architectures, with windows as that family has them."""

from typing import Any

import torch
import transformers

WINDOW = 8

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "Mistral": {"sliding_window": WINDOW},
    "Gemma2": {"sliding_window": WINDOW, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 9.0},
    "Gemma3": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "Phi3": {"sliding_window": WINDOW},
}


def tiny(family: str, **settings: Any) -> Any:
    """A random model of two layers and 128 positions; `settings` are of its configuration."""
    torch.manual_seed(3)
    configuration = {"Gemma3": "Gemma3Text"}.get(family, family)
    made = getattr(transformers, f"{configuration}Config")(
        **{
            "vocab_size": 40,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "initializer_range": 0.5,
            "max_position_embeddings": 128,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "bos_token_id": 2,
            **FAMILIES.get(family, {}),
            **settings,
        }
    )
    return getattr(transformers, f"{family}ForCausalLM")(made).eval()
