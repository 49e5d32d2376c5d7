"""What the runs of a calibration come to: figures with what they must be, and error against decoded tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from tasks.calibration.measure import EQUAL

MAIN_DRAWS = 4096
"""Draws a question at which planners are judged."""
WINDOWS_DRAWS = 2458
"""The budget of `windows` that takes as many decoded tokens."""
HONEST = ("adaptive", "forced", "uniform")
"""Planners whose scores claim to be unbiased."""
FAMILY = ["length", "signal", "student", "decisions"]


class Figure(NamedTuple):
    """One figure: its value, with a standard error where it is a mean over runs, and what it must be."""

    name: str
    value: float | None
    error: float | None
    n: int
    wanted: str
    holds: bool | None


def figures(rows: pl.DataFrame) -> list[Figure]:
    """All figures, from the rows of `measure`."""
    at = _at_main(rows)
    adaptive = at.filter(pl.col("planner") == "adaptive")
    out = []
    for planner in HONEST:
        for score in ("alignment", "gain"):
            part = at.filter((pl.col("planner") == planner) & (pl.col("score") == score))
            out.append(_bias(f"bias of {score}, {planner}", part, judged=planner != "uniform"))
    for score in ("alignment", "gain", "group difference", "teacher difference", "equal groups"):
        part = adaptive.filter(pl.col("score") == score)
        what = "0 held where groups are equal" if score == "equal groups" else f"coverage, {score}"
        out.append(_coverage(what, part))
    for score, wanted in (
        ("wrong signs", "at most 5 %"),
        ("node coverage", "at least 93 %"),
        ("node coverage, resolved", "at least 93 %"),
        ("resolved", ""),
    ):
        out.append(_share(score, adaptive.filter(pl.col("score") == score), wanted))
    signal = adaptive.filter(pl.col("score") == "|g|^2 of the resolved")
    out.append(Figure("|g|^2 carried by resolved nodes", _mean(signal["estimate"]), None, signal.height, "", None))
    out.append(_ratio_to_windows(at, "mean_cosine", "windows' score, mean_cosine"))
    out.append(_ratio_to_windows(at, "alignment", "our pooled alignment of windows' counts"))
    out.append(_tokens_against_uniform(rows))
    out.append(_tokens_to_rank(rows))
    out.append(_growth(rows))
    return out


def failing(figures: Sequence[Figure]) -> list[str]:
    """Those that are not what they must be, in words."""
    return [f"{f.name}: {f.value:.3f}, must be {f.wanted}" for f in figures if f.holds is False and f.value is not None]


def by_planner(rows: pl.DataFrame) -> pl.DataFrame:
    """Every planner at as many decoded tokens, over all families of fixed decisions, as shares.

    `windows` was judged on chains of up to 1,024 tokens alone.
    """
    at = _at_main(rows)
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
                "bias": _bias("", of("alignment"), judged=False).value,
                "error": _mean(errors(part)["rmse"]),
                "error of mean_cosine": _mean(errors(part, "mean_cosine")["rmse"]),
                "unresolved": of("alignment")["estimate"].is_null().mean(),
                "coverage": _coverage("", of("alignment")).value,
                "coverage, groups": _coverage("", of("group difference")).value,
                "coverage, nodes": _share("", of("node coverage"), "").value,
                "wrong signs": _share("", of("wrong signs"), "").value,
                "|g|^2 resolved": _mean(of("|g|^2 of the resolved")["estimate"]),
            }
        )
    return pl.DataFrame(table, infer_schema_length=None)


def ranking_table(rows: pl.DataFrame) -> pl.DataFrame:
    """`rank` by rollouts a question, and `windows` beside it: how often the best is first, and rank correlation."""
    return (
        first_right(rows)
        .group_by("planner", "rollouts", "draws")
        .agg(pl.col("right").mean(), pl.col("agreement").mean(), pl.col("length").len().alias("families"))
        .sort("planner", "rollouts", "draws")
    )


def _at_main(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows at the main budget, or as many decoded tokens, of all families but the dense one."""
    return rows.filter(pl.col("draws").is_in([MAIN_DRAWS, WINDOWS_DRAWS]) & (pl.col("decisions") == "fixed"))


def _mean(values: pl.Series) -> float | None:
    mean = values.drop_nulls().mean()
    return float(mean) if isinstance(mean, float) else None


def _bias(name: str, part: pl.DataFrame, *, judged: bool) -> Figure:
    """Of estimates against the population's truth; its error is between runs, whose teachers share their draws.

    Most estimates from uniform nodes are unresolved, and the others are those that chance made so: not judged.
    """
    part = part.filter(pl.col("teacher") != EQUAL).with_columns(off=pl.col("estimate") - pl.col("truth"))
    known = part.drop_nulls("off")
    by_run = known.group_by([*FAMILY, "run"]).agg(pl.col("off").mean())["off"]
    value, deviation = _mean(by_run), by_run.std()
    error = float(deviation) / max(1, by_run.len()) ** 0.5 if isinstance(deviation, float) else None
    holds = None if value is None or not judged else abs(value) <= 0.01
    return Figure(name, value, error, known.height, "within .01" if judged else "", holds)


def _coverage(name: str, part: pl.DataFrame) -> Figure:
    known = part.drop_nulls(["low", "high"])
    inside = known.select((pl.col("low") <= pl.col("truth")) & (pl.col("truth") <= pl.col("high"))).to_series()
    share = _mean(inside.cast(pl.Float64))
    runs = known.select([*FAMILY, "run"]).unique().height
    error = (share * (1 - share) / max(1, runs)) ** 0.5 if share is not None else None
    return Figure(name, share, error, known.height, "93-97 %", None if share is None else 0.93 <= share <= 0.97)


