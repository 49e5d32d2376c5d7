"""Runs whose losses need draws: MiniLLM, and the reward as a yardstick."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows.command.configuration import ConfigurationError, check_ranked, checked
from flows.command.terminal import what_is_not_ranked
from flows.plan import cost
from schemas.pipeline import diagnosis_stages
from schemas.signals import REWARDED, Signal, signals
from schemas.tables import LOSSES, SELECTION
from tasks.outputs.diagnosis import load_scores, make_tables
from tasks.run.session import RunSession, start_session
from tasks.run.shells import run_stage
from tasks.stages.aggregate.selection import CHOICES
from tasks.statistics.prior import Prior
from tests.golden.made import recorded_settings

NEED_DRAWS = ["minillm", {"kind": "minillm", "length_normalised": True}, "dr_grpo", "grpo"]


def tables_of(session: RunSession) -> dict[str, pl.DataFrame]:
    ids = session.keys.questions
    for stage in diagnosis_stages():
        assert not run_stage(session, stage, ids).failed
    prior = Prior.of(session.store.need("prior", session.keys.key("prior", ids[0])).arrays)
    return make_tables(session.config, load_scores(session, ids), session.provider.texts, prior)[0]


def of_reward(table: pl.DataFrame, loss: str = "dr_grpo") -> pl.DataFrame:
    return table.filter((pl.col("teacher") == "reward") & (pl.col("loss") == loss))


def test_a_run_has_a_signal_of_the_reward_beside_those_of_teachers(settings: dict[str, Any]) -> None:
    session = start_session(checked({**settings, "losses": ["reverse_kl", *NEED_DRAWS]}))
    try:
        planned = {of_stage.stage: of_stage for of_stage in cost(session)}
        tables = tables_of(session)
    finally:
        session.provider.close()
    named = signals(session.config)
    assert len(named) == 3 * 3 + 2 and named[-2:] == [Signal(*REWARDED, "dr_grpo"), Signal(*REWARDED, "grpo")]
    # every draw is scored by the student, and by each teacher with its context
    assert planned["distillation"].forwards == 6 * 4 * (4 + session.config.tree.most_draws)
    assert planned["distillation"].missing == 6 * len(named)
    tokens, summary = of_reward(tables["tokens"]), of_reward(tables["summary"])
    assert np.allclose(tokens["inner"], tokens["g_sq"], atol=1e-12) and np.allclose(tokens["d_sq"], tokens["g_sq"])
    for name in ("kl", "js", "teacher_prob", "teacher_advantage", "inner_noise"):
        assert tokens[name].is_null().all(), name
    cosines = summary["mean_cosine"].drop_nulls()
    assert len(cosines) and np.allclose(cosines, 1)
    kept = tables["losses"].filter(pl.col("loss").is_in(["minillm", "dr_grpo"]))
    assert set(kept.columns) >= set(LOSSES) and kept["without_gradient"].is_null().all()
    assert (kept["covered"] == 1).all()
    chosen = tables["selection"].filter(pl.col("loss") != "reverse_kl")  # halves of draws do not make a direction
    assert set(chosen.columns) == set(SELECTION) and chosen["gain"].is_null().all() and len(chosen) == len(CHOICES) * 8


@pytest.mark.parametrize("kind", ["windows", "recorded"])
def test_the_reward_needs_counts_alone(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    of_kind = {**settings, "tree": {"kind": "windows", "draws": 160, "min_visits": 4}}
    given = recorded_settings(tmp_path) if kind == "recorded" else of_kind
    session = start_session(checked({**given, "losses": ["reverse_kl", "dr_grpo"]}))
    try:
        tokens = of_reward(tables_of(session)["tokens"])
    finally:
        session.provider.close()
    assert len(tokens) and np.allclose(tokens["inner"], tokens["g_sq"], atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"losses": ["minillm"], "tree": {"kind": "windows"}}, "losses.0: 'minillm' needs draws from forced branches"),
        ({"losses": [{"kind": "dr_grpo", "teacher_temperature": 2}]}, "losses.0.teacher_temperature: unknown field"),
        ({"teachers": [{"name": "reward"}]}, "teachers.0.name: 'reward', which tables have for the reward itself"),
        ({"losses": [{"kind": "minillm", "teacher_temperature": 2}]}, "losses.0.teacher_temperature: unknown field"),
        (
            {
                "losses": ["minillm"],
                "teachers": [{"name": "t", "model": {"path": "x"}, "tokenizer": "own", "chat_template": "own"}],
            },
            "losses.0: 'minillm' needs whole distributions, and teacher 't' has a tokenizer of its own",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], told: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as error:
        checked({**settings, **changes})
    assert told in str(error.value)


def test_minillm_is_refused_of_recorded_outcomes(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'minillm' needs whole distributions; a recorded table has branches"):
        checked({**recorded_settings(tmp_path), "losses": ["minillm"]})


def test_a_ranking_does_without_what_needs_draws_and_says_so(settings: dict[str, Any]) -> None:
    config = checked({**settings, "losses": ["reverse_kl", "dr_grpo", "minillm"]})
    check_ranked(config)
    with pytest.raises(ConfigurationError, match="losses: dr_grpo, minillm, but a ranking has no draws for these"):
        check_ranked(checked({**settings, "losses": ["dr_grpo", "minillm"]}))
    assert what_is_not_ranked([], ["dr_grpo", "minillm"]) == [
        "not ranked: dr_grpo, minillm need several draws from one place, which only trees have (opdscope run)"
    ]
