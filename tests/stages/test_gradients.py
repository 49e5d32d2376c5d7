"""Distillation gradients: the same in blocks of any size, and from branches that hold whole rows."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrays import DISTILLATION, AnyArray, check_layout
from schemas.config import JSD, ForwardKL, ReverseKL, Settings, SkewKL, TopK, TotalVariation
from schemas.signals import Signal, Source
from tasks.engines.protocol import Completed, EngineError
from tasks.engines.scoring import View
from tasks.stages.distillation.branches import distill_branches
from tasks.stages.distillation.directions import divergences, head_direction
from tasks.stages.distillation.gradients import distill
from tasks.stages.distillation.losses import distillation_direction
from tasks.stages.distillation.stage import NO_NODES
from tasks.statistics.csr import owners
from tasks.statistics.streams import stream_seed

VOCABULARY = 7
ELEMENTWISE: dict[str, Settings] = {
    "reverse_kl": ReverseKL(),
    "forward_kl": ForwardKL(),
    "jsd": JSD(beta=0.3),
    "skew_kl": SkewKL(),
    "total_variation": TotalVariation(),
}
SOURCE, OTHER = Source("other", "none"), Source("other", "answer")
LOSSES = {**ELEMENTWISE, "top_k": TopK(k=2, support="union"), "bucket": TopK(k=2, of=JSD(), rest="bucket")}


class OfPrefix:
    """A scorer whose logits follow from the whole prefix, and from nothing else."""

    longest = None

    def __init__(self, seed: int, vocabulary: int = VOCABULARY) -> None:
        self.seed, self.vocabulary, self.calls = seed, vocabulary, 0

    def hidden(self, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        self.calls += 1
        return [
            torch.tensor([[stream_seed(self.seed, *prompt, *completion[:t]) >> 1] for t in range(len(completion))])
            for completion in completions
        ]

    def hidden_each(self, sequences: Sequence[Completed]) -> list[torch.Tensor]:
        return [self.hidden(prompt, [tokens])[0] for prompt, tokens in sequences]

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = [2 * np.random.default_rng(int(seed)).standard_normal(self.vocabulary) for seed in hidden[:, 0]]
        return torch.log_softmax(torch.from_numpy(np.array(rows)), dim=-1)


def rolled(lengths: Sequence[int], seed: int = 0) -> tuple[Any, Any]:
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    tokens = np.random.default_rng(seed).integers(VOCABULARY, size=int(offsets[-1])).astype(np.int32)
    return tokens, offsets


def some_tree(positions: int, seed: int) -> dict[str, AnyArray]:
    """Nodes at some positions, with some of the tokens as branches."""
    rng = np.random.default_rng(seed)
    node = np.flatnonzero(rng.random(positions) < 0.6)
    tokens = [np.sort(rng.permutation(VOCABULARY)[: rng.integers(1, VOCABULARY + 1)]) for _ in node]
    flat = np.concatenate([np.empty(0), *tokens]).astype(np.int32)
    tail = rng.random(len(flat)) < 0.3
    offsets = np.cumsum([0, *(len(t) for t in tokens)]).astype(np.int64)
    tail[offsets[:-1]] = False  # a head holds a token
    return {"node": node.astype(np.int64), "branch_offsets": offsets, "branch_token": flat, "branch_tail": tail}


def streamed(
    tokens: Any, offsets: Any, tree: Mapping[str, AnyArray], *, teacher: int = 2, **options: Any
) -> dict[str, dict[str, AnyArray]]:
    views = View(OfPrefix(1), [5]), View(OfPrefix(teacher), [5, 6] if teacher != 1 else [5])
    options = {"temperature": 1.0, "block": 10**6, "group_tokens": 10**6, "losses": LOSSES, **options}
    made = distill(views[0], {SOURCE: views[1]}, tokens, offsets, tree, {SOURCE: options.pop("losses")}, **options)
    return {signal.loss: arrays for signal, arrays in made.items()}


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(0, 100),
    st.sampled_from([0.7, 1.0]),
)
@settings(deadline=None, max_examples=25)
def test_blocks_and_passes_of_any_size_give_what_one_gives(
    lengths: list[int], block: int, group: int, seed: int, temperature: float
) -> None:
    tokens, offsets = rolled(lengths, seed)
    tree = some_tree(len(tokens), seed)
    whole = streamed(tokens, offsets, tree, temperature=temperature)
    cut = streamed(tokens, offsets, tree, temperature=temperature, block=block, group_tokens=group)
    assert set(whole) == set(cut) == set(LOSSES)
    for name in LOSSES:
        check_layout("distillation", DISTILLATION, whole[name])
        for array, values in whole[name].items():
            assert np.allclose(cut[name][array], values, rtol=1e-9, atol=1e-12), (name, array)


@pytest.mark.parametrize("name", LOSSES)
def test_every_number_is_that_of_its_own_row(name: str) -> None:
    tokens, offsets = rolled([4, 1, 5])
    tree, loss, temperature = some_tree(len(tokens), 3), LOSSES[name], 0.5
    found = streamed(tokens, offsets, tree, temperature=temperature)[name]
    position = 0
    at = dict(zip(tree["node"].tolist(), range(len(tree["node"])), strict=True))
    for first, last in pairwise(offsets.tolist()):
        for t in range(first, last):
            before = tokens[first:t].tolist()
            log_p, log_t = (
                s.log_probs(s.hidden(prompt, [[*before, 0]])[0][-1:])
                for s, prompt in ((OfPrefix(1), [5]), (OfPrefix(2), [5, 6]))
            )
            d = distillation_direction(loss, log_p, log_t)[0].numpy()
            p, q = log_p[0].exp().numpy(), log_t[0].exp().numpy()
            policy = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
            assert found["d_sq"][t] == pytest.approx((d**2).sum())
            assert found["d_token"][t] == pytest.approx(d[tokens[t]] - policy @ d)
            assert found["teacher_token_prob"][t] == pytest.approx(q[tokens[t]])
            assert found["kl"][t] == pytest.approx((p * np.log(p / q)).sum())
            if t in at:
                branches = slice(*tree["branch_offsets"][at[t] : at[t] + 2])
                token = tree["branch_token"][branches]
                assert found["d_bar"][at[t]] == pytest.approx(policy @ d)
                assert np.allclose(found["d"][branches], d[token])
                assert np.allclose(found["teacher_prob"][branches], q[token])
            position += 1
    assert position == len(tokens) and 0 < len(at) < len(tokens)


def test_a_teacher_that_is_the_student_teaches_exactly_nothing() -> None:
    tokens, offsets = rolled([5, 3])
    found = streamed(tokens, offsets, some_tree(8, 0), teacher=1, losses=ELEMENTWISE)
    for arrays in found.values():
        for name in ("d_sq", "d", "d_bar", "d_token", "d_head"):
            assert not arrays[name].any(), name
        assert arrays["kl"] == pytest.approx(0, abs=1e-15) and arrays["js"] == pytest.approx(0, abs=1e-15)


def test_without_nodes_positions_are_scored_all_the_same() -> None:
    tokens, offsets = rolled([3, 2])
    bare, full = (streamed(tokens, offsets, tree) for tree in (NO_NODES, some_tree(5, 1)))
    for name in LOSSES:
        assert all(len(bare[name][array]) == 0 for array in ("d_bar", "d", "d_head", "teacher_prob"))
        for array in ("d_sq", "d_token", "kl", "js", "teacher_token_prob"):
            assert np.array_equal(bare[name][array], full[name][array])


def test_one_pass_over_the_models_serves_all_losses() -> None:
    tokens, offsets = rolled([3, 2])
    student, teacher = OfPrefix(1), OfPrefix(2)
    options: dict[str, Any] = {"temperature": 1.0, "block": 2, "group_tokens": 10**6}
    views = {Source("own", "none"): View(student, [5]), SOURCE: View(teacher, [6]), OTHER: View(teacher, [6, 7])}
    made = distill(View(student, [5]), views, tokens, offsets, NO_NODES, dict.fromkeys(views, LOSSES), **options)
    assert (student.calls, teacher.calls) == (1, 2)
    assert list(made) == [Signal(*source, loss) for source in views for loss in LOSSES]
    for source, view in views.items():
        alone = distill(View(student, [5]), {source: view}, tokens, offsets, NO_NODES, {source: LOSSES}, **options)
        for signal, arrays in alone.items():
            assert all(np.array_equal(made[signal][name], array) for name, array in arrays.items())


def test_a_teacher_of_a_larger_vocabulary_is_renormalised_over_the_students() -> None:
    tokens, offsets = rolled([4])
    student, teacher = View(OfPrefix(1), [5]), View(OfPrefix(2, VOCABULARY + 3), [5])
    options: dict[str, Any] = {"temperature": 1.0, "block": 10, "group_tokens": 100}
    everything = whole_tree(len(tokens))
    losses = {SOURCE: {"kl": ReverseKL()}}
    (found,) = distill(student, {SOURCE: teacher}, tokens, offsets, everything, losses, **options).values()
    assert np.add.reduceat(found["teacher_prob"], everything["branch_offsets"][:-1]) == pytest.approx(1)


def test_a_model_that_gives_no_numbers_is_refused() -> None:
    class Broken(OfPrefix):
        def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().log_probs(hidden) * torch.nan

    tokens, offsets = rolled([4])
    options: dict[str, Any] = {"temperature": 1.0, "block": 10, "group_tokens": 100}
    with pytest.raises(EngineError, match="log-probabilities that are not numbers"):
        distill(
            View(OfPrefix(1), [5]),
            {SOURCE: View(Broken(2), [5])},
            tokens,
            offsets,
            NO_NODES,
            {SOURCE: LOSSES},
            **options,
        )


def whole_tree(positions: int) -> dict[str, AnyArray]:
    """A node at every position, every token a branch of it."""
    return {
        "node": np.arange(positions),
        "branch_offsets": np.arange(positions + 1) * VOCABULARY,
        "branch_token": np.tile(np.arange(VOCABULARY, dtype=np.int32), positions),
        "branch_tail": np.zeros(positions * VOCABULARY, dtype=bool),
    }


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_recorded_branches_that_cover_the_vocabulary_give_what_whole_rows_give(name: str) -> None:
    tokens, offsets = rolled([4, 1, 3])
    tree = whole_tree(len(tokens))
    whole = streamed(tokens, offsets, tree, losses={name: LOSSES[name]})[name]
    mine = streamed(tokens, offsets, tree, teacher=1, losses={name: LOSSES[name]})[name]["teacher_prob"]
    recorded = distill_branches(tokens, {**tree, "branch_prob": mine}, whole["teacher_prob"], {name: LOSSES[name]})
    check_layout("distillation", DISTILLATION, recorded[name])
    for array, values in whole.items():
        assert np.allclose(recorded[name][array], values, rtol=1e-7, atol=1e-9), array


def test_what_was_not_recorded_is_undefined_and_carries_no_signal() -> None:
    tokens = np.array([3, 4, -1, 1], dtype=np.int32)
    tree = {
        "node": np.array([1, 2]),
        "branch_offsets": np.array([0, 2, 4]),
        "branch_token": np.array([4, 5, 0, 1], dtype=np.int32),
        "branch_tail": np.zeros(4, dtype=bool),
        "branch_prob": np.array([0.5, 0.3, 0.6, 0.4]),
    }
    found = distill_branches(tokens, tree, np.array([0.1, 0.8, 0.0, 1.0]), {"kl": ReverseKL()})["kl"]
    assert np.isnan(found["kl"]).tolist() == np.isnan(found["js"]).tolist() == [True, False, False, True]
    assert found["d_sq"][[0, 3]].tolist() == [0, 0] and (found["d_sq"][[1, 2]] > 0).all()
    assert np.isnan(found["d_token"]).tolist() == [True, False, True, True]  # where the sampled token is a branch
    assert found["teacher_token_prob"][1] == 0.1 and np.isnan(found["teacher_token_prob"][[0, 2, 3]]).all()
    assert np.isfinite(found["d"]).all()  # a teacher that gives 0 too


def test_recorded_questions_without_any_branch() -> None:
    tree = {**NO_NODES, "branch_prob": np.empty(0)}
    found = distill_branches(np.full(3, -1, dtype=np.int32), tree, np.empty(0), {"kl": ReverseKL()})["kl"]
    assert found["d_sq"].tolist() == [0, 0, 0] and np.isnan(found["kl"]).all() and len(found["d"]) == 0


ROWS = st.integers(0, 2**32).map(lambda s: 5 * np.random.default_rng(s).standard_normal((3, VOCABULARY)))


@given(ROWS, ROWS)
@settings(deadline=None)
def test_divergences_are_those_of_their_definitions(one: Any, other: Any) -> None:
    log_p, log_t = (torch.log_softmax(torch.from_numpy(x), dim=-1) for x in (one, other))
    (kl, js), (_, back) = divergences(log_p, log_t), divergences(log_t, log_p)
    p, t = log_p.exp().numpy(), log_t.exp().numpy()
    assert kl.numpy() == pytest.approx((p * np.log(p / t)).sum(axis=1), rel=1e-9)
    assert js.numpy() == pytest.approx(back.numpy()) and (js >= 0).all() and (js <= np.log(2) + 1e-12).all()
    assert (divergences(log_p, log_p)[0] == 0).all()


def test_divergences_of_what_never_meets_are_finite() -> None:
    log_p, log_t = (torch.log(torch.tensor([row], dtype=torch.float64)) for row in ([1.0, 0.0], [0.0, 1.0]))
    kl, js = divergences(log_p, log_t)
    assert torch.isfinite(kl).all() and js.item() == pytest.approx(np.log(2))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 2**32), st.sampled_from(sorted(ELEMENTWISE)))
@settings(deadline=None, max_examples=40)
def test_the_direction_over_a_head_sums_to_0_and_is_blind_to_the_rest(sizes: list[int], seed: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *sizes])
    tail = rng.random(int(offsets[-1])) < 0.4
    tail[offsets[:-1]] = False
    log_p, log_t = (torch.from_numpy(rng.standard_normal(len(tail))) for _ in range(2))
    found = head_direction(LOSSES[name], log_p, log_t, offsets, tail)
    assert not found[tail].any()
    for node, (first, last) in enumerate(pairwise(offsets.tolist())):
        head = np.flatnonzero(~tail[first:last]) + first
        assert found[first:last].sum() == pytest.approx(0, abs=1e-12), node
        rows = (torch.log_softmax(x[head][None], dim=-1) for x in (log_p, log_t))
        assert np.allclose(found[head], distillation_direction(LOSSES[name], *rows)[0].numpy())
        if len(head) == 1:
            assert found[head[0]] == pytest.approx(0, abs=1e-15)
    shift = torch.from_numpy(rng.standard_normal(len(sizes)))[torch.from_numpy(owners(offsets))]
    assert np.allclose(head_direction(LOSSES[name], log_p + shift, log_t, offsets, tail), found)
