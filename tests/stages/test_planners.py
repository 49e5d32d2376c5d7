"""The adaptive and the windows plan."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flows.command.configuration import checked, merged
from flows.plan import cost
from schemas.arrays import AnyArray
from schemas.config import AdaptiveTree, ReverseKL, WindowsTree
from schemas.signals import sources
from tasks.calibration.chain import exact_scores
from tasks.calibration.simulate import OracleTeaching, Rolled, roll
from tasks.calibration.suite import Family, make_question
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.engines.transformers.scorer import TransformersScorer
from tasks.outputs.files import write_run
from tasks.run.session import start_session
from tasks.run.shells import run_stage
from tasks.stages.trees.adaptive import AdaptivePlanner, half_width, outcome_variance
from tasks.stages.trees.design import Completed, RoundDesign
from tasks.stages.trees.frame import SamplingFrame
from tasks.stages.trees.planner import grow_tree
from tasks.stages.trees.windows import count_visits, windows
from tasks.statistics.csr import owners, row_sums
from tasks.statistics.estimators import Outcomes, adjust_for_tail, estimate_linear, estimate_squared_norm, pool_rounds
from tasks.store.store import Store
from tests.helpers.drawing import drawn_by
from tests.helpers.sessions import provided

LOSS = ReverseKL()


class Recording:
    """Keeps the rounds that it has planned."""

    layout = "rounds"

    def __init__(self, tree: AdaptiveTree) -> None:
        self.rounds: list[Completed] = []
        self._planner = AdaptivePlanner(tree)

    def next_round(self, frame: SamplingFrame, completed: Sequence[Completed], seconds: float) -> RoundDesign | None:
        self.rounds = list(completed)
        return self._planner.next_round(frame, completed, seconds)

    def tree(self, frame: SamplingFrame, completed: Sequence[Completed]) -> dict[str, AnyArray]:
        return self._planner.tree(frame, completed)


def grown(tree: AdaptiveTree, rolled: Rolled, rng: np.random.Generator) -> tuple[dict[str, AnyArray], list[Completed]]:
    """The tree and its rounds."""
    planner = Recording(tree)
    arrays = grow_tree(planner, rolled.frame, drawn_by(rolled, rng))
    return arrays, planner.rounds


def test_adaptive_sums_are_unbiased_though_later_rounds_follow_from_earlier_ones() -> None:
    q = make_question(Family(64, "clear", "even"), 1, 0)
    rolled = roll(q.student, "q", 4, 0, np.random.default_rng(0))
    exact = exact_scores(q.student, q.teachers["fair"], LOSS)
    tree = AdaptiveTree(draws=1024, round=256)
    taught = OracleTeaching(rolled, q.teachers["fair"], LOSS)
    sums = []
    for seed in range(300):
        again = replace(rolled, frame=replace(rolled.frame, seed=seed))
        arrays, _ = grown(tree, again, np.random.default_rng(1000 + seed))
        outcomes, d = Outcomes.of(arrays), taught.distillation(arrays)
        w = arrays["share"] / arrays["inclusion"]
        c = d["d"] - d["d_bar"][owners(outcomes.offsets)]
        inner = estimate_linear(
            outcomes, adjust_for_tail(outcomes, c, -row_sums(outcomes.head_prob * c, outcomes.offsets))
        )
        sums.append([(w * inner).sum(), (w * estimate_squared_norm(outcomes)[0]).sum()])
    target = [x[rolled.depth, rolled.state].sum() for x in (exact.inner, exact.g_sq)]
    error = np.std(sums, axis=0, ddof=1) / np.sqrt(len(sums))
    assert (np.abs(np.mean(sums, axis=0) - target) <= 3 * error).all()
    assert (error < np.abs(target) / 5).all()  # the test can see a bias


def test_adaptive_goes_where_outcomes_are_open() -> None:
    """Positions whose value is known to be near 0 or 1 get a smaller share than open ones of the same leverage."""
    q = make_question(Family(256, "clear", "easy"), 3, 0)
    rolled = roll(q.student, "q", 8, 0, np.random.default_rng(0))
    _, drawn = grown(AdaptiveTree(draws=4096, round=512), rolled, np.random.default_rng(1))
    believed = outcome_variance(rolled.frame, drawn)
    value = q.student.values[rolled.depth, rolled.state]
    assert np.corrcoef(believed, value * (1 - value))[0, 1] > 0.4
    assert len(np.unique(outcome_variance(rolled.frame, []))) == 1  # before any draw


def test_budgets_and_precision_end_the_rounds() -> None:
    q = make_question(Family(64, "clear", "even"), 0, 0)
    rolled = roll(q.student, "q", 8, 0, np.random.default_rng(0))

    def rounds(**tree: Any) -> list[Completed]:
        settings = AdaptiveTree(**{"draws": 8192, "round": 512, **tree})
        return grown(settings, rolled, np.random.default_rng(2))[1]

    assert len(rounds()) == 16 and len(rounds(draws=1300)) == 2
    few = rounds(tokens=60_000)
    assert 40_000 <= sum(d.tokens for d in few) <= 60_000
    precise = rounds(half_width=0.1)
    assert 4 <= len(precise) < 16
    assert half_width(rolled.frame, precise) <= 0.1 < half_width(rolled.frame, precise[:-1])


def test_target_tokens_resolves_more_of_the_signal() -> None:
    """Focused rounds return to nodes that carry signal; they have no weight in pooled scores."""
    q = make_question(Family(64, "clear", "even"), 0, 0)
    rolled = roll(q.student, "q", 8, 0, np.random.default_rng(0))
    signal = exact_scores(q.student, q.teachers["fair"], LOSS).g_sq[rolled.depth, rolled.state]
    held = {}
    for target in ("pooled", "tokens"):
        arrays, drawn = grown(AdaptiveTree(draws=8192, target=target), rolled, np.random.default_rng(3))
        draws = row_sums(arrays["draws"].astype(float), arrays["branch_offsets"])
        held[target] = (draws * signal[arrays["node"]]).sum() / signal.max()
        focused = [d for d in drawn if d.design.focused]
        assert bool(focused) == (target == "tokens")
        assert arrays["share"].sum() == pytest.approx(
            sum(len(d.design.arrays["node"]) for d in drawn if not d.design.focused) / (len(drawn) - len(focused))
        )
    assert held["tokens"] > 1.5 * held["pooled"]


def test_a_larger_budget_decodes_only_what_it_adds(settings: dict[str, Any]) -> None:
    tree = {"kind": "adaptive", "head": 3, "tail": 2, "node_draws": 12, "round": 24, "draws": 48}
    small = start_session(checked(merged({**settings, "tree": tree}, {})))
    large = start_session(checked({**settings, "tree": {**tree, "draws": 96}}))
    ids = small.keys.questions
    run_stage(small, "rollouts", ids)
    run_stage(small, "trees", ids)
    before = [small.store.need("trees", small.keys.key("trees", i)) for i in ids]
    added = run_stage(large, "trees", ids).decoded_tokens
    for i, less in zip(ids, before, strict=True):
        more = large.store.need("trees", large.keys.key("trees", i))
        early = more["round"] < 2
        assert more["node"][early].tolist() == less["node"].tolist()
        branches = early[owners(more["branch_offsets"])]
        for name in ("branch_token", "draws", "successes"):
            assert more[name][branches].tolist() == less[name].tolist()
    alone = start_session(checked({**settings, "tree": {**tree, "draws": 96}, "store": settings["store"] + "-alone"}))
    run_stage(alone, "rollouts", ids)
    assert 0 < added < run_stage(alone, "trees", ids).decoded_tokens
    for i in ids:
        a, b = (j.store.need("trees", j.keys.key("trees", i)).arrays for j in (large, alone))
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_plan_reads_nothing_of_what_is_there(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    job = start_session(checked(settings))
    run_stage(job, "rollouts", job.keys.questions[:4])
    monkeypatch.setattr(Store, "get_bytes", lambda *_: pytest.fail("an artefact was read"))
    rollouts, trees = cost(job)[:2]
    assert (rollouts.cached, rollouts.missing, rollouts.completions) == (4, 2, 2 * 4)
    assert (trees.cached, trees.missing, trees.completions) == (0, 6, 6 * 6 * 12)


def test_a_plan_leaves_out_what_the_last_run_left_out(settings: dict[str, Any]) -> None:
    job = start_session(checked(settings))
    ids = job.keys.questions
    lost, kept = ids[0], ids[1:]
    run_stage(job, "rollouts", ids)
    job.keys.leave_out([lost])
    for stage in ("trees", "ideal", "prior"):
        run_stage(job, stage, kept)
    write_run(job, kept, {lost: "all rollouts hit the length limit"}, [], {"files": {}, "why_unresolved": None}, {})
    planned = {c.stage: c for c in cost(start_session(checked(settings)))}
    assert [planned[stage].missing for stage in ("rollouts", "trees", "ideal", "prior")] == [0, 0, 0, 0]
    assert planned["alignment"].missing == len(kept) * 6
    other = {c.stage: c for c in cost(start_session(checked({**settings, "name": "other"})))}
    assert other["trees"].missing == 1


@pytest.mark.parametrize(
    "tree",
    [
        {"kind": "forced", "nodes": 6, "head": 3, "tail": 2, "draws": 12},
        {"kind": "windows", "draws": 200, "min_visits": 3},
        {"kind": "adaptive", "head": 3, "tail": 2, "node_draws": 16, "round": 25, "draws": 74},
        {"kind": "adaptive", "head": 3, "tail": 2, "node_draws": 12, "round": 48, "draws": 240},
        {"kind": "adaptive", "head": 3, "tail": 2, "node_draws": 12, "round": 24, "draws": 96, "target": "tokens"},
    ],
)
def test_a_plan_is_what_is_done_at_most(
    tree: dict[str, Any], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted: completions decoded and sequences scored, by stage."""
    done = {"completions": 0, "forwards": 0}
    hidden, decode = TransformersScorer.hidden, TransformersSampler.continue_prefixes

    def scored(self: TransformersScorer, prompt: Any, completions: Any) -> Any:
        done["forwards"] += len(completions)
        return hidden(self, prompt, completions)

    def decoded(self: TransformersSampler, trunks: Any, draws: Any, temperature: float) -> Any:
        done["completions"] += len(draws)
        return decode(self, trunks, draws, temperature)

    job = start_session(checked({**settings, "tree": tree}))
    planned = {c.stage: c for c in cost(job)}
    models = provided(job)
    _ = models.sampler, models.student  # loaded, with their self-tests
    monkeypatch.setattr(TransformersScorer, "hidden", scored)
    monkeypatch.setattr(TransformersSampler, "continue_prefixes", decoded)
    for stage in ("rollouts", "trees", "ideal", "prior", "distillation"):
        for source in sources(job.config) if stage == "distillation" else []:
            models.teacher(source)
        done.update(completions=0, forwards=0)
        run_stage(job, stage, job.keys.questions)
        for what, n in done.items():
            most = getattr(planned[stage], what)
            assert most / 2 <= n <= most, (stage, what)


