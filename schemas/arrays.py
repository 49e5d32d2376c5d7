"""The arrays of every stage's artefact: name, dimensions, dtype, unit.

Dimension letters: R rollouts, T completion tokens of all rollouts, C prompt tokens (in a prior: cells), N nodes by
round, B branches of all nodes, D draws, K tokens of all continuations, P ends of segments, E branches of a loss that
needs draws (else 0), U numbers of an update. Ragged data is CSR: values, and offsets of length R+1, N+1 or D+1. A
letter has the same length throughout an artefact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
Arrays = Mapping[str, AnyArray]


@dataclass(frozen=True)
class Array:
    """Declaration of one array."""

    dims: tuple[str, ...]
    dtype: str
    meaning: str
    unit: str = "1"


ROLLOUTS = {
    "prompt": Array(("C",), "int32", "the student's prompt", "token id"),
    "tokens": Array(("T",), "int32", "completions, end-of-sequence included", "token id"),
    "offsets": Array(("R+1",), "int64", "where each completion starts", "index into T"),
    "correct": Array(("R",), "bool", "the verifier's verdict"),
    "truncated": Array(("R",), "bool", "stopped by the length limit"),
    "reward": Array(("R",), "float64", "1 where correct, else 0; of rollouts from a table, what that says"),
}

TEXTS = {
    "tokens": Array(("K",), "int32", "generated texts as sampled", "token id"),
    "offsets": Array(("D+1",), "int64", "where each text starts", "index into K"),
    "place": Array(("D",), "int32", "the rollout that it is written for; 0 where it is for the question"),
    "verdict": Array(("D",), "int8", "0: it passes the screen; else why not", "index into schemas.arrays.SCREEN"),
}

SCREEN = (
    "kept",
    "cut by the length limit",
    "too short",
    "states the answer",
    "lacks the answer",
    "in another script",
    "without more success",
)
"""What a screen says of a generated text."""

TREES = {
    "token_prob": Array(("T",), "float64", "student's probability of the sampled token", "probability"),
    "entropy": Array(("T",), "float64", "entropy of the student's next-token distribution", "nat"),
    "leverage": Array(("T",), "float64", "sum_j P_j^2 (1 - 2 P_j + |P|^2), the basis of node choice"),
    "node": Array(("N",), "int64", "the node's position; repeated where several rounds drew it", "index into T"),
    "round": Array(("N",), "int32", "the round that drew it"),
    "inclusion": Array(("N",), "float64", "probability with which the round drew it", "probability"),
    "share": Array(("N",), "float64", "weight of the round among all rounds; 0: used for single tokens only"),
    "p_sq": Array(("N",), "float64", "|P|^2 over the whole vocabulary"),
    "tail_prob": Array(("N",), "float64", "probability outside the head", "probability"),
    "branch_offsets": Array(("N+1",), "int64", "where each node's branches start", "index into B"),
    "branch_token": Array(("B",), "int32", "forced first token", "token id"),
    "branch_prob": Array(("B",), "float64", "student's probability of the token, as sampled", "probability"),
    "branch_tail": Array(("B",), "bool", "sampled from the tail; else one of the head"),
    "draws": Array(("B",), "int32", "continuations drawn", "draws"),
    "successes": Array(("B",), "int32", "continuations that the verifier accepts", "draws"),
    "truncations": Array(("B",), "int32", "continuations stopped by the length limit", "draws"),
    "draw_success": Array(("D",), "bool", "verdict on each draw, by branch; none where a draw is of several"),
    "draw_tokens": Array(("K",), "int32", "sampled tokens of these draws", "token id"),
    "draw_offsets": Array(("D+1",), "int64", "where each draw starts", "index into K"),
}

NO_DRAWS: dict[str, AnyArray] = {
    "draw_success": np.empty(0, dtype=np.bool_),
    "draw_tokens": np.empty(0, dtype=np.int32),
    "draw_offsets": np.zeros(1, dtype=np.int64),
}
"""A tree's draws where none belongs to a single branch."""

