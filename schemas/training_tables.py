"""Columns of the tables that a validation writes, with polars type names; null means undefined."""

from schemas.columns import Column
from schemas.tables import FORECASTS

TRAININGS: dict[str, Column] = {
    "student": Column("String", "the student's model, or its number where students are alike in name"),
    "teacher": Column("String", "name of the teacher; reward where that is the signal"),
    "context": Column("String", "name of its context"),
    "loss": Column("String", "name of the loss"),
    "tokens": Column("String", "the tokens that are trained on"),
    "optimiser": Column("String", "name of the optimiser"),
    "seed": Column("Int32", "of questions and draws"),
    "step": Column("Int32", "updates of the parameters"),
    "success": Column("Float64", "success rate on the held-out questions"),
    "change": Column("Float64", "success less that of the student as it was, on the same questions and draws"),
    "change_low": Column("Float64", "lower end of its 95 % interval, paired by question"),
    "change_high": Column("Float64", "upper end of its interval"),
    "decoded": Column("Int64", "tokens sampled for the updates"),
    "scored": Column("Int64", "tokens that went through student and teacher for them"),
}

PREDICTIONS: dict[str, Column] = {
    "forecast": Column("Float64", "as in forecasts.parquet, of the ranking beforehand"),
    "own": Column("Float64", "own success of the teacher with its context"),
    "handover": Column("Float64", "of the student, from just before the teacher's answers"),
    "gain": Column("Float64", "as in ranks.parquet"),
    "update_gain": Column("Float64", "as in ranks.parquet"),
    "alignment": Column("Float64", "as in summary.parquet; null without a diagnosis"),
    "mean_cosine": Column("Float64", "the paper's score, as in summary.parquet"),
    "kl": Column("Float64", "mean KL(student || teacher) of a token, nat"),
}
"""What trainings are compared with."""

VALIDATION: dict[str, Column] = {
    "student": TRAININGS["student"],
    "teacher": TRAININGS["teacher"],
    "context": TRAININGS["context"],
    "loss": TRAININGS["loss"],
    "tokens": TRAININGS["tokens"],
    "optimiser": TRAININGS["optimiser"],
    "step": TRAININGS["step"],
    "seeds": Column("Int32", "trainings"),
    "measured": Column("Float64", "success on the held-out questions, mean over seeds"),
    "measured_error": Column("Float64", "its standard error over seeds; null from one seed"),
    "base": Column("Float64", "success of the student as it was, on the same questions and draws"),
    "change_low": Column("Float64", "lower end of the 95 % interval of measured less base, by question"),
    "change_high": Column("Float64", "upper end of it"),
    **PREDICTIONS,
    "forecast_low": FORECASTS["forecast_low"],
    "forecast_high": FORECASTS["forecast_high"],
    "verdict": FORECASTS["verdict"],
    "remark": FORECASTS["remark"],
    "selected_gain": Column("Float64", "gain of training on such tokens alone, as in selection.parquet"),
}

VALIDATION_TABLES = {"trainings": TRAININGS, "validation": VALIDATION}
"""The tables of a validation, by file name."""