def test_windows_start_at_powers_of_two_and_share_the_budget() -> None:
    found = windows(WindowsTree(draws=23), np.array([0, 5, 7]))
    assert [(w.rollout, w.depth) for w in found] == [(0, 0), (0, 1), (0, 2), (0, 4), (1, 0), (1, 1)]
    assert sum(w.draws for w in found) == 23 and {w.draws for w in found} == {3, 4}


def test_visits_are_those_of_the_prefix_tree() -> None:
    """Against brute force: every continuation, every position of every rollout."""
    rng = np.random.default_rng(0)
    offsets = np.array([0, 6, 12, 16])
    tokens = rng.integers(0, 2, size=16)
    each = [w for w in windows(WindowsTree(draws=200), offsets) for _ in range(w.draws)]
    continued = [rng.integers(0, 2, size=rng.integers(1, 7)) for _ in each]
    success, cut = rng.random(len(each)) < 0.5, rng.random(len(each)) < 0.1
    expected: dict[tuple[int, int], list[int]] = {}
    for w, more, won, was_cut in zip(each, continued, success, cut, strict=True):
        whole = [*tokens[offsets[w.rollout] : offsets[w.rollout] + w.depth].tolist(), *more.tolist()]
        for r in range(3):
            rollout = tokens[offsets[r] : offsets[r + 1]].tolist()
            for t in range(w.depth, min(len(rollout), len(whole))):
                if whole[:t] == rollout[:t]:
                    entry = expected.setdefault((int(offsets[r]) + t, whole[t]), [0, 0, 0])
                    for i, one in enumerate((1, won, was_cut)):
                        entry[i] += int(one)
    found = count_visits(tokens, offsets, each, continued, success, cut)
    assert {(p, t): [v, s, c] for p, t, v, s, c in zip(*found, strict=True)} == expected