IDEAL = {
    "value": Array(("N",), "float64", "V, the success probability at the node", "probability"),
    "g_sq": Array(("N",), "float64", "unbiased |g|^2; may be negative"),
    "g_sq_plain": Array(("N",), "float64", "plain |g|^2, sampling noise included"),
    "reliability": Array(("N",), "float64", "g_sq / g_sq_plain; NaN where no variation was observed"),
    "gradient": Array(("B",), "float64", "g_hat_j = P_j (Q_hat_j - V_hat)"),
}

DISTILLATION = {
    "d_sq": Array(("T",), "float64", "|d|^2 over the whole vocabulary, without the part of d that needs draws"),
    "student_kept": Array(
        ("T",), "float64", "P of the tokens in the loss; 1 unless truncated; NaN = no distribution", "probability"
    ),
    "teacher_kept": Array(("T",), "float64", "T of these", "probability"),
    "kl": Array(("T",), "float64", "KL(P || T); NaN = the teacher has no distribution there", "nat"),
    "js": Array(("T",), "float64", "Jensen-Shannon divergence; NaN likewise", "nat"),
    "teacher_token_prob": Array(
        ("T",), "float64", "teacher's probability of the sampled token; NaN = it does not tell", "probability"
    ),
    "d_token": Array(("T",), "float64", "d at the sampled token, minus sum_j P_j d_j"),
    "d_bar": Array(("N",), "float64", "sum_j P_j d_j, P as sampled"),
    "d": Array(("B",), "float64", "d at the branches"),
    "d_head": Array(("B",), "float64", "d of P and T renormalised over the head; 0 in the tail"),
    "teacher_prob": Array(("B",), "float64", "teacher's probability of the branches", "probability"),
    "return_sum": Array(("E",), "float64", "sum over a branch's draws of what they add to f there"),
    "return_sq": Array(("E",), "float64", "sum of its square"),
    "return_sum_won": Array(("E",), "float64", "its sum over the draws that the verifier accepts"),
    "return_sq_won": Array(("E",), "float64", "sum of its square over these"),
}

PRIOR = {
    "mu": Array(("C",), "float64", "mean success of a node's branches, by cell of the grid", "probability"),
    "kappa": Array(("C",), "float64", "concentration of the branches' success around mu"),
    "weight": Array(("C",), "float64", "share of nodes in the cell", "probability"),
}

ALIGNMENT = {
    "inner": Array(("N",), "float64", "unbiased <g, d>"),
    "inner_noise": Array(("N",), "float64", "unbiased variance of `inner` over draws; NaN where d needs draws too"),
    "d_sq": Array(("N",), "float64", "|d|^2; unbiased, and may be negative, where d needs draws"),
    "cosine": Array(("N",), "float64", "posterior mean of the cosine; NaN = undefined"),
    "cosine_low": Array(("N",), "float64", "lower end of its interval; NaN = undefined"),
    "cosine_high": Array(("N",), "float64", "upper end of its interval; NaN = undefined"),
    "cosine_plain": Array(
        ("N",), "float64", "uncorrected cosine over the head, P and T renormalised there; NaN = undefined"
    ),
    "p_positive": Array(("N",), "float64", "posterior probability of <g, d> > 0; NaN = undefined"),
    "p_differs": Array(("N",), "float64", "posterior probability that the branches differ; NaN = undefined"),
    "lfsr": Array(("N",), "float64", "local false sign rate of <g, d>; NaN = undefined"),
    "teacher_advantage": Array(
        ("N",), "float64", "sum_j (T_j - P_j) Q_j; NaN = the teacher puts too much on tokens not drawn", "probability"
    ),
}

