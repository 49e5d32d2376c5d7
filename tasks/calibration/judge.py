"""What the runs of a calibration come to: figures with what they must be, and error against decoded tokens."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from tasks.calibration.measure import EQUAL

MAIN_DRAWS = 4096
"""Draws a question at which planners are judged."""
WINDOWS_DRAWS = 2458
"""The budget of `windows` that takes as many decoded tokens."""
HONEST = ("adaptive", "forced", "uniform")
"""Planners whose scores claim to be unbiased."""
FAMILY = ["length", "signal", "student", "decisions"]


Verdict = Literal["pass", "fail", "inconclusive"]


class Range(NamedTuple):
    """What a figure must be: within these bounds, in words."""

    low: float
    high: float
    words: str


WITHIN_01 = Range(-0.01, 0.01, "within .01")
COVERS = Range(0.93, 0.97, "93-97 %")


class Figure(NamedTuple):
    """One figure: its value with its standard error, what it is of, and what it must be, if anything."""

    name: str
    value: float | None
    error: float | None
    n: int
    wanted: Range | None = None

    @property
    def verdict(self) -> Verdict | None:
        """Whether the figure is what it must be, as far as its own error lets that be told; None where it must nothing.

        It passes where it lies inside by its standard error or more, and fails where it lies outside by more than two:
        a night in which nothing has changed is then seldom called a failure.
        """
        if self.value is None or self.wanted is None:
            return None
        inside = min(self.value - self.wanted.low, self.wanted.high - self.value)
        error = self.error or 0.0
        return "pass" if inside >= error else "fail" if inside < -2 * error else "inconclusive"

    @property
    def must_be(self) -> str:
        """What it must be, in words."""
        return "" if self.wanted is None else self.wanted.words

    @property
    def row(self) -> dict[str, str | float | int | None]:
        """As a row of a table."""
        shown = {"figure": self.name, "value": self.value, "error": self.error, "of": self.n}
        return {**shown, "must be": self.must_be, "verdict": self.verdict}


def figures(rows: pl.DataFrame) -> list[Figure]:
    """All figures, from the rows of `measure`."""
    at = _at_main(rows)
    adaptive = at.filter(pl.col("planner") == "adaptive")
    out = []
    for planner in HONEST:
        for score in ("alignment", "gain"):
            part = at.filter((pl.col("planner") == planner) & (pl.col("score") == score))
            # most estimates from uniform nodes are unresolved, the others are those that chance made so: not judged
            out.append(_bias(f"bias of {score}, {planner}", part, None if planner == "uniform" else WITHIN_01))
    for score in ("alignment", "gain", "group difference", "teacher difference", "equal groups"):
        part = adaptive.filter(pl.col("score") == score)
        what = "0 held where groups are equal" if score == "equal groups" else f"coverage, {score}"
        out.append(_coverage(what, part))
    at_least = Range(0.93, np.inf, "at least 93 %")
    for score, wanted in (
        ("wrong signs", Range(-np.inf, 0.05, "at most 5 %")),
        ("node coverage", at_least),
        ("node coverage, resolved", at_least),
        ("resolved", None),
    ):
        out.append(_share(score, adaptive.filter(pl.col("score") == score), wanted))
    signal = adaptive.filter(pl.col("score") == "|g|^2 of the resolved")
    out.append(Figure("|g|^2 carried by resolved nodes", _mean(signal["estimate"]), None, signal.height))
    out.append(_ratio_to_windows(at, "mean_cosine", "windows' score, mean_cosine"))
    out.append(_ratio_to_windows(at, "alignment", "our pooled alignment of windows' counts"))
    out.append(_tokens_against_uniform(rows))
    out.append(_tokens_to_rank(rows))
    out.append(_growth(rows))
    return out


def judged_as(verdict: Verdict, figures: Sequence[Figure]) -> list[str]:
    """The figures of a verdict, in words."""
    return [
        f"{f.name}: {f.value:.3f} ± {f.error or 0:.3f}, must be {f.must_be}" for f in figures if f.verdict == verdict
    ]


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
                "bias": _bias("", of("alignment"), None).value,
                "error": _mean(errors(part)["rmse"]),
                "error of mean_cosine": _mean(errors(part, "mean_cosine")["rmse"]),
                "unresolved": of("alignment")["estimate"].is_null().mean(),
                "coverage": _coverage("", of("alignment")).value,
                "coverage, groups": _coverage("", of("group difference")).value,
                "coverage, nodes": _share("", of("node coverage"), None).value,
                "wrong signs": _share("", of("wrong signs"), None).value,
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


def _bias(name: str, part: pl.DataFrame, wanted: Range | None) -> Figure:
    """Of estimates against the population's truth; its error is between runs, whose teachers share their draws."""
    part = part.filter(pl.col("teacher") != EQUAL).with_columns(off=pl.col("estimate") - pl.col("truth"))
    known = part.drop_nulls("off")
    by_run = known.group_by([*FAMILY, "run"]).agg(pl.col("off").mean())["off"]
    return Figure(name, _mean(by_run), _error_of_mean(by_run), known.height, wanted)


