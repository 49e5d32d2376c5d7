"""Columns of what is known of a run question by question, and of comparisons of runs; null means undefined."""

from schemas.columns import Column

POOLED: dict[str, Column] = {
    "question_id": Column("String", "the question"),
    "teacher": Column("String", "name of the teacher"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    "rollouts": Column("Int64", "rollouts of the student"),
    "correct": Column("Int64", "of these, the correct ones"),
    "truncated": Column("Int64", "of the rollouts, those stopped by the length limit"),
    "nonempty": Column("Int64", "of the rollouts, those with a token: gain is per such rollout"),
    "inner": Column("Float64", "weighted sum of <g, d> over the nodes"),
    "g_sq": Column("Float64", "weighted sum of unbiased |g|^2"),
    "d_sq": Column("Float64", "sum of |d|^2 over all positions; an estimate where losses need draws"),
    "nodes": Column("Int64", "nodes, each counted once"),
    "open": Column("Int64", "of these, the ones whose draws differ in outcome; without any the question carries none"),
}
"""What pooled scores are made from."""

BY_QUESTION = ("question_id", "teacher", "context", "loss")
"""Columns that tell rows by question apart."""

ANSWERED: dict[str, Column] = {
    "own": Column("Float64", "success rate of the teacher's own answers; null where it does not answer"),
    "handover": Column("Float64", "success rate of the student from just before them; null where it is not known"),
    "update_inner": Column(
        "Float64",
        "<G, D> of the question with the others: mean over these of the policy gradient of either with the signal's "
        "update of the other; null where no updates were computed",
    ),
}
"""What forecasts are made from, besides."""

QUESTIONS: dict[str, Column] = POOLED | ANSWERED

COMPARISON: dict[str, Column] = {
    "score": Column("String", "success (of the student), own and handover (of a teacher), forecast, alignment or gain"),
    "teacher": Column("String", "name of the teacher; null for the student's success"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss; null where the score does not depend on it"),
    "run": Column("String", "the run"),
    "value": Column("Float64", "the score in the run, as in its own tables; null where it is not known"),
    "value_low": Column("Float64", "lower end of its interval"),
    "value_high": Column("Float64", "upper end of its interval"),
    "difference": Column("Float64", "the score less that of the first run; over common questions where it is paired"),
    "difference_low": Column("Float64", "lower end of its interval"),
    "difference_high": Column("Float64", "upper end of its interval"),
    "paired": Column("Int64", "common questions that the difference is paired over; 0: it is not; null without one"),
}
