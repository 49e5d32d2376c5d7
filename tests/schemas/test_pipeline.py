"""The stages as they are declared, the layouts of what they make, and the signals of a run."""

import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.command.configuration import checked
from schemas.arrays import Array, check_layout
from schemas.config import RunConfig
from schemas.pipeline import PIPELINE, Scope, Stage, diagnosis_stages, layout_of, ranking_stages, versions
from schemas.question_tables import COMPARISON
from schemas.signals import Signal, Source, losses, model_sources, signals, sources
from schemas.tables import HISTORY, RANKS, RUN_TABLES
from tasks.operations.implementations import implementation
from tasks.store.keys import canonical

STAGES = list(PIPELINE.values())


@pytest.fixture
def config(settings: dict[str, Any]) -> RunConfig:
    return checked(settings)


@pytest.mark.parametrize("stage", STAGES, ids=lambda s: s.name)
def test_what_a_stage_names_can_be_imported_and_called(stage: Stage) -> None:
    assert list(inspect.signature(implementation(stage.make)).parameters) == ["work"]
    if stage.refuse is not None:
        assert len(inspect.signature(implementation(stage.refuse)).parameters) == 1


@pytest.mark.parametrize("stage", STAGES, ids=lambda s: s.name)
def test_a_stage_reads_earlier_ones_only(stage: Stage) -> None:
    before = list(PIPELINE)[: list(PIPELINE).index(stage.name)]
    assert set(stage.reads) <= set(before) and len(set(stage.reads)) == len(stage.reads)
    assert not stage.of_source or stage.scope in (Scope.SIGNAL, Scope.SOURCE)
    # one for each question could not be read by one of a single signal's scope without a question, nor the reverse
    assert stage.scope is Scope.SIGNAL or all(PIPELINE[read].scope is not Scope.SIGNAL for read in stage.reads)


@pytest.mark.parametrize("stages", [diagnosis_stages(), ("rollouts", "values", "ranking"), ("rollouts", "ranking")])
def test_the_stages_of_a_flow_hold_all_that_they_read_in_order(stages: tuple[str, ...]) -> None:
    for i, name in enumerate(stages):
        assert set(PIPELINE[name].reads) <= set(stages[:i])


def test_values_are_drawn_only_for_segments(settings: dict[str, Any]) -> None:
    one, two = (checked({**settings, "ranking": {"segments": n}}) for n in (1, 2))
    assert ranking_stages(one) == ("rollouts", "ranking") and ranking_stages(two) == ("rollouts", "values", "ranking")
    draws = PIPELINE["values"].draws
    assert draws is not None and draws.most(one) == 0 < draws.most(two)


@pytest.mark.parametrize("stage", STAGES, ids=lambda s: s.name)
def test_settings_of_a_stage_can_be_keys(stage: Stage, config: RunConfig) -> None:
    assert canonical(stage.settings(config))
    if stage.round_settings is not None:
        assert canonical(stage.round_settings(config))
    assert min(stage.cost(config)) >= 0
    assert (stage.draws is None) or stage.draws.most(config) >= 0
    assert stage.version == versions()[stage.name] >= 1


def test_costs_are_those_of_the_settings(config: RunConfig) -> None:
    costs = {stage.name: stage.cost(config) for stage in STAGES}
    assert costs["rollouts"] == (4, 4 * 24, 0)
    assert costs["trees"] == (6 * 12, 6 * 12 * 23, 4 + 4)
    assert costs["distillation"] == (0, 0, 4)
    assert costs["ideal"] == costs["prior"] == costs["alignment"] == costs["values"] == (0, 0, 0)


@pytest.mark.parametrize("layout", [*PIPELINE, "rounds", "continuations"])
def test_layouts_are_of_known_types_and_letters(layout: str) -> None:
    letters = {dim for declared in layout_of(layout).values() for dim in declared.dims}
    for name, declared in layout_of(layout).items():
        assert declared.meaning and np.dtype(declared.dtype).name == declared.dtype and len(declared.dims) == 1, name
    assert all(dim.removesuffix("+1") in {"R", "T", "C", "N", "B", "D", "K", "P", "E", "U"} for dim in letters)
    empty = {
        name: np.zeros(int(declared.dims[0].endswith("+1")), dtype=declared.dtype)
        for name, declared in layout_of(layout).items()
    }
    check_layout(layout, layout_of(layout), empty)
    for name in empty:
        with pytest.raises(ValueError, match="are not the declared"):
            check_layout(layout, layout_of(layout), {n: a for n, a in empty.items() if n != name})
        other = np.float32 if empty[name].dtype != np.float32 else np.float64
        with pytest.raises(ValueError, match=rf"{layout}/{name}: dtype {np.dtype(other)} is not the declared"):
            check_layout(layout, layout_of(layout), {**empty, name: empty[name].astype(other)})
        with pytest.raises(ValueError, match="2 dimensions"):
            check_layout(layout, layout_of(layout), {**empty, name: empty[name][None]})


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 6))
def test_lengths_must_agree_along_a_letter(a: int, b: int, offsets: int) -> None:
    layout = {"x": Array(("B",), "int32", "x"), "y": Array(("B",), "int32", "y"), "o": Array(("B+1",), "int64", "o")}
    arrays = {"x": np.zeros(a, "int32"), "y": np.zeros(b, "int32"), "o": np.zeros(offsets, "int64")}
    if a == b == offsets - 1:
        check_layout("stage", layout, arrays)
    else:
        with pytest.raises(ValueError, match=r"along B\+?1?, elsewhere"):
            check_layout("stage", layout, arrays)


def test_signals_are_every_source_with_every_loss_in_order(config: RunConfig) -> None:
    assert sources(config) == [Source("large", "none"), Source("self", "none"), Source("self", "answer")]
    assert signals(config) == [Signal(*source, loss) for source in sources(config) for loss in losses(config)]
    assert list(losses(config)) == ["reverse_kl", "forward_kl"]
    assert all(Signal(*source, "x").source == source for source in sources(config))
    teacher, context = model_sources(config)[Source("self", "answer")]
    assert (teacher.name, teacher.model, context.kind) == ("self", None, "answer")


def test_columns_of_tables_are_types_of_polars() -> None:
    import polars as pl

    for table in (*RUN_TABLES.values(), RANKS, HISTORY, COMPARISON):
        assert all(issubclass(getattr(pl, column.dtype), pl.DataType) and column.meaning for column in table.values())