def _error_of_mean(values: pl.Series) -> float | None:
    """Standard error of the mean of independent values; None of fewer than two."""
    known = values.drop_nulls()
    deviation = known.std()
    return float(deviation) / known.len() ** 0.5 if isinstance(deviation, float) and known.len() > 1 else None


def _coverage(name: str, part: pl.DataFrame) -> Figure:
    inside = (pl.col("low") <= pl.col("truth")) & (pl.col("truth") <= pl.col("high"))
    return _share(name, part.drop_nulls(["low", "high"]).with_columns(estimate=inside.cast(pl.Float64)), COVERS)


def _share(name: str, part: pl.DataFrame, wanted: Range | None) -> Figure:
    """A share of what was counted; its error is between runs, within which counts hang together.

    That of a ratio of sums: the root of sum (x - share n)^2 over runs, over sum n. Where all runs agree there is no
    spread: the error is then what the share would change by if one more run were all exceptions.
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
    ratios = both["mine"] / both["theirs"]
    wanted = Range(-np.inf, 0.25, "at most 1/4")
    return Figure(f"error of adaptive / of {what}", _mean(ratios), _error_of_mean(ratios), both.height, wanted)


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
    # where no budget is enough it needs more than the main one
    shares = uniform.select(FAMILY).join(enough, on=FAMILY, how="left")["share"].fill_null(1.0)
    name = "tokens adaptive needs for the error of uniform nodes and equal draws"
    return Figure(name, _mean(shares), _error_of_mean(shares), shares.len(), Range(-np.inf, 0.2, "at most 1/5"))


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
    # where no rank is enough it needs more than any windows spent
    ratios = both.with_columns(ratio=pl.col("mine") / pl.coalesce("theirs", "most"))["ratio"].fill_null(1.0)
    name = "tokens rank needs to put the best teacher first in 95 % / windows'"
    return Figure(name, _mean(ratios), _error_of_mean(ratios), both.height, Range(-np.inf, 0.02, "at most 1/50"))


def _growth(rows: pl.DataFrame) -> Figure:
    """Cost at equal error, longest chains over shortest, over the ratio of their lengths.

    At as many draws the error goes as one over the root of the cost, so cost at equal error is tokens x error^2.
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
        doubt=(pl.col("relative") ** 2 + pl.col("relative_short") ** 2).sqrt(),
    )
    value = _mean(both["ratio"])
    error = float((both["ratio"] * both["doubt"]).pow(2).sum()) ** 0.5 / max(1, both.height)
    name = f"{name}, {lengths[0]} to {lengths[-1]} tokens, over that of a rollout"
    return Figure(name, value, error, both.height, Range(-np.inf, 1.0, "at most 1"))
