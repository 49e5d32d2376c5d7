"""Columns of the tables that a run writes. Polars names of types; null is undefined."""

from typing import NamedTuple


class Column(NamedTuple):
    """One column: its polars type and what it holds."""

    dtype: str
    meaning: str


TOKENS: dict[str, Column] = {
    "question_id": Column("String", "the question"),
    "rollout_id": Column("Int32", "the rollout within the question"),
    "position": Column("Int32", "place in the completion, from 0"),
    "token_id": Column("Int32", "the token that the rollout has there"),
    "token": Column("String", "its text"),
    "correct": Column("Boolean", "the rollout's own verdict"),
    "weight": Column("Float64", "1 / inclusion probability of the node"),
    "student_prob": Column("Float64", "student's probability of the token, as sampled"),
    "entropy": Column("Float64", "entropy of the student's next-token distribution, nat"),
    "branches": Column("Int32", "branches drawn, tail tokens included"),
    "draws": Column("Int32", "draws of all branches"),
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    "cosine": Column("Float64", "posterior mean of the cosine of ideal and distillation gradient"),
    "cosine_low": Column("Float64", "lower end of its interval"),
    "cosine_high": Column("Float64", "upper end of its interval"),
    "p_positive": Column("Float64", "posterior probability that <g, d> > 0"),
    "reliability": Column("Float64", "share of |g|^2 as drawn that is signal; below 0 where noise outweighs it"),
    "resolved": Column("Boolean", "p_positive lies outside the interval's tails: the sign is told, node by node"),
    "inner": Column("Float64", "<g, d> without bias"),
    "g_sq": Column("Float64", "|g|^2 without bias; may be negative"),
    "d_sq": Column("Float64", "|d|^2, exact"),
    "teacher_advantage": Column(
        "Float64", "sum_j (T_j - P_j) Q_j; null where the teacher puts more than tail_limit on an undrawn tail"
    ),
    "kl": Column("Float64", "KL(student || teacher), nat"),
    "js": Column("Float64", "Jensen-Shannon divergence, nat"),
    "cosine_plain": Column("Float64", "uncorrected cosine over the head's branches, P and T renormalised there"),
    "value": Column("Float64", "success probability of the student from here"),
    "tail_prob": Column("Float64", "probability outside the head"),
    "teacher_prob": Column("Float64", "teacher's probability of the token"),
    "truncated_draws": Column("Int32", "draws stopped by the length limit"),
}

SUMMARY: dict[str, Column] = {
    "group": Column("String", "how nodes are grouped: all, outcome, position, entropy, divergence, difficulty"),
    "bin": Column("String", "which of the group's bins"),
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    "alignment": Column("Float64", "pooled, noise-corrected cosine; null where unresolved or undefined"),
    "alignment_low": Column("Float64", "lower end of its interval"),
    "alignment_high": Column("Float64", "upper end of its interval"),
    "gain": Column("Float64", "success probability gained for a unit step along the distillation direction"),
    "gain_low": Column("Float64", "lower end of its interval"),
    "gain_high": Column("Float64", "upper end of its interval"),
    "mean_cosine": Column("Float64", "mean of the uncorrected node cosines, the paper's score"),
    "nodes": Column("Int64", "nodes in the group"),
    "questions": Column("Int64", "questions with a node in the group"),
    "reliability": Column("Float64", "share of the pooled |g|^2 as drawn that is signal"),
    "resolved": Column("Boolean", "the pooled |g|^2 is above 0, in the replicates too"),
    "mean_cosine_low": Column("Float64", "lower end of its interval"),
    "mean_cosine_high": Column("Float64", "upper end of its interval"),
    "d_sq": Column("Float64", "sum of |d|^2 over all positions of the group"),
    "bin_low": Column("Float64", "lower edge of the bin, in the unit of what is binned; null at an end"),
    "bin_high": Column("Float64", "upper edge of the bin; null at an end"),
}
