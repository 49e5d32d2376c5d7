"""Peak memory stays flat: a vocabulary of 151,936, thousands of positions, in a process of its own."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np, torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from schemas.config import JSD, ForwardKL, ReverseKL, RunConfig, TopK
from schemas.signals import Source
from tasks.stages.distillation.gradients import distill
from tasks.engines.scoring import View
from tasks.engines.transformers.scorer import TransformersScorer
from tasks.stages.trees.frame import survey
from tasks.stages.trees.stage import planner_of

nodes, V = int(sys.argv[1]), 151_936
def peak():  # GiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

def model(seed):
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=V, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, tie_word_embeddings=True, initializer_range=0.2))

student, teacher = (TransformersScorer(lambda s=s: model(s)) for s in (0, 1))
config = RunConfig.model_validate({
    "questions": {"path": "q.jsonl"}, "student": {"path": "s"}, "teachers": [{"name": "t"}],
    "tree": {"kind": "forced", "nodes": nodes, "head": 8, "tail": 4, "draws": 64}})
loaded = peak()
rng = np.random.default_rng(0)
R = nodes // 125
rollouts = {
    "prompt": np.arange(5, 25, dtype=np.int32), "tokens": rng.integers(2, V, size=R * 125).astype(np.int32),
    "offsets": np.arange(R + 1) * 125, "correct": np.zeros(R, dtype=bool)}
frame = survey(student, config, "q", rollouts)
plan = planner_of(config.tree).next_round(frame, [], 0.0)
teachers = {Source("t", c): View(teacher, [7, 8, n]) for n, c in enumerate(["none", "answer", "solution"])}
losses = {"r": ReverseKL(), "f": ForwardKL(), "j": JSD(), "k": TopK()}
made = distill(View(student, [3, 4]), teachers, rollouts["tokens"], rollouts["offsets"], plan.arrays,
    dict.fromkeys(teachers, losses), temperature=1.0, block=config.engine.score_rows,
    group_tokens=config.engine.batch_tokens)
assert len(plan.arrays["node"]) == nodes
assert np.isfinite(made["t", "answer", "j"]["d"]).all() and (made["t", "none", "r"]["d_sq"] > 0).all()
print(peak() - loaded)
"""


def gigabytes_above_the_model(nodes: int) -> float:
    done = subprocess.run([sys.executable, "-c", CODE, str(nodes)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


@pytest.mark.slow
def test_peak_memory_is_flat_at_full_vocabulary() -> None:
    few, many = gigabytes_above_the_model(500), gigabytes_above_the_model(2000)
    print(f"500 nodes: {few:.2f} GiB, 2,000 nodes: {many:.2f} GiB above the model")
    assert many < 2.0
    assert many < few + 0.15
