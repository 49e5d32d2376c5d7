"""How often intervals hold where few questions carry signal, and how often a ranking settles where there is nothing.

    python -m tests.benchmarks.few_units [--repeats 400]

Exact chains stand in for the model, as in `opdscope calibrate`. Coverage: of 40 questions k are open, drawn anew for
each repeat, and the others always fail, so that they tell of no direction. Settling: two teachers differ from the
student by noise alone, drawn anew for each question, so that neither is better.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch

from schemas.config import ForcedTree, Grouping, ReverseKL, Scores
from schemas.signals import Signal
from tasks.calibration.chain import Chain, Sums, exact_scores, expected
from tasks.calibration.simulate import OracleTeaching, Rolled, roll
from tasks.calibration.suite import Family, OracleQuestion, make_question
from tasks.stages.aggregate.pooling import make_pool
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.distillation.stage import NO_NODES
from tasks.stages.ranking import RankedQuestion, rank
from tasks.stages.trees.forced import ForcedPlanner
from tasks.stages.trees.planner import grow_tree
from tasks.statistics.prior import Prior
from tests.helpers.drawing import drawn_by
from tests.helpers.oracle import Given, scored_tree

LOSS, FAMILY, QUESTIONS, ROLLOUTS = ReverseKL(), Family(64, "clear", "even"), 40, 8
OPEN = (2, 3, 5, 10, 40)
SIZES = ((1, 4), (2, 4), (1, 16), (2, 8), (5, 8), (10, 8), (20, 8))
SIGNAL = Signal("fair", "none", "reverse_kl")
PRIOR = Prior(np.array([0.5]), np.array([2.0]), np.array([1.0]))
SCORES = Scores(groupings=[Grouping(by="outcome")], bootstrap=1000, posterior=100)


def population(size: int = 48) -> list[OracleQuestion]:
    """Open questions."""
    return [make_question(FAMILY, n, 0) for n in range(size)]


def closed(q: OracleQuestion) -> OracleQuestion:
    """The same question for a student that always fails."""
    return replace(q, student=replace(q.student, success=np.zeros_like(q.student.success)))


def scored(q: OracleQuestion, number: int, seed: int, rng: np.random.Generator) -> QuestionScores:
    """A question's stages 1 to 5, by the functions that run on real models; the posterior is not looked at."""
    rolled = roll(q.student, str(number), ROLLOUTS, seed, rng)
    planner = ForcedPlanner(ForcedTree(nodes=16))
    tree = grow_tree(planner, rolled.frame, drawn_by(rolled, rng))
    d = OracleTeaching(rolled, q.teachers["fair"], LOSS).distillation(tree)
    return scored_tree(Given(rolled.arrays, tree, {SIGNAL: d}), seed=seed, scores=SCORES, question=str(number))


def truth(open_questions: list[OracleQuestion], k: int) -> dict[str, float]:
    """Expected scores of k open questions of this population and of the others, that always fail."""
    zero = Sums(0.0, 0.0, 0.0)
    whole = sum(
        (expected(q.student, exact_scores(q.student, q.teachers["fair"], LOSS))["all"] for q in open_questions), zero
    )
    share = k / QUESTIONS
    return {
        "alignment": share * whole.inner / float(np.sqrt(share * whole.g_sq * whole.d_sq)),
        "gain": share * whole.inner / float(np.sqrt(len(open_questions) * whole.d_sq)),
    }


def coverage(k: int, repeats: int, questions: list[OracleQuestion]) -> dict[str, tuple[int, int]]:
    """By score: intervals that hold the truth, and intervals that there are, where k questions are open."""
    held = {"alignment": [0, 0], "gain": [0, 0]}
    exact = truth(questions, k)
    for repeat in range(repeats):
        rng = np.random.default_rng([repeat, k])
        drawn = [questions[i] for i in rng.integers(0, len(questions), size=QUESTIONS)]
        drawn = [q if n < k else closed(q) for n, q in enumerate(drawn)]
        pool = make_pool([scored(q, n, repeat, rng) for n, q in enumerate(drawn)], [SIGNAL], SCORES, repeat)
        for score, counts in held.items():
            _, low, high = pool.estimate(SIGNAL, 0, score)
            counts[0] += low <= exact[score] <= high
            counts[1] += bool(np.isfinite(low))
    return {score: (counts[0], counts[1]) for score, counts in held.items()}


def no_better(q: OracleQuestion, rng: np.random.Generator) -> dict[str, Chain]:
    """Two teachers that differ from the student by noise alone."""
    out = {}
    for name in ("a", "b"):
        step = q.student.step * np.exp(0.6 * rng.standard_normal(q.student.step.shape))
        out[name] = replace(q.student, step=step / step.sum(axis=-1, keepdims=True))
    return out


def settles(questions: int, rollouts: int, seed: int, population: list[OracleQuestion]) -> bool:
    """Whether a ranking of two signals of which neither is better calls itself settled."""
    rng, asked = np.random.default_rng([seed, questions, rollouts]), []
    for n in range(questions):
        q = population[int(rng.integers(len(population)))]
        rolled: Rolled = roll(q.student, str(n), rollouts, seed, rng)
        signals = {
            Signal(name, "none", "reverse_kl"): OracleTeaching(rolled, teacher, LOSS).distillation(NO_NODES)
            for name, teacher in no_better(q, rng).items()
        }
        asked.append(RankedQuestion(rolled.arrays, signals))
    return rank(asked, 1.0, SCORES, seed).settled is True


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=400)
    repeats, questions = parser.parse_args().repeats, population()
    torch.set_num_threads(1)  # all its operations are small
    print(f"rankings settled where no signal is better, {repeats} repeats")
    print(f"{'questions':>10} {'rollouts':>9} {'settled':>9}")
    for n, rollouts in SIZES:
        hits = sum(settles(n, rollouts, seed, questions) for seed in range(repeats))
        print(f"{n:>10} {rollouts:>9} {100 * hits / repeats:>7.1f} %", flush=True)
    print(f"95 % intervals of {QUESTIONS} questions that hold the truth, {repeats} repeats")
    print(f"{'open':>6} {'alignment':>22} {'gain':>22}")
    for k in OPEN:
        found = coverage(k, repeats, questions)
        cells = [f"{100 * a / max(1, b):.1f} % of {b}" for a, b in found.values()]
        print(f"{k:>6} {cells[0]:>22} {cells[1]:>22}", flush=True)


if __name__ == "__main__":
    main()
