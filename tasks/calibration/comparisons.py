"""Figures from the rows of runs: errors, coverage, and comparisons of planners."""

import numpy as np
import polars as pl

from tasks.calibration.figure import COVERS, Figure, Range
from tasks.calibration.measure import EQUAL

MAIN_DRAWS = 4096
"""Draws per question at which planners are evaluated."""

WINDOWS_DRAWS = 2458
"""The budget of `windows` that takes the same number of decoded tokens."""

FAMILY = ["length", "signal", "student", "decisions"]


def at_main(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows at the main budget, or the same number of decoded tokens, of all families except the dense one."""
    return rows.filter(pl.col("draws").is_in([MAIN_DRAWS, WINDOWS_DRAWS]) & (pl.col("decisions") == "fixed"))


def mean(values: pl.Series) -> float | None:
    mean = values.drop_nulls().mean()
    return float(mean) if isinstance(mean, float) else None


def bias(name: str, part: pl.DataFrame, wanted: Range | None) -> Figure:
    """Bias against the population's truth; its standard error is between runs, as the teachers of a run share draws."""
    part = part.filter(pl.col("teacher") != EQUAL).with_columns(off=pl.col("estimate") - pl.col("truth"))
    known = part.drop_nulls("off")
    by_run = known.group_by([*FAMILY, "run"]).agg(pl.col("off").mean())["off"]
    return Figure(name, mean(by_run), error_of_mean(by_run), known.height, wanted)


def error_of_mean(values: pl.Series) -> float | None:
    """Standard error of the mean of independent values; None for fewer than two."""
    known = values.drop_nulls()
    deviation = known.std()
    return float(deviation) / known.len() ** 0.5 if isinstance(deviation, float) and known.len() > 1 else None


def coverage(name: str, part: pl.DataFrame) -> Figure:
    inside = (pl.col("low") <= pl.col("truth")) & (pl.col("truth") <= pl.col("high"))
    return share(name, part.drop_nulls(["low", "high"]).with_columns(estimate=inside.cast(pl.Float64)), COVERS)


def share(name: str, part: pl.DataFrame, wanted: Range | None) -> Figure:
    """A share of what was counted; its standard error is between runs, within which counts are correlated.

    It is that of a ratio of sums: the root of sum (x - share n)^2 over runs, over sum n. Where all runs agree there is
    no spread: the error is then the change of the share if one more run consisted of exceptions only.
    """
    counted = part.with_columns(x=pl.col("estimate") * pl.col("count"))
    runs = counted.group_by([*FAMILY, "run"]).agg(pl.col("x").sum(), n=pl.col("count").sum())
    m, n = runs.height, int(runs["n"].sum())
    if not n:
        return Figure(name, None, None, 0, wanted)
    share = float(runs["x"].sum()) / n
    spread = float(((runs["x"] - share * runs["n"]) ** 2).sum() * m / max(1, m - 1)) ** 0.5 / n
    return Figure(name, share, spread if spread > 0 else 1 / (m + 1), n, wanted)


def errors(rows: pl.DataFrame, score: str = "alignment") -> pl.DataFrame:
    """Root-mean-square error against the truth of the sampled questions, by family, planner and budget.

    An unresolved estimate counts as 0.
    """
    part = rows.filter((pl.col("score") == score) & (pl.col("teacher") != EQUAL))
    off = pl.col("estimate").fill_null(0.0) - pl.col("own")
    return part.group_by([*FAMILY, "planner", "draws"]).agg(
        rmse=off.pow(2).mean().sqrt(),
        tokens=pl.col("tokens").mean(),
        unresolved=pl.col("estimate").is_null().mean(),
        runs=pl.col("run").n_unique(),
    )


def ratio_to_windows(at: pl.DataFrame, score: str, label: str) -> Figure:
    """Error of `adaptive` over that of a score of `windows` at the same number of tokens, averaged over families."""
    adaptive = errors(at.filter(pl.col("planner") == "adaptive")).select(*FAMILY, adaptive="rmse")
    windows = errors(at.filter(pl.col("planner") == "windows"), score).select(*FAMILY, windows="rmse")
    both = adaptive.join(windows, on=FAMILY)
    ratios = both["adaptive"] / both["windows"]
    wanted = Range(-np.inf, 0.25, "at most 1/4")
    return Figure(f"error of adaptive / of {label}", mean(ratios), error_of_mean(ratios), both.height, wanted)


def tokens_against_uniform(rows: pl.DataFrame) -> Figure:
    """Tokens of the smallest adaptive budget with at most the error of `uniform` at the main one, over uniform's."""
    table = errors(rows.filter(pl.col("decisions") == "fixed"))
    uniform = table.filter((pl.col("planner") == "uniform") & (pl.col("draws") == MAIN_DRAWS))
    adaptive = table.filter(pl.col("planner") == "adaptive")
    both = adaptive.join(uniform.select(*FAMILY, limit="rmse", full="tokens"), on=FAMILY)
    enough = (
        both.filter(pl.col("rmse") <= pl.col("limit"))
        .group_by(FAMILY)
        .agg(share=(pl.col("tokens") / pl.col("full")).min())
    )
    # where no budget is enough, more than the main one is needed
    shares = uniform.select(FAMILY).join(enough, on=FAMILY, how="left")["share"].fill_null(1.0)
    name = "tokens adaptive needs for the error of uniform nodes and equal draws"
    return Figure(name, mean(shares), error_of_mean(shares), shares.len(), Range(-np.inf, 0.2, "at most 1/5"))


def first_right(rows: pl.DataFrame) -> pl.DataFrame:
    """How often the truly best teacher ranks first, by planner and budget, with the tokens used."""
    score = {"rank": "rank gain", "windows": "mean_cosine"}
    part = rows.filter((pl.col("decisions") == "fixed") & (pl.col("teacher") != EQUAL))
    frames = []
    for planner, name in score.items():
        of = part.filter((pl.col("planner") == planner) & (pl.col("score") == name))
        runs = of.group_by([*FAMILY, "draws", "rollouts", "run"]).agg(
            right=pl.col("teacher").sort_by(pl.col("estimate").fill_null(-9), descending=True).first()
            == pl.col("teacher").sort_by("own", descending=True).first(),
            agreement=pl.corr("estimate", "own", method="spearman"),
            tokens=pl.col("tokens").first(),
        )
        frames.append(
            runs.group_by([*FAMILY, "draws", "rollouts"])
            .agg(pl.col("right").mean(), pl.col("agreement").mean(), pl.col("tokens").mean())
            .with_columns(planner=pl.lit(planner))
        )
    return pl.concat(frames)


def tokens_to_rank(rows: pl.DataFrame) -> Figure:
    """Tokens of the smallest `rank` that is right in 95 % of the runs, over those of the smallest such `windows`.

    Where no `windows` is right that often, its largest budget is used: the true ratio is smaller.
    """
    right = first_right(rows)
    enough = right.filter(pl.col("right") >= 0.95)
    rank = enough.filter(pl.col("planner") == "rank").group_by(FAMILY).agg(rank=pl.col("tokens").min())
    most = right.filter(pl.col("planner") == "windows").group_by(FAMILY).agg(most=pl.col("tokens").max())
    windows = enough.filter(pl.col("planner") == "windows").group_by(FAMILY).agg(windows=pl.col("tokens").min())
    both = most.join(rank, on=FAMILY, how="left").join(windows, on=FAMILY, how="left")
    # where no rank is enough, it needs more than any windows used
    ratios = both.with_columns(ratio=pl.col("rank") / pl.coalesce("windows", "most"))["ratio"].fill_null(1.0)
    name = "tokens rank needs to put the best teacher first in 95 % / windows'"
    return Figure(name, mean(ratios), error_of_mean(ratios), both.height, Range(-np.inf, 0.02, "at most 1/50"))


def growth(rows: pl.DataFrame) -> Figure:
    """Cost at equal error of the longest chains over that of the shortest, divided by the ratio of their lengths.

    The error scales as one over the root of the cost, so with equal draws the cost at equal error is tokens x error^2.
    """
    adaptive = (pl.col("planner") == "adaptive") & (pl.col("draws") == MAIN_DRAWS) & (pl.col("decisions") == "fixed")
    part = rows.filter(adaptive & (pl.col("score") == "alignment") & (pl.col("teacher") != EQUAL))
    by_run = part.group_by("length", "signal", "student", "run").agg(
        square=(pl.col("estimate").fill_null(0.0) - pl.col("own")).pow(2).mean(), tokens=pl.col("tokens").mean()
    )
    costs = by_run.group_by("length", "signal", "student").agg(
        cost=pl.col("square").mean() * pl.col("tokens").mean(),
        relative=pl.col("square").std() / pl.col("square").mean() / pl.len().sqrt(),
    )
    lengths = costs["length"].unique().sort().to_list()
    name = "growth of the cost at equal error"
    if len(lengths) < 2:
        return Figure(name, None, None, 0)
    short, long = (costs.filter(pl.col("length") == n).drop("length") for n in (lengths[0], lengths[-1]))
    both = long.join(short, on=["signal", "student"], suffix="_short").with_columns(
        ratio=pl.col("cost") / pl.col("cost_short") / (lengths[-1] / lengths[0]),
        relative_error=(pl.col("relative") ** 2 + pl.col("relative_short") ** 2).sqrt(),
    )
    value = mean(both["ratio"])
    error = float((both["ratio"] * both["relative_error"]).pow(2).sum()) ** 0.5 / max(1, both.height)
    name = f"{name}, {lengths[0]} to {lengths[-1]} tokens, over that of a rollout"
    return Figure(name, value, error, both.height, Range(-np.inf, 1.0, "at most 1"))
