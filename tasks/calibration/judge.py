"""All figures of a calibration, from the rows of its runs."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from tasks.calibration.comparisons import (
    at_main,
    bias,
    coverage,
    errors,
    first_right,
    growth,
    mean,
    ratio_to_windows,
    share,
    tokens_against_uniform,
    tokens_to_rank,
)
from tasks.calibration.figure import HONEST, WITHIN_01, Figure, Range, Verdict


def figures(rows: pl.DataFrame) -> list[Figure]:
    """All figures, from the rows of `measure`."""
    at = at_main(rows)
    adaptive = at.filter(pl.col("planner") == "adaptive")
    out = []
    for planner in HONEST:
        for score in ("alignment", "gain"):
            part = at.filter((pl.col("planner") == planner) & (pl.col("score") == score))
            # most estimates from uniform nodes are unresolved, and chance selects the resolved ones: not judged
            out.append(bias(f"bias of {score}, {planner}", part, None if planner == "uniform" else WITHIN_01))
    for score in ("alignment", "gain", "group difference", "teacher difference", "equal groups"):
        part = adaptive.filter(pl.col("score") == score)
        name = "coverage of 0 for equal groups" if score == "equal groups" else f"coverage, {score}"
        out.append(coverage(name, part))
    at_least = Range(0.93, np.inf, "at least 93 %")
    for score, wanted in (
        ("wrong signs", Range(-np.inf, 0.05, "at most 5 %")),
        ("node coverage", at_least),
        ("node coverage, resolved", at_least),
        ("resolved", None),
    ):
        out.append(share(score, adaptive.filter(pl.col("score") == score), wanted))
    signal = adaptive.filter(pl.col("score") == "|g|^2 of the resolved")
    out.append(Figure("|g|^2 carried by resolved nodes", mean(signal["estimate"]), None, signal.height))
    out.append(ratio_to_windows(at, "mean_cosine", "windows' score, mean_cosine"))
    out.append(ratio_to_windows(at, "alignment", "our pooled alignment of windows' counts"))
    out.append(tokens_against_uniform(rows))
    out.append(tokens_to_rank(rows))
    out.append(growth(rows))
    return out


def judged_as(verdict: Verdict, figures: Sequence[Figure]) -> list[str]:
    """The figures with a verdict, in words."""
    return [
        f"{f.name}: {f.value:.3f} ± {f.error or 0:.3f}, must be {f.must_be}" for f in figures if f.verdict == verdict
    ]


def by_planner(rows: pl.DataFrame) -> pl.DataFrame:
    """Every planner at the same number of decoded tokens, over all families with fixed decisions.

    `windows` is evaluated only on chains of up to 1,024 tokens.
    """
    at = at_main(rows)
    table = []
    for planner in (*HONEST, "windows"):
        part = at.filter(pl.col("planner") == planner)
        if part.is_empty():
            continue

        def of(score: str, part: pl.DataFrame = part) -> pl.DataFrame:
            return part.filter(pl.col("score") == score)

        table.append(
            {
                "planner": planner,
                "bias": bias("", of("alignment"), None).value,
                "error": mean(errors(part)["rmse"]),
                "error of mean_cosine": mean(errors(part, "mean_cosine")["rmse"]),
                "unresolved": of("alignment")["estimate"].is_null().mean(),
                "coverage": coverage("", of("alignment")).value,
                "coverage, groups": coverage("", of("group difference")).value,
                "coverage, nodes": share("", of("node coverage"), None).value,
                "wrong signs": share("", of("wrong signs"), None).value,
                "|g|^2 resolved": mean(of("|g|^2 of the resolved")["estimate"]),
            }
        )
    return pl.DataFrame(table, infer_schema_length=None)


def ranking_table(rows: pl.DataFrame) -> pl.DataFrame:
    """`rank` by rollouts per question, compared with `windows`: how often the best is first, and rank correlation."""
    return (
        first_right(rows)
        .group_by("planner", "rollouts", "draws")
        .agg(pl.col("right").mean(), pl.col("agreement").mean(), pl.col("length").len().alias("families"))
        .sort("planner", "rollouts", "draws")
    )
