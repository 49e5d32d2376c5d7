"""Draws that are kept while a stage makes them: after a stop at any unit nothing that was committed is drawn again."""

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.command.configuration import checked
from schemas.arrays import AnyArray
from schemas.config import RunConfig
from schemas.pipeline import PIPELINE, Stage, layout_of
from schemas.signals import Source
from tasks.operations.progress import capture_progress
from tasks.run.keys import RunKeys
from tasks.stages.protocol import Unit, equal_units, joined
from tasks.store.checkpoints import StoreCheckpoints
from tasks.store.store import Store

TREES = {
    "forced": {"kind": "forced", "nodes": 6, "head": 3, "tail": 2, "draws": 12},
    "adaptive": {"kind": "adaptive", "draws": 512},
}


class Named:
    """Identities of nothing but names."""

    def settings(self, stage: Stage) -> dict[str, object]:
        return stage.settings(CONFIG)

    def of_question(self, question: str) -> dict[str, str]:
        return {"question": question}

    def of_teacher(self, source: Source, question: str) -> dict[str, object]:
        return {"teacher": source.teacher}

    def of_writer(self, source: Source, question: str) -> dict[str, object]:
        return {"writer": list(source), "question": question}


def config(tree: str = "adaptive", seconds: float = 0.0) -> RunConfig:
    return checked(
        {
            "questions": {"path": "q.jsonl"},
            "student": {"path": "s"},
            "teachers": [{"name": "t"}],
            "tree": TREES[tree],
            "execution": {"round_seconds": seconds, "round_draws": 7},
        }
    )


CONFIG = config()


class Killed(BaseException):
    """What ends a process."""


class Decoder:
    """Outcomes that follow from a draw's number; it may die before a unit."""

    def __init__(self, layout: str = "rounds", dies: int | None = None) -> None:
        self.layout, self.dies = layout, dies
        self.drawn: list[int] = []

    def __call__(self, unit: Unit) -> dict[str, AnyArray]:
        if unit.first == self.dies:
            raise Killed
        self.drawn += range(*unit)
        return outcome(unit, self.layout)


def outcome(unit: Unit, layout: str = "rounds") -> dict[str, AnyArray]:
    n = np.arange(*unit)
    made: dict[str, AnyArray] = {"success": n % 2 == 0, "truncated": n % 3 == 0, "length": n.astype(np.int32)}
    if layout == "continuations":
        tokens = [np.full(i % 4, i, dtype=np.int32) for i in n.tolist()]
        made["tokens"] = np.concatenate([np.empty(0, dtype=np.int32), *tokens])
        made["offsets"] = np.cumsum([0, *(len(t) for t in tokens)])
        del made["length"]
    return made


def checkpoints(store: Store, config: RunConfig = CONFIG) -> StoreCheckpoints:
    return StoreCheckpoints(store, RunKeys(config, Named(), ["q", "r"]), config)


@pytest.fixture
def store() -> Iterator[Store]:
    yield Store(f"memory://{uuid4().hex}")


def same(one: Any, other: Any) -> bool:
    return set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)


@given(st.integers(1, 40), st.integers(1, 9), st.data(), st.sampled_from(sorted(TREES)))
@settings(deadline=None, max_examples=40)
def test_after_any_stops_every_draw_is_made_once(total: int, most: int, data: st.DataObject, tree: str) -> None:
    kept = checkpoints(Store(f"memory://{uuid4().hex}"), config(tree))
    units = equal_units(total, most)
    drawn: list[int] = []
    for dies in sorted(data.draw(st.sets(st.sampled_from([unit.first for unit in units]), max_size=3))):
        decoder = Decoder(dies=dies)
        with pytest.raises(Killed):
            kept.decode_round("trees", "q", 0, units, decoder)
        drawn += decoder.drawn
    last = Decoder()
    found = kept.decode_round("trees", "q", 0, units, last)
    assert same(found, outcome(Unit(0, total)))
    assert drawn + last.drawn == list(range(total))  # every unit was committed: no seconds are waited for
    again = Decoder()
    assert same(kept.decode_round("trees", "q", 0, units, again), found)
    if tree == "adaptive":
        assert again.drawn == []  # finished rounds are kept


def test_between_commits_a_stop_loses_what_was_not_committed(store: Store) -> None:
    kept, units = checkpoints(store, config(seconds=3600.0)), equal_units(20, 5)
    decoder = Decoder(dies=15)
    with pytest.raises(Killed):
        kept.decode_round("trees", "q", 0, units, decoder)
    assert store.names("rounds") == []
    again = Decoder()
    kept.decode_round("trees", "q", 0, units, again)
    assert again.drawn == list(range(20))


