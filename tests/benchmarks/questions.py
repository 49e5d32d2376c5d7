"""Many questions at once on a real model, beside one at a time and beside a plain script.

    python -m tests.benchmarks.questions --model MODEL [--questions 64] [--in-flight 32 1] [--rank-questions 40]
        [--engine SETTINGS]

MODEL is a model folder or a GGUF file, such as SmolLM2-135M-Instruct. The questions are sums of two numbers, 8 rollouts
each of at most 48 tokens. Everything is measured in this process, without Prefect: `rollouts` with 32 questions in
flight and with one, on the engine of the settings (JSON); and, unless there are no `--rank-questions`, on
transformers: a ranking of four contexts by two losses, and the same numbers by a script with padded batches of
`generate` and of forward passes, whose batches are as large as serve it best.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from flows.command.configuration import checked
from schemas.config import Model, RunConfig
from schemas.signals import Signal, sources
from tasks.engines.counts import SCORED
from tasks.engines.protocol import Draw, Trunk
from tasks.run.models import LoadedModels
from tasks.run.session import RunSession, start_session
from tasks.run.shells import run_stage

CONTEXTS = ["none", "answer", "solution", "wrong_attempt"]
ROLLOUTS, TOKENS, TEMPERATURE = 8, 48, 0.7


def write_questions(path: Path, count: int) -> None:
    """Sums of two numbers of two digits."""
    draw = random.Random(0)
    rows = []
    for i in range(count):
        a, b = draw.randint(11, 99), draw.randint(11, 99)
        rows.append(
            {
                "id": f"q{i}",
                "question": f"What is {a} + {b}? Answer with the number only.",
                "answer": str(a + b),
                "solution": f"{a} + {b} = {a + b}.",
                "wrong_attempt": f"{a} + {b} = {a + b + 10}.",
            }
        )
    path.write_text("\n".join(map(json.dumps, rows)))


def configured(
    folder: Path, model: str, questions: int, name: str, engine: dict[str, Any] | None = None, **execution: Any
) -> RunConfig:
    return checked(
        {
            "name": name,
            "store": str(folder / name),
            "questions": {"path": str(folder / "questions.jsonl"), "limit": questions},
            "student": {"path": model},
            "verifier": {"kind": "numeric"},
            "sampling": {"rollouts": ROLLOUTS, "max_tokens": TOKENS, "temperature": TEMPERATURE},
            "teachers": [{"name": "self", "contexts": CONTEXTS}],
            "losses": ["reverse_kl", "forward_kl"],
            "engine": engine or {"kind": "transformers"},
            "execution": execution,
        }
    )


def loaded(config: RunConfig) -> tuple[RunSession, LoadedModels]:
    """A session whose models are loaded, and whose engine has started."""
    session = start_session(config)
    models: LoadedModels = session.provider.models  # type: ignore[attr-defined]
    models.sampler.continue_prefixes([Trunk(tuple(models.prompt("q0")))], [Draw(0, 0, None, 2, 0)], 1.0)
    return session, models


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    out = action()
    return time.perf_counter() - began, out


@torch.inference_mode()
def generated(model: Any, prompts: Sequence[Sequence[int]], batch: int) -> int:
    """Tokens of `ROLLOUTS` draws after each prompt by `generate`, `batch` prompts at a time, padded on the left."""
    tokens = 0
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in part])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
        settings: dict[str, Any] = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
        out = model.generate(ids, attention_mask=mask, num_return_sequences=ROLLOUTS, max_new_tokens=TOKENS, **settings)
        tokens += out[:, width:].numel()
    return tokens


@torch.inference_mode()
def rows_of(model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]], vocabulary: int) -> torch.Tensor:
    """Log-probabilities at the tokens of all completions, from one batch padded on the right, [T, V]."""
    ids = torch.zeros(len(completions), len(prompt) + max(map(len, completions)), dtype=torch.long)
    for i, completion in enumerate(completions):
        ids[i, : len(prompt) + len(completion)] = torch.tensor([*prompt, *completion])
    logits = model(input_ids=ids, use_cache=False).logits
    wanted = [row[len(prompt) - 1 : len(prompt) + len(c) - 1] for row, c in zip(logits, completions, strict=True)]
    return torch.log_softmax(torch.cat(wanted)[:, :vocabulary].float(), dim=-1)


def by_hand(model: Any, session: RunSession, models: LoadedModels) -> dict[tuple[str, Signal], tuple[Any, Any]]:
    """|d|^2 and d at the sampled tokens, as a script computes them: student and each teacher, a question at a time."""
    found = {}
    for question in session.keys.questions:
        rollouts = session.store.need("rollouts", session.keys.key("rollouts", question)).arrays
        tokens, offsets = rollouts["tokens"], rollouts["offsets"]
        completions = [tokens[a:b].tolist() for a, b in pairwise(offsets)]
        log_p = rows_of(model, rollouts["prompt"].tolist(), completions, models.student.vocabulary)
        at = torch.from_numpy(tokens).long()[:, None]
        policy = torch.softmax(log_p / TEMPERATURE, dim=-1)
        for source in sources(session.config):
            log_t = rows_of(model, models.prompts.teacher(source, question), completions, models.student.vocabulary)
            p, t = log_p.exp(), log_t.exp()
            gap = log_p - log_t
            for name, d in (("reverse_kl", -p * (gap - (p * gap).sum(-1, keepdim=True))), ("forward_kl", t - p)):
                d_token = d.gather(-1, at)[:, 0] - (policy * d).sum(-1)
                found[question, Signal(*source, name)] = (d.square().sum(-1).numpy(), d_token.numpy())
    return found


def distinct_tokens(session: RunSession, models: LoadedModels) -> int:
    """Tokens that must go through the model: of each prompt once, and of each of its completions all but the last."""
    total = 0
    for question in session.keys.questions:
        lengths = np.diff(session.store.need("rollouts", session.keys.key("rollouts", question)).arrays["offsets"])
        prompts = {tuple(models.prompt(question))}
        prompts |= {tuple(models.prompts.teacher(source, question)) for source in sources(session.config)}
        total += sum(len(prompt) + int((lengths - 1).clip(0).sum()) for prompt in prompts)
    return total


def largest_difference(session: RunSession, found: dict[tuple[str, Signal], tuple[Any, Any]]) -> float:
    """Between the script's numbers and those in the store."""
    worst = 0.0
    for (question, signal), (d_sq, d_token) in found.items():
        arrays = session.store.need("ranking", session.keys.key("ranking", question, signal)).arrays
        worst = max(worst, float(np.abs(arrays["d_sq"] - d_sq).max()), float(np.abs(arrays["d_token"] - d_token).max()))
    return worst


