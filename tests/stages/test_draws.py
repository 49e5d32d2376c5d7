"""Draws: cut into units, verified once each, joined again, counted by launch."""

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrays import CONTINUATIONS, ROUNDS, AnyArray, check_layout
from tasks.engines.protocol import Continuation
from tasks.stages.draws import continuations, outcomes, trunks, verified
from tasks.stages.protocol import Unit, equal_units, joined
from tasks.stages.trees.frame import SamplingFrame, locate
from tasks.stages.trees.planner import CompletedRound, Launches, grow_tree
from tasks.stages.trees.windows import Window, WindowsDesign
from tasks.verifiers.protocol import Attempt
from tests.helpers.drawing import NoCheckpoints


@given(st.integers(0, 10_000), st.integers(1, 600))
def test_units_cover_all_draws_and_are_as_equal_as_can_be(total: int, most: int) -> None:
    units = equal_units(total, most)
    assert [n for unit in units for n in range(*unit)] == list(range(total))
    sizes = [unit.last - unit.first for unit in units]
    assert all(0 < size <= most for size in sizes) and len(units) == -(-total // most)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


class Models:
    """A tokenizer that hides token 1, and a verifier that looks for 7; both tell what they were asked."""

    def __init__(self) -> None:
        self.decoded: list[Sequence[int]] = []
        self.attempts: list[Attempt] = []
        self.tokenizer = SimpleNamespace(batch_decode=self._decode)
        self.verifier = SimpleNamespace(check_all=self._check)

    def answer(self, question: str) -> str:
        return f"answer of {question}"

    def _decode(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        self.decoded += ids
        return [" ".join(str(i) for i in row if i != 1 or not skip_special_tokens) for row in ids]

    def _check(self, attempts: Sequence[Attempt]) -> list[bool]:
        self.attempts += attempts
        return ["7" in a.completion.split() and not a.truncated for a in attempts]


def ends(*rows: Sequence[int], cut: Sequence[int] = ()) -> list[Continuation]:
    return [Continuation(np.array(row, dtype=np.int32), i in cut) for i, row in enumerate(rows)]


def test_what_stands_before_a_continuation_is_verified_with_it() -> None:
    models: Any = Models()
    found = verified(models, "q", [[7], [2], [], [2]], ends([1], [7, 1], [3], [7, 1]), models.tokenizer)
    assert found.tolist() == [True, True, False, True] and found.dtype == bool
    assert models.decoded == [(7, 1), (2, 7, 1), (3,)]  # the same completion once
    assert [a.completion for a in models.attempts] == ["7", "2 7", "3", "2 7"]  # without special tokens
    assert {a.answer for a in models.attempts} == {"answer of q"}


def test_one_completion_that_ended_and_was_cut_has_two_verdicts() -> None:
    models: Any = Models()
    assert verified(models, "q", [[], []], ends([7], [7], cut=[1]), models.tokenizer).tolist() == [True, False]


def test_no_draws_have_no_outcomes() -> None:
    models: Any = Models()
    for made, layout in ((outcomes, ROUNDS), (continuations, CONTINUATIONS)):
        arrays = made(models, "q", [], [])
        check_layout("draws", layout, arrays)
        assert len(arrays["success"]) == 0
    assert continuations(models, "q", [], [])["offsets"].tolist() == [0]


def test_prefixes_and_ends_that_do_not_match_are_an_error() -> None:
    models: Any = Models()
    with pytest.raises(ValueError, match="zip"):
        verified(models, "q", [[]], ends([7], [7]), models.tokenizer)


TOKENS = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6)


@given(TOKENS, st.sets(st.integers(0, 5)))
def test_continuations_hold_every_token_and_outcomes_their_number(rows: list[list[int]], cut: set[int]) -> None:
    models: Any = Models()
    arguments: tuple[Any, ...] = (models, "q", [[]] * len(rows), ends(*rows, cut=sorted(cut)))
    whole, short = continuations(*arguments), outcomes(*arguments)
    check_layout("continuations", CONTINUATIONS, whole)
    check_layout("rounds", ROUNDS, short)
    assert [whole["tokens"][a:b].tolist() for a, b in pairwise(whole["offsets"])] == rows
    assert short["length"].tolist() == [len(row) for row in rows] == np.diff(whole["offsets"]).tolist()
    assert np.array_equal(short["success"], whole["success"])
    assert whole["truncated"].tolist() == [i in cut for i in range(len(rows))]


@given(TOKENS, st.lists(st.integers(0, 6), max_size=3))
def test_rollouts_are_trunks_and_back(rows: list[list[int]], prompt: list[int]) -> None:
    models: Any = Models()
    rollouts = {
        **continuations(models, "q", [[]] * len(rows), ends(*rows)),
        "prompt": np.array(prompt, dtype=np.int32),
    }
    assert [(list(t.prompt), list(t.completion)) for t in trunks(rollouts)] == [(prompt, row) for row in rows]


@given(TOKENS, st.integers(1, 3), st.sampled_from(["rounds", "continuations"]))
def test_outcomes_that_were_cut_join_to_the_whole(rows: list[list[int]], most: int, layout: str) -> None:
    made = {"rounds": outcomes, "continuations": continuations}[layout]

    def part(unit: Unit) -> dict[str, AnyArray]:
        models: Any = Models()
        chosen = rows[unit.first : unit.last]
        return made(models, "q", [[]] * len(chosen), ends(*chosen))

    units = equal_units(len(rows), most)
    whole = part(Unit(0, len(rows)))
    for found in (
        joined([part(unit) for unit in units], layout),
        NoCheckpoints().decode_round("trees", "q", 0, units, part, layout),
        joined([whole, joined([], layout)], layout),
    ):
        check_layout(layout, {"rounds": ROUNDS, "continuations": CONTINUATIONS}[layout], found)
        assert all(np.array_equal(found[name], whole[name]) for name in whole)


class ToyDesign:
    """Draws `draws` at the first token of each rollout."""

    def __init__(self, draws: Sequence[int]) -> None:
        self.draws = np.array(draws, dtype=np.int64)

    def launches(self, offsets: Any) -> Launches:
        n = len(self.draws)
        assert len(offsets) == n + 1
        return Launches(np.arange(n), np.zeros(n, dtype=np.int64), np.full(n, -1), self.draws)

    def units(self, offsets: Any, most: int) -> list[Unit]:
        return equal_units(len(self.draws), most)


class ToyPlanner:
    """Plans rounds until it has so many, and keeps what it was told before each."""

    layout = "rounds"

    def __init__(self, rounds: Sequence[Sequence[int]]) -> None:
        self.rounds = rounds
        self.told: list[tuple[int, float]] = []

    def next_round(
        self, frame: SamplingFrame, completed: Sequence[CompletedRound[ToyDesign]], seconds: float
    ) -> ToyDesign | None:
        self.told.append((len(completed), seconds))
        return ToyDesign(self.rounds[len(completed)]) if len(completed) < len(self.rounds) else None

    def tree(self, frame: SamplingFrame, completed: Sequence[CompletedRound[ToyDesign]]) -> dict[str, AnyArray]:
        names = ("successes", "truncations")
        return {name: np.array([getattr(c, name) for c in completed]) for name in names}


def frame_of(*lengths: int) -> SamplingFrame:
    offsets = np.cumsum([0, *lengths])
    tokens, correct = np.zeros(int(offsets[-1]), dtype=np.int32), np.zeros(len(lengths), dtype=bool)
    return SamplingFrame(0, "q", tokens, offsets, correct, {}, lambda rows: iter(()))


def every_other(index: int, design: ToyDesign, launches: Launches) -> dict[str, AnyArray]:
    n = int(launches.draws.sum())
    return {
        "success": np.arange(n) % 2 == 0,
        "truncated": np.arange(n) % 3 == 0,
        "length": np.full(n, index + 1, dtype=np.int32),
    }


def test_a_tree_is_grown_round_after_round_until_its_planner_has_enough() -> None:
    planner = ToyPlanner([[2, 0, 3], [1, 1, 0]])
    numbers: list[int] = []

    def draw(index: int, design: ToyDesign, launches: Launches) -> dict[str, AnyArray]:
        numbers.append(index)
        return every_other(index, design, launches)

    clock = iter([100.0, 100.0, 103.0, 110.0])
    tree = grow_tree(planner, frame_of(3, 1, 2), draw, lambda: next(clock))
    assert numbers == [0, 1] and planner.told == [(0, 0.0), (1, 3.0), (2, 10.0)]
    assert tree["successes"].tolist() == [[1, 0, 2], [1, 0, 0]]  # draws 0, 2 and 4; launches without draws have none
    assert tree["truncations"].tolist() == [[1, 0, 1], [1, 0, 0]]


def test_a_planner_that_wants_nothing_draws_nothing() -> None:
    planner = ToyPlanner([])
    tree = grow_tree(planner, frame_of(1), lambda *_: pytest.fail("drawn"))
    assert tree["successes"].tolist() == [] and [n for n, _ in planner.told] == [0]


def test_an_error_of_a_draw_ends_the_tree() -> None:
    def draw(index: int, design: ToyDesign, launches: Launches) -> dict[str, AnyArray]:
        raise OSError("disk full")

    planner = ToyPlanner([[1]])
    with pytest.raises(OSError, match="disk full"):
        grow_tree(planner, frame_of(1), draw)
    assert len(planner.told) == 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_a_round_counts_its_draws_and_tokens(draws: list[int]) -> None:
    design = ToyDesign(draws)
    launches = design.launches(np.arange(len(draws) + 1))
    found = CompletedRound(design, launches, every_other(4, design, launches))
    assert launches.owner.tolist() == [launch for launch, n in enumerate(draws) for _ in range(n)]
    assert found.draws == sum(draws) and found.tokens == 5 * sum(draws)
    assert found.successes.sum() == -(-sum(draws) // 2) and (found.successes <= draws).all()
    free = CompletedRound(design, launches, {"tokens": np.zeros(9), "success": np.zeros(sum(draws), dtype=bool)})
    assert free.tokens == 9 and not free.successes.any()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_every_position_lies_in_its_rollout(lengths: list[int]) -> None:
    frame = frame_of(*lengths)
    expected = [(r, t) for r, n in enumerate(lengths) for t in range(n)]
    assert [locate(frame.offsets, p) for p in range(sum(lengths))] == expected


def test_uniforms_of_rounds_and_tails_are_their_own() -> None:
    frame = frame_of(3, 2)
    starts = {frame.start(r) for r in range(50)}
    assert len(starts) == 50 and all(0 <= s < 1 for s in starts)
    first, again, later = (frame.tail_uniforms(np.array([1, 4]), 3, r) for r in (0, 0, 1))
    assert first.shape == (2, 3) and bool((first == again).all()) and not bool((first == later).any())
    assert frame.tail_uniforms(np.array([4]), 3, 0).tolist() == first[1:].tolist()  # whatever stands beside it


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 64))
def test_units_of_windows_hold_as_many_draws_as_they_may(draws: list[int], most: int) -> None:
    design = WindowsDesign([Window(0, i, n) for i, n in enumerate(draws)])
    units = design.units(np.array([0, len(draws)]), most)
    assert [i for unit in units for i in range(*unit)] == list(range(len(draws)))
    sizes = [sum(draws[unit.first : unit.last]) for unit in units]
    assert all(size <= most or unit.last - unit.first == 1 for size, unit in zip(sizes, units, strict=True))
    assert all(size + draws[unit.last] > most for size, unit in zip(sizes, units[:-1], strict=False))
