"""Small tokenizers of the kinds that published models have, trained on a few lines."""

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The answer is 42, because 6 times 7 is 42.",
    "Let us think: the train leaves at noon, so the answer is yes.",
    "Straße, café, naïve — 東京 and 🙂 are words too; the answer is no.",
    "there then these those other another mother answer answers answering",
]

PAD, UNKNOWN = {"pad_token": "<pad>"}, "<unk>"


def byte_level(size: int, end: str = "<|im_end|>") -> Any:
    """As GPT-2, Qwen, Llama 3 and SmolLM2 have it: byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[end, *PAD.values()], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, **PAD)


def with_byte_fallback(size: int, end: str = "<eos>", *, marked: bool = True) -> Any:
    """As Gemma and Llama 2 have it: BPE over characters, spaces as a mark, unknown ones as bytes.

    Args:
        marked: whether bytes are special tokens; theirs are not, and have the lowest ids.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [end, *PAD.values(), UNKNOWN, *(f"<0x{i:02X}>" for i in range(256))]
    plain = [line.replace("🙂", "").replace("東京", "") for line in CORPUS]
    tokenizer.train_from_iterator(plain * 4, trainers.BpeTrainer(vocab_size=size + 256, special_tokens=special))
    if not marked:
        saved = json.loads(tokenizer.to_str())
        saved["added_tokens"] = [token for token in saved["added_tokens"] if not token["content"].startswith("<0x")]
        tokenizer = Tokenizer.from_str(json.dumps(saved))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, **{**PAD, "unk_token": UNKNOWN})
