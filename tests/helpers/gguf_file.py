"""A small model as a GGUF file: llama's architecture, a byte-level tokenizer."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

HIDDEN, LAYERS, HEADS, INNER = 16, 2, 2, 32
END = "<|endoftext|>"


def write_gguf(
    path: Path,
    seed: int = 0,
    *,
    architecture: str = "llama",
    tokenizer: bool = True,
    parts: int = 1,
    inner: int = INNER,
    without: Collection[str] = (),
) -> Path:
    """Random weights in float32; every byte is a token, and there is one merge.

    Args:
        parts: number of files that the header says the model is split into.
        inner: columns of the last feed-forward weights, whatever the others have.
        without: names of tensors that are left out.
    """
    printable = [chr(b) for b in range(33, 127)]
    tokens = [*printable, "ab", "\u0120", "\u010a", END]
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    writer = GGUFWriter(str(path), architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    if parts > 1:
        writer.add_uint16("split.count", parts)
    writer.add_tokenizer_model("gpt2")
    if tokenizer:
        writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * (len(tokens) - 1) + [TokenType.CONTROL])
    writer.add_token_merges(["a b"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id, writer.add_unk_token_id):
        add(len(tokens) - 1)
    writer.add_tensor("token_embd.weight", weights(len(tokens), HIDDEN))
    writer.add_tensor("output.weight", weights(len(tokens), HIDDEN))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, dtype=np.float32))
    for layer in range(LAYERS):
        shapes = {
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (HIDDEN // HEADS, HIDDEN),
            "attn_v": (HIDDEN // HEADS, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN),
            "ffn_down": (HIDDEN, inner),
        }
        for name, shape in shapes.items():
            if f"blk.{layer}.{name}.weight" not in without:
                writer.add_tensor(f"blk.{layer}.{name}.weight", weights(*shape))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
