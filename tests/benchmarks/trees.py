"""Engines side by side on the draws of a tree.

    python -m tests.benchmarks.trees [--device cuda --shape qwen3-0.6b] [--vllm]

Every contender decodes the same draws of the same random model, in one process, one after the other: short, 32 nodes
on a rollout of 512 tokens, and long, 8 nodes on one of 8,192; 4 branches a node, 16 draws a branch, 128 tokens a draw.
What would take hours is measured on part of the draws (the column says on which), as tokens a second. A last line has
draws that end by chance, after 64 tokens on average, to tell what ended rows cost.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from schemas.config import Model, TransformersEngine, VLLMEngine
from tasks.engines.protocol import Draw, Trunk
from tasks.engines.transformers.loading import load_transformers
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.engines.transformers.scorer import TransformersScorer
from tasks.statistics.streams import stream_seed

PROMPT, BRANCHES, DRAWS, LIMIT = 64, 4, 16, 128
SHAPES: dict[str, dict[str, Any]] = {
    # as wide as two cores like it; a quarter of the weights is the head, as in Qwen3-0.6B
    "wide": {"hidden": 128, "layers": 4, "heads": 4, "head_dim": 32, "vocabulary": 2048},
    # Qwen3-0.6B's 28 layers
    "deep": {"hidden": 64, "layers": 28, "heads": 4, "head_dim": 32, "vocabulary": 2048},
    "qwen3-0.6b": {"hidden": 1024, "layers": 28, "heads": 16, "head_dim": 128, "vocabulary": 151_936},
}
WORKLOADS = {"short": (32, 512), "long": (8, 8192)}


class Measured(NamedTuple):
    """A contender's tokens, seconds and what it was measured on."""

    tokens: int
    seconds: float
    part: str = "all"

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def make_model(folder: Path, shape: str) -> None:
    """A random model of a shape, saved."""
    s = SHAPES[shape]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=s["vocabulary"],
        hidden_size=s["hidden"],
        intermediate_size=3 * s["hidden"],
        num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"],
        num_key_value_heads=s["heads"] // 2,
        head_dim=s["head_dim"],
        max_position_embeddings=16_384,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def workload(nodes: int, length: int, vocabulary: int) -> tuple[list[Trunk], list[Draw]]:
    """One rollout and the draws of its nodes, by branch."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, vocabulary, length).tolist()
    trunk = Trunk(tuple(ids[:PROMPT]), tuple(ids[PROMPT:]))
    depths = np.sort(rng.choice(length - PROMPT, nodes, replace=False)).tolist()
    draws = [
        Draw(0, depth, 2 + token, LIMIT, stream_seed(depth, token, k))
        for depth in depths
        for token in range(BRANCHES)
        for k in range(DRAWS)
    ]
    return [trunk], draws


@torch.inference_mode()
def by_generate(model: Any, prefixes: Sequence[Sequence[int]], copies: int, part: str) -> Measured:
    """`model.generate` on left-padded prefixes, `copies` draws each."""
    width = max(map(len, prefixes))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prefixes], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prefixes], device=model.device)
    began = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=LIMIT,
        num_return_sequences=copies,
        eos_token_id=None,
        pad_token_id=0,
    )
    return Measured(out[:, width:].numel(), time.perf_counter() - began, part)


def a_branch_at_a_time(model: Any, trunks: Sequence[Trunk], draws: Sequence[Draw], count: int) -> Measured:
    """One call a branch, on branches spread over the nodes."""
    firsts = draws[::DRAWS]
    chosen = [firsts[i] for i in np.linspace(0, len(firsts) - 1, min(count, len(firsts))).round().astype(int)]
    each = [by_generate(model, [trunks[0].prefix(d)], DRAWS, "") for d in chosen]
    return Measured(sum(m.tokens for m in each), sum(m.seconds for m in each), f"{len(chosen)} branches")


def padded(model: Any, trunks: Sequence[Trunk], draws: Sequence[Draw], rows: int) -> Measured:
    """One call on all draws, or on as many as `rows`, spread over the nodes."""
    chosen = [draws[i] for i in np.linspace(0, len(draws) - 1, min(rows, len(draws))).round().astype(int)]
    return by_generate(model, [trunks[0].prefix(d) for d in chosen], 1, f"{len(chosen)} draws")


def timed(sample: Callable[[], list[Any]], part: str = "all") -> Measured:
    """Tokens a second of a sampler's call."""
    began = time.perf_counter()
    ends = sample()
    return Measured(sum(len(e.tokens) for e in ends), time.perf_counter() - began, part)


def bandwidth(device: torch.device) -> float:
    """Bytes a second at which the machine reads memory: the best of several sums over a GiB."""
    data = torch.ones(2**28, device=device)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        float(data.sum())
        best = max(best, data.numel() * 4 / (time.perf_counter() - began))
    return best