def _share(name: str, part: pl.DataFrame, wanted: str) -> Figure:
    n = int(part["count"].sum())
    share = float((part["estimate"] * part["count"]).sum()) / n if n else None
    holds = None if share is None or not wanted else share <= 0.05 if "most" in wanted else share >= 0.93
    return Figure(name, share, None, n, wanted, holds)


def errors(rows: pl.DataFrame, score: str = "alignment") -> pl.DataFrame:
    """Root-mean-square error against the very questions' truth, by family, planner and budget.

    An unresolved estimate counts as 0, which is what it tells.
    """
    part = rows.filter((pl.col("score") == score) & (pl.col("teacher") != EQUAL))
    off = pl.col("estimate").fill_null(0.0) - pl.col("own")
    return part.group_by([*FAMILY, "planner", "draws"]).agg(
        rmse=off.pow(2).mean().sqrt(),
        tokens=pl.col("tokens").mean(),
        unresolved=pl.col("estimate").is_null().mean(),
        runs=pl.col("run").n_unique(),
    )


def _ratio_to_windows(at: pl.DataFrame, score: str, what: str) -> Figure:
    """Error of `adaptive` over that of a score of `windows` at as many tokens, the mean over families."""
    adaptive = errors(at.filter(pl.col("planner") == "adaptive")).select(*FAMILY, mine="rmse")
    theirs = errors(at.filter(pl.col("planner") == "windows"), score).select(*FAMILY, theirs="rmse")
    both = adaptive.join(theirs, on=FAMILY)
    value = _mean(both["mine"] / both["theirs"])
    name = f"error of adaptive / of {what}"
    return Figure(name, value, None, both.height, "at most 1/4", None if value is None else value <= 0.25)


def _tokens_against_uniform(rows: pl.DataFrame) -> Figure:
    """Tokens of the smallest adaptive budget that errs no more than `uniform` at the main one, over uniform's."""
    table = errors(rows.filter(pl.col("decisions") == "fixed"))
    uniform = table.filter((pl.col("planner") == "uniform") & (pl.col("draws") == MAIN_DRAWS))
    adaptive = table.filter(pl.col("planner") == "adaptive")
    both = adaptive.join(uniform.select(*FAMILY, limit="rmse", full="tokens"), on=FAMILY)
    enough = (
        both.filter(pl.col("rmse") <= pl.col("limit"))
        .group_by(FAMILY)
        .agg(share=(pl.col("tokens") / pl.col("full")).min())
    )
    value = _mean(enough["share"])
    complete = enough.height == uniform.height
    name = "tokens adaptive needs for the error of uniform nodes and equal draws"
    return Figure(name, value, None, enough.height, "at most 1/5", None if value is None else complete and value <= 0.2)


def first_right(rows: pl.DataFrame) -> pl.DataFrame:
    """How often the truly best teacher comes first, by planner and budget, with the tokens that took."""
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


def _tokens_to_rank(rows: pl.DataFrame) -> Figure:
    """Tokens of the smallest `rank` that is right in 95 % of the runs, over those of such a `windows`.

    Where no `windows` is, its largest budget stands: the true ratio is less.
    """
    right = first_right(rows)
    enough = right.filter(pl.col("right") >= 0.95)
    mine = enough.filter(pl.col("planner") == "rank").group_by(FAMILY).agg(mine=pl.col("tokens").min())
    windows = right.filter(pl.col("planner") == "windows").group_by(FAMILY).agg(most=pl.col("tokens").max())
    theirs = enough.filter(pl.col("planner") == "windows").group_by(FAMILY).agg(theirs=pl.col("tokens").min())
    both = windows.join(mine, on=FAMILY, how="left").join(theirs, on=FAMILY, how="left")
    ratios = both.with_columns(ratio=pl.col("mine") / pl.coalesce("theirs", "most"))["ratio"]
    value = _mean(ratios)
    complete = ratios.null_count() == 0
    name = "tokens rank needs to put the best teacher first in 95 % / windows'"
    return Figure(name, value, None, both.height, "at most 1/50", None if value is None else complete and value <= 0.02)


def _growth(rows: pl.DataFrame) -> Figure:
    """Cost at equal error, longest chains over shortest, over the ratio of their lengths.

    At as many draws the error goes as one over the root of the cost, so cost at equal error is tokens x error^2. A mean
    square over runs is itself uncertain: the figure fails where it is above 1 by more than two standard errors.
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
        return Figure(name, None, None, 0, "", None)
    short, long = (costs.filter(pl.col("length") == n).drop("length") for n in (lengths[0], lengths[-1]))
    both = long.join(short, on=["signal", "student"], suffix="_short").with_columns(
        ratio=pl.col("cost") / pl.col("cost_short") / (lengths[-1] / lengths[0]),
        doubt=(pl.col("relative") ** 2 + pl.col("relative_short") ** 2).sqrt(),
    )
    value = _mean(both["ratio"])
    error = float((both["ratio"] * both["doubt"]).pow(2).sum()) ** 0.5 / max(1, both.height)
    name = f"{name}, {lengths[0]} to {lengths[-1]} tokens, over that of a rollout"
    return Figure(name, value, error, both.height, "at most 1", None if value is None else value - 2 * error <= 1.0)