@pytest.mark.parametrize("layout", ["rounds", "continuations"])
def test_layouts_come_back_as_they_were(layout: str, store: Store) -> None:
    kept, units = checkpoints(store), equal_units(11, 3)
    with pytest.raises(Killed):
        kept.decode_round("trees", "q", 2, units, Decoder(layout, dies=units[2].first), layout)
    found = kept.decode_round("trees", "q", 2, units, Decoder(layout), layout)
    assert same(found, outcome(Unit(0, 11), layout)) and set(found) == set(layout_of(layout))


def parts(store: Store, kept: StoreCheckpoints) -> list[str]:
    key = kept._keys.rounds("trees", "q")
    return store.names("rounds", key)


def test_a_damaged_part_is_drawn_again(store: Store) -> None:
    kept, units = checkpoints(store), equal_units(12, 4)
    with pytest.raises(Killed):
        kept.decode_round("trees", "q", 0, units, Decoder(dies=8))
    first, second = parts(store, kept)
    store.put_bytes(b"torn", "rounds", kept._keys.rounds("trees", "q"), first)
    decoder = Decoder()
    assert same(kept.decode_round("trees", "q", 0, units, decoder), outcome(Unit(0, 12)))
    assert decoder.drawn == [*range(4), *range(8, 12)] and second.startswith("part-0000-000000004")
    assert parts(store, kept) == ["round-0000.zarr.zip"]


def test_parts_that_end_within_a_unit_are_not_taken(store: Store) -> None:
    """Another machine may cut otherwise."""
    kept = checkpoints(store)
    with pytest.raises(Killed):
        kept.decode_round("trees", "q", 0, equal_units(12, 4), Decoder(dies=8))
    other, decoder = [Unit(0, 3), Unit(3, 6), Unit(6, 12)], Decoder()
    assert same(kept.decode_round("trees", "q", 0, other, decoder), outcome(Unit(0, 12)))
    assert decoder.drawn == list(range(12))


def test_a_kept_round_of_another_size_is_drawn_again(store: Store) -> None:
    kept = checkpoints(store)
    kept.decode_round("trees", "q", 0, [Unit(0, 4)], Decoder())
    decoder = Decoder()
    found = kept.decode_round("trees", "q", 0, [Unit(0, 6)], decoder)
    assert len(found["success"]) == 6 and decoder.drawn == list(range(6))


def test_rounds_and_questions_do_not_mix(store: Store) -> None:
    kept = checkpoints(store)
    for question, index in (("q", 0), ("q", 1), ("r", 0)):
        decoder = Decoder()
        kept.decode_round("trees", question, index, equal_units(5, 2), decoder)
        assert decoder.drawn == list(range(5))
    assert parts(store, kept) == ["round-0000.zarr.zip", "round-0001.zarr.zip"]


def test_a_round_without_draws(store: Store) -> None:
    found = checkpoints(store).decode_round("trees", "q", 0, [], Decoder())
    assert same(found, joined([])) and len(found["success"]) == 0


def test_progress_counts_every_draw_once_also_those_that_were_kept(store: Store) -> None:
    kept, units = checkpoints(store), equal_units(10, 3)
    with capture_progress() as before, pytest.raises(Killed):
        kept.decode_round("trees", "q", 0, units, Decoder(dies=units[2].first))
    with capture_progress() as told:
        whole = kept.decode_round("trees", "q", 0, units, Decoder())
    with capture_progress() as again:
        kept.decode_round("trees", "q", 0, units, Decoder())
    draws = PIPELINE["trees"].draws
    decoded = [int(whole["length"][part].sum()) for part in (slice(units[2].first), slice(units[2].first, None))]
    assert draws is not None and before == {draws.label: (units[2].first, decoded[0])}
    assert told == {draws.label: (10, decoded[1])}  # tokens of those alone that are decoded now
    assert again == {draws.label: (10, 0)}


@pytest.mark.parametrize(("tree", "left"), [("forced", []), ("adaptive", ["round-0000.zarr.zip"])])
def test_clearing_leaves_only_rounds_that_larger_budgets_go_on_from(tree: str, left: Sequence[str]) -> None:
    store = Store(f"memory://{uuid4().hex}")
    kept, units = checkpoints(store, config(tree)), equal_units(9, 3)
    kept.decode_round("trees", "q", 0, units, Decoder())
    with pytest.raises(Killed):
        kept.decode_round("trees", "q", 1, units, Decoder(dies=6))
    kept.clear("trees", "q")
    assert parts(store, kept) == left


def test_stages_that_draw_nothing_clear_nothing(store: Store) -> None:
    kept = checkpoints(store)
    kept.clear("ideal", "q")
    assert store.names() == [] and kept.most_draws == 7