def peak(device: torch.device) -> float:
    """GiB at most, of this process or on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure and print tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cpu")
    options.add_argument("--shape", choices=sorted(SHAPES), default="wide")
    options.add_argument("--vllm", action="store_true", help="measure vLLM too")
    options.add_argument("--branches", type=int, default=32, help="branches given to generate one at a time")
    options.add_argument("--padded", type=int, default=2048, help="draws of the padded call on the short workload")
    options.add_argument("--padded-long", type=int, default=16, help="on the long one")
    asked = options.parse_args()
    dtype = "bfloat16" if asked.device.startswith("cuda") else "float32"
    with tempfile.TemporaryDirectory() as place:
        make_model(Path(place), asked.shape)
        source = Model(path=place, dtype=dtype)
        settings = TransformersEngine(device=asked.device)
        scorer = load_transformers(source, settings, SHAPES[asked.shape]["vocabulary"])
        plain = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype)).to(asked.device).eval()
        vllm = None
        if asked.vllm:
            from tasks.engines.vllm.offline import VLLMSampler

            options_vllm = VLLMEngine(device=asked.device, cache=6.0, memory_fraction=0.4, context_length=8448)
            vllm = VLLMSampler(source, frozenset(), options_vllm, lambda: scorer)
        print(f"{asked.shape}: {SHAPES[asked.shape]}, {dtype}, {scorer.device}, {torch.get_num_threads()} threads")
        for name, (nodes, length) in WORKLOADS.items():
            trunks, draws = workload(nodes, length, SHAPES[asked.shape]["vocabulary"])
            rows = {}
            sampler = TransformersSampler(scorer, frozenset(), settings)
            sampler.continue_prefixes(trunks, draws[:8], 1.0)
            sampler = TransformersSampler(scorer, frozenset(), settings)
            before = sampler.work.prefix_tokens
            rows["transformers engine"] = timed(lambda: sampler.continue_prefixes(trunks, draws, 1.0))  # noqa: B023
            if vllm is not None:
                vllm.continue_prefixes(trunks, draws[:8], 1.0)
                rows["vLLM engine"] = timed(lambda: vllm.continue_prefixes(trunks, draws, 1.0))  # noqa: B023
                rows["vLLM, one request a call"] = timed(
                    lambda: [vllm.continue_prefixes(trunks, [d], 1.0)[0] for d in draws[::64]],  # noqa: B023
                    f"{len(draws[::64])} draws",
                )
            again = TransformersSampler(scorer, frozenset(), settings)
            rows["transformers engine, again"] = timed(lambda: again.continue_prefixes(trunks, draws, 1.0))  # noqa: B023
            count = asked.branches if name == "short" else max(1, asked.branches // 8)
            rows["generate, a branch at a time"] = a_branch_at_a_time(plain, trunks, draws, count)
            most = asked.padded if name == "short" else asked.padded_long
            rows["generate, all padded"] = padded(plain, trunks, draws, most)
            report(name, rows)
            work = sampler.work
            deepest = PROMPT + max(d.depth for d in draws)
            print(f"  prefix tokens computed : distinct  {(work.prefix_tokens - before) / deepest:.3f}")
            weights = sum(p.numel() * p.element_size() for p in scorer.model.parameters())
            bound = (work.steps * weights + work.cache_bytes) / bandwidth(scorer.device)
            share = bound / rows["transformers engine"].seconds
            print(f"  of the memory-bandwidth bound      {share:.2f}")
            print(f"  peak memory so far                 {peak(scorer.device):.1f} GiB")
        trunks, draws = workload(*WORKLOADS["short"], SHAPES[asked.shape]["vocabulary"])
        waste(scorer, settings, trunks, draws)
        if vllm is not None:
            vllm.release()


def report(name: str, rows: dict[str, Measured]) -> None:
    """One workload's table."""
    ours = rows["transformers engine"].rate
    print(f"{name:34} {'tokens/s':>9}  {'engine : this':>13}  measured on")
    for what, m in rows.items():
        print(f"  {what:32} {m.rate:9,.0f}  {ours / m.rate:13.2f}  {m.part}")


def waste(
    scorer: TransformersScorer, settings: TransformersEngine, trunks: Sequence[Trunk], draws: Sequence[Draw]
) -> None:
    """Rows fed for nothing where draws end by chance: a sixty-fourth of the vocabulary are stop tokens."""
    stop = frozenset(range(2, 2 + scorer.vocabulary // 64))
    begun = [d._replace(token=2 + max(stop) + (d.token or 0), limit=512) for d in draws]
    sampler = TransformersSampler(scorer, stop, settings)
    ends = sampler.continue_prefixes(trunks, begun, 1.0)
    lengths = [len(e.tokens) for e in ends]
    share = 1 - sampler.work.useful_steps / sampler.work.row_steps
    print(f"draws that end by chance, {np.mean(lengths):.0f} tokens on average, {max(lengths)} at most:")
    print(f"  decode steps on ended rows         {100 * share:.1f} %")


if __name__ == "__main__":
    main()
