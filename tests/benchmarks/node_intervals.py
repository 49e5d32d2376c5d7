"""How far intervals and signs of single nodes can be trusted, on the exact oracle.

    python -m tests.benchmarks.node_intervals

Chains of several lengths and budgets, 12 chains each: the share of 95 % intervals of a node's cosine that hold the
exact value, and the share of `resolved` signs that are right.
"""

import numpy as np

from schemas.config import ReverseKL
from tests.oracle import OracleJob, exact, oracle_config, oracle_rollouts, random_chain, teacher_of
from tests.test_estimators import SIGNAL, scored, tree_of


def main() -> None:
    """Print one row for each length and budget."""
    print("steps  draws a node  with a cosine  interval holds it  resolved  of them right")
    for length in (6, 16, 64):
        for draws in (40, 160, 640):
            defined, held, resolved, right = [], [], [], []
            for seed in range(12):
                chain = random_chain(seed, length=length)
                teacher = teacher_of(chain, 8 + seed, strength=2.0, noise=1.0)
                config = oracle_config(chain, seed=seed, rollouts=6, nodes=48, head=10, tail=2, draws=draws)
                job = OracleJob(chain, config)
                rollouts = oracle_rollouts(job)
                truth = exact(chain, teacher, ReverseKL(), rollouts)
                q = scored(job, teacher, rollouts, tree_of(job, rollouts))
                node, a = q.tree["node"], q.alignment[SIGNAL]
                known = np.isfinite(a["cosine"])
                inside = (a["cosine_low"] <= truth.cosine[node]) & (truth.cosine[node] <= a["cosine_high"])
                clear = (a["p_positive"] > 0.975) | (a["p_positive"] < 0.025)
                defined.append(known.mean())
                held.append(inside[known])
                resolved.append(clear.mean())
                right.append((np.sign(a["p_positive"] - 0.5) == np.sign(truth.inner[node]))[clear])
            figures = (np.mean(defined), np.concatenate(held).mean(), np.mean(resolved), np.concatenate(right).mean())
            print(f"{length:5}  {draws:12}" + "".join(f"{100 * f:14.0f} %" for f in figures))


if __name__ == "__main__":
    main()