def measure_rollouts(folder: Path, model: str, questions: int, engine: dict[str, Any], flights: Sequence[int]) -> None:
    """Print the speed with so many questions in flight, the engines' share of waiting, and the last's ratio."""
    seconds = []
    for flight in flights:
        session, models = loaded(configured(folder, model, questions, f"{flight}", engine, questions_in_flight=flight))
        before = getattr(models.sampler, "busy_seconds", [])
        took, summary = timed(lambda: run_stage(session, "rollouts", session.keys.questions))  # noqa: B023
        seconds.append(took)
        busy = [b - a for a, b in zip(before, getattr(models.sampler, "busy_seconds", []), strict=True)]
        waiting = [1 - at_work / took for at_work in busy or [summary.model_seconds]]
        rate = summary.decoded_tokens / took
        told = ", ".join(f"{100 * share:.1f} %" for share in waiting)
        print(f"rollouts, {flight:2} in flight   {took:7.1f} s  {rate:8.0f} tokens/s, waiting {told}")
        session.provider.close()
    print(f"last : first   {seconds[-1] / seconds[0]:.2f}")


def measure_ranking(folder: Path, model: str, questions: int) -> None:
    """Print the time of a ranking, and of a script that gives the same numbers."""
    session, models = loaded(configured(folder, model, questions, "rank"))
    ids = session.keys.questions
    drawing, _ = timed(lambda: run_stage(session, "rollouts", ids))
    before = SCORED.value
    scoring, _ = timed(lambda: run_stage(session, "ranking", ids))
    through = SCORED.value - before
    print(f"rank: rollouts {drawing:.1f} s, scores {scoring:.1f} s")
    print(f"tokens through the model : distinct tokens   {through / distinct_tokens(session, models):.3f}")

    source = Model(path=model)
    plain = AutoModelForCausalLM.from_pretrained(**source.pretrained, dtype=torch.float32).eval()
    prompts = [models.prompt(question) for question in ids]
    rates = {}
    for batch in (4, 8, 16):  # of 8 rollouts each
        took, tokens = timed(lambda: generated(plain, prompts[:16], batch))  # noqa: B023
        rates[batch] = tokens / took
    best = max(rates, key=lambda batch: rates[batch])
    generating, _ = timed(lambda: generated(plain, prompts, best))
    passes, found = timed(lambda: by_hand(plain, session, models))
    print(f"by hand: generate {generating:.1f} s ({best} questions a batch), passes {passes:.1f} s")
    print(f"by hand : rank   {(generating + passes) / (drawing + scoring):.2f}")
    print(f"largest difference of the numbers   {largest_difference(session, found):.1e}")


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True)
    options.add_argument("--questions", type=int, default=64)
    options.add_argument("--rank-questions", type=int, default=40)
    options.add_argument("--engine", type=json.loads, default={"kind": "transformers"})
    options.add_argument("--in-flight", type=int, nargs="+", default=[32, 1])
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_questions(folder / "questions.jsonl", max(asked.questions, asked.rank_questions))
        print(f"{asked.model}, {asked.engine['kind']}, {torch.get_num_threads()} threads")
        measure_rollouts(folder, asked.model, asked.questions, asked.engine, asked.in_flight)
        if asked.rank_questions:
            measure_ranking(folder, asked.model, asked.rank_questions)


if __name__ == "__main__":
    main()
