"""Success after training on a signal, forecast from what is known before: an interval, and what speaks for it.

Where training levels off the student has learned what the teacher can teach it. That is the handover, the student's
success after the teacher's own reasoning, and not the teacher's own success: what it merely copies from its context
comes to the student as contradiction (`tasks.stages.distillation.ambiguity`). Whether success goes up or down at all is
told by the update gain, which crosses questions. Nothing is fitted to trainings.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from schemas.config import PythonLoss, Scores, Settings
from schemas.signals import Signal, Source
from tasks.stages.aggregate.updates import Products
from tasks.stages.distillation.ambiguity import attainable
from tasks.stages.ranking import shares_of_best
from tasks.statistics.bootstrap import LEAST_UNITS, bootstrap_interval, resample
from tasks.statistics.csr import Floats

_PROGRESS = 0.8, 1.2
"""Share of the way from base to ceiling that a training goes. How far is not known beforehand: it may end before, or
go beyond, as the student averages what its teacher says with contexts that it does not see."""
_NOISE = 0.03
"""Standard deviation of success over trainings on one signal, with other questions and draws."""


class Evidence(NamedTuple):
    """What is known of a run's questions before any training, [Q] each.

    Attributes:
        base: success rate of the student's rollouts.
        own, handover: of each teacher with its context; NaN where it is not known.
        gain: of every signal; NaN where it is not known.
        silent: signals of a teacher that is the student, from which nothing is learned.
        policy, updates: updates of the parameters by question, [Q, U]; None where they were not computed.
    """

    base: Floats
    own: Mapping[Source, Floats]
    handover: Mapping[Source, Floats]
    gain: Mapping[Signal, float]
    silent: Collection[Signal]
    policy: Floats | None
    updates: Mapping[Signal, Floats]


def forecast_rows(
    evidence: Evidence, losses: Mapping[Signal, Settings], scores: Scores, seed: int
) -> list[dict[str, Any]]:
    """Rows of `schemas.tables.FORECASTS`, the best first, and of equal ones that of the largest gain.

    Signals that nothing is known of, or learned from, come last.

    Args:
        losses: of every signal.
    """
    n, level = len(evidence.base), scores.forecast_level
    chance = Chance.of(n, scores.bootstrap, seed)
    base = chance.base(evidence.base)
    ends: dict[Signal, Floats] = {}
    rows: dict[Signal, dict[str, Any]] = {}
    for signal, loss in losses.items():
        own = evidence.own.get(signal.source, np.full(n, np.nan))
        rows[signal] = {**signal._asdict(), "base": float(evidence.base.mean()), "remark": ""}
        if n < LEAST_UNITS or signal in evidence.silent or not np.isfinite(own).any():
            rows[signal] |= dict.fromkeys(_UNKNOWN, np.nan) | {"verdict": "unclear"}
            continue
        direction = np.full(len(chance.counts), np.nan)
        if evidence.policy is not None and signal in evidence.updates:
            direction, _ = Products.of(evidence.policy, evidence.updates[signal]).scores(chance.counts)
        drawn = Drawn.of(own, evidence.handover[signal.source], direction, loss, base, chance)
        ends[signal] = chance.success(base, drawn.end, chance.noise())
        rows[signal] |= _estimates(ends[signal], base, level, n)
        rows[signal] |= {"ceiling": float(drawn.ceiling.mean()), "remark": drawn.remark(base, level)}
    best = shares_of_best(np.stack(list(ends.values()), axis=1)) if ends else ()
    for signal, share in zip(ends, best, strict=True):
        rows[signal]["p_best"] = float(share)
    ordered = sorted(rows, key=lambda s: (-_known(rows[s]["forecast"]), -_known(evidence.gain[s])))
    for place, signal in enumerate(ordered, 1):
        rows[signal]["place"] = place if np.isfinite(rows[signal]["forecast"]) else None
    return [rows[signal] for signal in ordered]


def _known(value: float) -> float:
    """For an order: what is not known comes last, and what differs by rounding alone is equal."""
    return float(np.round(np.nan_to_num(value, nan=-np.inf), 9))


_UNKNOWN = (
    *("ceiling", "forecast", "forecast_low", "forecast_high", "change", "change_low", "change_high"),
    *("p_best", "p_harm"),
)


def _rate(values: Floats, counts: Floats, doubt: Floats) -> Floats:
    """Mean of the known rates in every replicate, [b]; one more question, of unknown rate, stands for those unseen.

    Without it a rate that is 1 in all questions would have no spread.
    """
    known = np.isfinite(values)
    total = counts @ known.astype(np.float64)
    return np.asarray((counts @ np.where(known, values, 0.0) + doubt) / (total + 1), dtype=np.float64)


class Chance(NamedTuple):
    """What differs between the replicates, [b] each: the questions, and what trainings make of what is known.

    Attributes:
        counts: how often each question occurs, [b, Q].
        student, teachers: rate of the one more question that stands for those unseen.
        progress: share of the way to the ceiling that trainings go.
        rng: draws the noise of trainings.
    """

    counts: Floats
    student: Floats
    teachers: Floats
    progress: Floats
    rng: np.random.Generator

    @classmethod
    def of(cls, questions: int, replicates: int, seed: int) -> "Chance":
        """Draw it."""
        counts = resample(questions, replicates, seed)
        rng = np.random.default_rng([seed, 16])
        student, teachers = rng.beta(0.5, 0.5, (2, replicates))  # Jeffreys prior
        return cls(counts, student, teachers, rng.uniform(*_PROGRESS, replicates), rng)

    def base(self, rates: Floats) -> Floats:
        """The student's success, [b], from its rates by question, [Q]."""
        return _rate(rates, self.counts, self.student)

    def noise(self) -> Floats:
        """What chance adds to the success of trainings on one signal, [b]."""
        return self.rng.normal(0, _NOISE, len(self.counts))

    def success(self, base: Floats, end: Floats, noise: Floats) -> Floats:
        """Success after training, [b], where that levels off at `end`."""
        return np.clip(base + self.progress * (end - base) + noise, 0, 1)