RANKING = {
    "d_sq": DISTILLATION["d_sq"],
    "d_token": DISTILLATION["d_token"],
    "student_kept": DISTILLATION["student_kept"],
    "teacher_kept": DISTILLATION["teacher_kept"],
}

HANDOVER = {
    "answer": Array(("P",), "int32", "which of the teacher's completions the student continues"),
    "part": Array(("P",), "float64", "how much of it comes first; 1: all that comes before its answer"),
    "place": Array(("P",), "int32", "tokens of it that come first", "token"),
    "draws": Array(("P",), "int32", "continuations by the student, without the context", "draws"),
    "successes": Array(("P",), "int32", "continuations that the verifier accepts", "draws"),
}

UPDATES = {
    "update": Array(("U",), "float32", "minus the gradient of the loss by the student's parameters, projected"),
}

VALUES = {
    "boundary": Array(("P",), "int64", "position before which a segment of a rollout ends", "index into T"),
    "draws": Array(("P",), "int32", "continuations from there", "draws"),
    "successes": Array(("P",), "int32", "continuations that the verifier accepts", "draws"),
}

# outcomes of draws: trees and other stages are made from them, and a killed or enlarged stage resumes from them
ROUNDS = {
    "success": Array(("D",), "bool", "the verifier's verdict on each draw of the round"),
    "truncated": Array(("D",), "bool", "stopped by the length limit"),
    "length": Array(("D",), "int32", "sampled tokens", "token"),
}

CONTINUATIONS = {
    "success": Array(("D",), "bool", "the verifier's verdict on each continuation"),
    "truncated": Array(("D",), "bool", "stopped by the length limit"),
    "tokens": Array(("K",), "int32", "sampled tokens of all continuations", "token id"),
    "offsets": Array(("D+1",), "int64", "where each continuation starts", "index into K"),
}


# trainings of the student, which a forecast is judged by
TRAININGS = {
    "step": Array(("E",), "int32", "updates of the parameters before each measurement", "step"),
    "success": Array(("E", "H"), "float32", "success rate on every held-out question", "probability"),
    "decoded": Array(("E",), "int64", "tokens sampled for the updates so far", "token"),
    "scored": Array(("E",), "int64", "tokens that went through student and teacher for them", "token"),
}

TRAINING_STATE = {
    **TRAININGS,
    "so_far": Array(("2",), "int64", "tokens sampled, and scored, by now", "token"),
    "done": Array(("1",), "int32", "updates by now", "step"),
    "weights": Array(("B",), "uint8", "trained parameters and the optimiser's state, a safetensors file"),
}


OTHER_LAYOUTS: dict[str, Mapping[str, Array]] = {
    "rounds": ROUNDS,
    "continuations": CONTINUATIONS,
    "trainings": TRAININGS,
    "training_states": TRAINING_STATE,
}
"""Layouts of what no stage declares: draws, and trainings."""


def check_layout(stage: str, layout: Mapping[str, Array], arrays: Arrays) -> None:
    """Raise ValueError unless the arrays are exactly those declared for the stage, with agreeing lengths."""
    if set(arrays) != set(layout):
        raise ValueError(f"{stage}: arrays {sorted(arrays)} are not the declared {sorted(layout)}")
    lengths: dict[str, int] = {}
    for name, declared in layout.items():
        array = arrays[name]
        if array.dtype != np.dtype(declared.dtype):
            raise ValueError(f"{stage}/{name}: dtype {array.dtype} is not the declared {declared.dtype}")
        if array.ndim != len(declared.dims):
            raise ValueError(f"{stage}/{name}: {array.ndim} dimensions, declared {declared.dims}")
        for dim, size in zip(declared.dims, array.shape, strict=True):
            letter, extra = (dim[:-2], 1) if dim.endswith("+1") else (dim, 0)
            if lengths.setdefault(letter, size - extra) != size - extra:
                raise ValueError(f"{stage}/{name}: {size} along {dim}, elsewhere {lengths[letter]} along {letter}")
