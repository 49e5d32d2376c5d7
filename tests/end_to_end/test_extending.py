"""A toy of each thing that can be added goes through keys, shells, the plan, the store's commands and the tables."""

import io
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from pydantic import BaseModel
from rich.console import Console

from flows.command import store as commands
from flows.command.configuration import checked
from flows.plan import cost
from schemas.config import NEED_DRAWS, Engine, Grouping, Loss, RunConfig, Tree, Verifier, contexts
from schemas.config.base import settings_in
from schemas.config.scores import Scores
from schemas.pipeline import PIPELINE, diagnosis_stages
from tasks.operations.implementations import implementation
from tasks.outputs.diagnosis import make_outputs
from tasks.run.session import RunSession, start_session
from tasks.run.shells import run_stage
from tasks.stages.aggregate import groups, predictors
from tests.helpers.toys import TOY_STAGE, ToyEngine, ToyLoss, ToySampler, ToyTree, ToyVerifier


def ran(config: RunConfig, stages: tuple[str, ...]) -> RunSession:
    session = start_session(config)
    for stage in stages:
        summary = run_stage(session, stage, session.keys.questions)
        assert not summary.failed and not summary.left_out, (stage, summary)
    return session


def tables(session: RunSession) -> dict[str, pl.DataFrame]:
    files = make_outputs(session, session.keys.questions, {}).files
    return {name: pl.read_parquet(io.BytesIO(data)) for name, data in files if name.endswith(".parquet")}


def test_a_stage_is_its_module_and_one_declaration(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PIPELINE, "toy", TOY_STAGE)
    config = checked(settings)
    assert "toy" in diagnosis_stages()
    session = start_session(config)
    assert {c.stage: c.missing for c in cost(session)}["toy"] == len(session.keys.questions)
    session = ran(config, diagnosis_stages())
    assert all(c.missing == 0 for c in cost(session) if c.stage in diagnosis_stages())
    for question in session.keys.questions:
        made = session.store.need("toy", session.keys.key("toy", question))
        rollouts = session.store.need("rollouts", session.keys.key("rollouts", question))
        assert made["length"].tolist() == np.diff(rollouts["offsets"]).tolist()
    again = run_stage(session, "toy", session.keys.questions)
    assert (again.made, again.cached) == (0, len(session.keys.questions))
    other = start_session(checked({**settings, "seed": 1}))
    first = session.keys.questions[0]
    assert other.keys.key("toy", first) != session.keys.key("toy", first)

    console = Console(file=io.StringIO(), width=100)
    assert commands.show(session.store, console) == 0
    assert commands.verify(session.store, console, repair=False) == 0
    assert commands.collect(session.store, console, days=0.0, yes=True, dry_run=False) == 0  # no run refers to anything
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "toy" in text and session.store.names("toy") == []


def test_planner_engine_and_verifier_are_settings_and_a_class(settings: dict[str, Any]) -> None:
    config = checked(settings)
    toys = {"tree": ToyTree(head=3, tail=2), "verifier": ToyVerifier(), "engine": ToyEngine(device="cpu")}
    session = ran(config.model_copy(update=toys), diagnosis_stages())
    assert ToySampler.calls > 0
    for question in session.keys.questions:
        tree = session.store.need("trees", session.keys.key("trees", question))
        rollouts = session.store.need("rollouts", session.keys.key("rollouts", question))
        assert tree["node"].tolist() == rollouts["offsets"][:-1].tolist()
    ordinary = start_session(config)
    assert not set(session.keys.references(["rollouts"])) & set(ordinary.keys.references(["rollouts"]))
    assert tables(session)["tokens.parquet"]["position"].unique().to_list() == [0]


def test_loss_context_grouping_and_predictor_are_one_entry(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(contexts.CONTEXT_TEMPLATES, "toy", "{{ prompt }} toy {{ answer }}")
    monkeypatch.setitem(groups.GROUPINGS, "toy", groups.GroupedBy(lambda q, signal: np.asarray(q.tree["token_prob"])))
    monkeypatch.setitem(predictors.PREDICTORS, "toy", lambda q, d: np.asarray(q.tree["node"], dtype=np.float64))
    config = checked(settings)
    toy: Any = "toy"  # no member of the literals of settings
    context = contexts.Context.model_construct(kind=toy, name=None, template=None)
    teacher = config.model_teachers[1].model_copy(update={"contexts": [context]})
    grouping = Grouping.model_construct(by=toy, bins=2)
    scores = Scores(bootstrap=200, posterior=100).model_copy(update={"groupings": [grouping]})
    update = {"losses": [*config.losses, ToyLoss()], "teachers": [config.teachers[0], teacher], "scores": scores}
    made = tables(ran(config.model_copy(update=update), diagnosis_stages()))
    assert set(made["tokens.parquet"]["context"]) == {"none", "toy"}
    assert set(made["tokens.parquet"]["loss"]) == {"reverse_kl", "forward_kl", "toy"}
    assert "toy" in set(made["summary.parquet"]["group"]) and "toy" in set(made["predictors.parquet"]["predictor"])
    scaled = made["summary.parquet"].filter(pl.col("group") == "all").sort("loss")
    alignment = dict(zip(scaled["loss"], scaled["alignment"], strict=True))
    assert alignment["toy"] == pytest.approx(alignment["reverse_kl"])  # a scale is no direction


@pytest.mark.parametrize("union", [Tree, Engine, Verifier, Loss], ids=["tree", "engine", "verifier", "loss"])
def test_every_member_of_a_union_names_what_implements_it(union: Any) -> None:
    members: list[type[BaseModel]] = settings_in(get_args(union)[0])
    assert len({member.model_fields["kind"].default for member in members}) == len(members) >= 3
    for member in members:
        place = getattr(member, "implementation", None)
        if place is None:
            elsewhere = {"AutoEngine", "RecordedTree", "TopK", "SampledToken", "PythonLoss"}
            # another one's, or a user's own
            assert member.__name__ in elsewhere | {loss.__name__ for loss in NEED_DRAWS}
        else:
            assert callable(implementation(place)), place


def test_groupings_and_contexts_are_those_that_may_be_set() -> None:
    assert set(get_args(Grouping.model_fields["by"].annotation)) == set(groups.GROUPINGS)
    kinds = set(get_args(contexts.Context.model_fields["kind"].annotation))
    assert kinds - {"custom"} == set(contexts.CONTEXT_TEMPLATES)