class Drawn(NamedTuple):
    """What follows for one signal in every replicate, [b] each.

    Attributes:
        copied: own success less handover.
        direction: update gain; NaN where it is not known.
        end: success where training levels off.
    """

    ceiling: Floats
    copied: Floats
    direction: Floats
    end: Floats

    @classmethod
    def of(
        cls, of_question: Floats, handed: Floats, direction: Floats, loss: Settings, base: Floats, chance: Chance
    ) -> "Drawn":
        """From a teacher's own success and handover by question, [Q]; direction and base in every replicate, [b]."""
        counts, doubt = chance.counts, chance.teachers
        own = _rate(of_question, counts, doubt)
        before = handover = own
        if np.isfinite(handed).any():  # else the verifier does not tell what it reads
            before = _rate(np.where(np.isfinite(handed), of_question, np.nan), counts, doubt)
            handover = _rate(handed, counts, doubt)
        agreement = np.clip(np.divide(handover, before, out=np.ones(len(own)), where=before > 0), 0, 1)
        # where a loss of the user's own comes to rest is not known
        ceiling = own * (agreement if isinstance(loss, PythonLoss) else attainable(loss, agreement))
        up, down = np.maximum(base, ceiling), np.minimum(base, ceiling)
        end = np.where(direction > 0, up, np.where(direction < 0, down, ceiling))
        return cls(ceiling, before - handover, direction, end)

    def remark(self, base: Floats, level: float) -> str:
        """What speaks against the rest, in words."""
        said = []
        if _clearly(self.copied, level):
            said.append(f"copies {self.copied.mean():.2f} of its success")
        known = self.direction[np.isfinite(self.direction)]
        if len(known) > level * len(self.direction) and _clearly(-known, level):
            said.append("lowers success on other questions")
            if _clearly(self.ceiling - base, level):
                said.append("though it hands over")
        return "; ".join(said)


def _clearly(values: Floats, level: float) -> bool:
    """Whether replicates are above 0 but for a tail."""
    return bool(np.quantile(values, (1 - level) / 2) > 0)


def _estimates(drawn: Floats, base: Floats, level: float, n: int) -> dict[str, Any]:
    change = drawn - base
    low, high = bootstrap_interval(drawn, n, level)
    change_low, change_high = bootstrap_interval(change, n, level)
    return {
        "forecast": float(drawn.mean()),
        "forecast_low": max(low, 0.0),
        "forecast_high": min(high, 1.0),
        "change": float(change.mean()),
        "change_low": change_low,
        "change_high": change_high,
        "p_harm": float((change < 0).mean()),
        "verdict": "helps" if change_low > 0 else "harms" if change_high < 0 else "unclear",
    }


def advice(rows: Sequence[Mapping[str, Any]], with_updates: bool) -> str:
    """One sentence on what to train with, as clear as the forecasts are.

    Args:
        with_updates: update gains were computed.
    """
    known = [row for row in rows if np.isfinite(row["forecast"])]
    if not known:
        return "no forecast: it takes teachers that answer themselves (success.rollouts), and five questions or more"
    first, others = known[0], known[1:]
    interval = f"{first['forecast']:.2f} [{first['forecast_low']:.2f}, {first['forecast_high']:.2f}]"
    if first["verdict"] == "helps":
        said = f"train with {_name(first)}: success is forecast to go from {first['base']:.2f} to {interval}"
    else:
        said = (
            f"no signal is clearly forecast to raise success from {first['base']:.2f}; the first, {_name(first)}, ends"
        )
        said += f" at {interval}"
    close = [row for row in others if row["p_best"] >= _MAY_BE_BEST]
    if close:
        named = ", ".join(_name(row) for row in close[:3])
        more = f" and {len(close) - 3} more" if len(close) > 3 else ""
        said += f"; {named}{more} may be as good"
    harmful = [_name(row) for row in known if row["verdict"] == "harms"]
    said += f"; {', '.join(harmful)} would do harm" if harmful else ""
    return said if with_updates else f"{said}; harm that only update gains show is not known (update.dimensions)"


_MAY_BE_BEST = 0.1
"""Least probability of being best at which a signal is named beside the first."""


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['teacher']}/{row['context']} by {row['loss']}"