def test_a_windows_tree_keeps_nodes_with_two_counted_children(settings: dict[str, Any]) -> None:
    tree = {"kind": "windows", "draws": 600, "min_visits": 3}
    job = start_session(checked({**settings, "tree": tree}))
    ids = job.keys.questions[:2]
    run_stage(job, "rollouts", ids)
    run_stage(job, "trees", ids)
    for i in ids:
        arrays = job.store.need("trees", job.keys.key("trees", i))
        assert len(arrays["node"]) > 0
        assert (np.diff(arrays["branch_offsets"]) >= 2).all() and (arrays["draws"] >= 3).all()
        assert (arrays["successes"] <= arrays["draws"]).all()
        inside = row_sums(arrays["branch_prob"], arrays["branch_offsets"])
        assert inside + arrays["tail_prob"] == pytest.approx(1)


def test_rounds_of_a_node_are_merged() -> None:
    q = make_question(Family(64, "clear", "even"), 0, 0)
    rolled = roll(q.student, "q", 2, 0, np.random.default_rng(0))
    tree = AdaptiveTree(draws=4096, round=512)
    arrays, _ = grown(tree, rolled, np.random.default_rng(4))
    nodes = pool_rounds(arrays)
    assert len(np.unique(arrays["node"])) == len(nodes.outcomes.p_sq) < len(arrays["node"])
    assert nodes.outcomes.draws.sum() == arrays["draws"].sum()
    assert np.array_equal(nodes.outcomes.prob[nodes.branch], arrays["branch_prob"])


def test_a_student_that_is_certain_of_every_token_has_no_nodes() -> None:
    q = make_question(Family(64, "clear", "even"), 0, 0)
    rolled = roll(q.student, "q", 2, 0, np.random.default_rng(0))
    flat = {name: np.zeros_like(values) for name, values in rolled.frame.by_position.items()}
    certain = replace(rolled, frame=replace(rolled.frame, by_position=flat))
    arrays, drawn = grown(AdaptiveTree(), certain, np.random.default_rng(0))
    assert [d.draws for d in drawn] == [0]
    assert len(arrays["node"]) == 0
