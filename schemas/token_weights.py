"""Columns of the weights that `opdscope export` writes; null means undefined."""

from schemas.columns import Column
from schemas.tables import TOKENS

EXPORT_SCHEMA = 1
"""Version of the files of an export."""

SOURCES = ("drawn", "predicted", "none")
"""Where a token's estimate comes from."""

WEIGHTS: dict[str, Column] = {
    **{name: TOKENS[name] for name in ("question_id", "rollout_id", "position", "token_id", "correct")},
    "weight": Column(
        "Float64",
        "what the token's loss is multiplied by: the estimate, at least 0 and at most 10, or a mask of 0 and 1",
    ),
    "estimate": Column(
        "Float64", "expected <g, d> / |d|^2, times the scale of export.json; below 0 where learning does harm"
    ),
    "estimate_low": Column(
        "Float64", "lower end of the token's interval: from its draws, or of tokens around the rule"
    ),
    "estimate_high": Column("Float64", "upper end of the interval"),
    "source": Column("String", "drawn: from the token's draws; predicted: by the full rule; none: no signal there"),
    "p_positive": Column("Float64", "posterior probability that <g, d> > 0; null where nothing was drawn"),
    **{name: TOKENS[name] for name in ("teacher", "context", "loss", "student_prob")},
    "entropy": Column("Float64", "entropy of the student's next-token distribution as sampled, nat"),
    "log_ratio": Column(
        "Float64", "log T - log P of the token, P as sampled, nat; null where the teacher does not tell"
    ),
    "divergence": Column("Float64", "KL(P || T), both at temperature 1, nat; null likewise"),
    "d_sq": Column("Float64", "|d|^2 of the signal that the token follows"),
}
"""One row for each token of the run's rollouts, in order."""
