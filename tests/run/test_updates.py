"""Updates of the student's parameters: gradients, projections, and products between questions."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from flows.command.configuration import checked
from flows.plan import cost
from schemas.config import Scores, Settings
from schemas.pipeline import ranking_stages
from schemas.signals import POLICY, REWARDED, Signal, Source, losses, updating_signals
from tasks.outputs.tasks import rank_task
from tasks.run.session import RunSession, start_session
from tasks.run.shells import run_stage
from tasks.stages.aggregate.updates import Products, update_columns
from tasks.stages.ranking import advantages
from tasks.stages.updates.projection import Projection
from tests.helpers.sessions import provided

WHOLE = {"dimensions": 2**24}


def updated(settings: dict[str, Any], **more: Any) -> RunSession:
    session = start_session(checked({**settings, "update": WHOLE, **more}))
    for stage in ranking_stages(session.config):
        assert not run_stage(session, stage, session.keys.questions).failed
    return session


def update(session: RunSession, question: str, signal: Signal) -> Any:
    return session.store.need("updates", session.keys.key("updates", question, signal)).arrays["update"]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_updates_are_the_gradients_of_the_losses_themselves(
    temperature: float, settings: dict[str, Any], models: Path
) -> None:
    """By autograd through the models as transformers has them, whole, in one pass."""
    sampling = {**settings["sampling"], "temperature": temperature}
    session = updated({**settings, "sampling": sampling})
    question = session.keys.questions[0]
    rollouts = dict(session.store.need("rollouts", session.keys.key("rollouts", question)).arrays)
    rollouts["reward"] = np.array([1.0, 0.0, 0.25, 1.0])
    wanted: dict[Source, dict[str, Settings]] = {REWARDED: {}, Source("large", "none"): losses(session.config)}
    found = session.provider.updates(question, wanted, rollouts, {})
    student, teacher = (AutoModelForCausalLM.from_pretrained(models / name) for name in ("student", "teacher"))
    V, prompt = provided(session).student.vocabulary, rollouts["prompt"].tolist()
    signals = {POLICY: 0.0, Signal("large", "none", "reverse_kl"): 0.0, Signal("large", "none", "forward_kl"): 0.0}
    totals: dict[Signal, Any] = {signal: torch.zeros(()) for signal in signals}
    for (first, last), credit in zip(
        pairwise(rollouts["offsets"].tolist()), advantages(rollouts["reward"]), strict=True
    ):
        tokens = rollouts["tokens"][first:last].tolist()
        ids = torch.tensor([[*prompt, *tokens]])
        rows = slice(len(prompt) - 1, len(prompt) + len(tokens) - 1)
        z = student(input_ids=ids).logits[0, rows, :V]
        with torch.no_grad():
            log_t = torch.log_softmax(teacher(input_ids=ids).logits[0, rows, :V], -1)
        log_p, log_sampling = torch.log_softmax(z, -1), torch.log_softmax(z / temperature, -1)
        chosen = log_sampling[torch.arange(len(tokens)), torch.tensor(tokens)]
        reverse = (log_p.exp() * (log_p - log_t)).sum()
        forward = (log_t.exp() * (log_t - log_p)).sum()
        for signal, objective in zip(signals, (float(credit) * chosen.sum(), -reverse, -forward), strict=True):
            totals[signal] = totals[signal] + objective / (len(rollouts["offsets"]) - 1)
    for signal, objective in totals.items():
        names, parameters = zip(*student.named_parameters(), strict=True)
        parts = torch.autograd.grad(objective, parameters, retain_graph=True)
        expected = {n.removeprefix("model."): p for n, p in zip(names, parts, strict=True)}
        whole = torch.cat([expected[name].flatten() for name in sorted(expected)]).numpy()
        ours = found[signal]["update"]
        assert len(ours) == len(whole) and np.linalg.norm(whole) > 0
        assert np.linalg.norm(ours - whole) <= 1e-4 * np.linalg.norm(whole), signal
    session.provider.close()


def test_a_projection_keeps_inner_products(settings: dict[str, Any]) -> None:
    whole, projected = updated(settings), updated(settings, update={"dimensions": 512})
    ids = whole.keys.questions
    large, own = Signal("large", "none", "reverse_kl"), Signal("self", "answer", "forward_kl")
    errors = []
    for a, b in ((ids[0], ids[1]), (ids[2], ids[3])):
        x, y = update(whole, a, large), update(whole, b, own)
        u, v = update(projected, a, large), update(projected, b, own)
        assert len(u) == 512 < len(x)
        errors.append((u @ v - x @ y) / (np.linalg.norm(x) * np.linalg.norm(y)))
    assert max(map(abs, errors)) < 4 / np.sqrt(512)


def test_projections_are_linear_unbiased_and_the_same_everywhere() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = ({n: torch.randn(s, generator=generator) for n, s in (("w", (40, 30)), ("v", (70,)))} for _ in range(2))
    flat_a, flat_b = (torch.cat([x["v"].flatten(), x["w"].flatten()]).numpy() for x in (a, b))
    exact = Projection(2000)
    assert exact(a) == pytest.approx(flat_a) and Projection(64)(a) == pytest.approx(Projection(64)(a))
    both = {name: a[name] + 2 * b[name] for name in a}
    assert Projection(64)(both) == pytest.approx(Projection(64)(a) + 2 * Projection(64)(b), abs=1e-4)
    products = []
    for i in range(400):  # other names, other signs
        x, y = ({f"{n}{i}": part for n, part in g.items()} for g in (a, b))
        project = Projection(64)
        products.append(project(x) @ project(y))
    error = np.std(products) / np.sqrt(len(products))
    assert abs(np.mean(products) - flat_a @ flat_b) < 3.5 * error
    assert np.std(products) < 2 * np.linalg.norm(flat_a) * np.linalg.norm(flat_b) / np.sqrt(64)


def test_products_of_a_question_with_itself_do_not_count() -> None:
    """So noise of a question's own draws, which its two gradients share, makes no gain."""
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(200):
        noise = rng.standard_normal((12, 50))
        gain, cosine = Products.of(noise, noise + 3).scores(np.ones(12))
        gains.append(float(gain))
        assert np.isnan(cosine) or abs(cosine) < 30
    assert abs(np.mean(gains)) < 3 * np.std(gains) / np.sqrt(200)
    policy, shared = rng.standard_normal((30, 50)) + 2, rng.standard_normal((30, 50)) + 2
    gain, cosine = Products.of(policy, shared).scores(np.ones(30))
    assert float(gain) == pytest.approx(2 * np.sqrt(50), rel=0.1) and float(cosine) == pytest.approx(1, abs=0.1)


def test_intervals_hold_the_update_gain_of_the_population() -> None:
    rng, held, truth = np.random.default_rng(1), 0, 0.0
    for _ in range(100):
        shift = rng.standard_normal((25, 1)) * np.ones(8)  # questions differ
        policy, of_signal = (rng.standard_normal((25, 8)) + 1 + 0.5 * s for s in (shift, -shift))
        columns = update_columns(policy, {POLICY: of_signal}, 25, Scores(bootstrap=200), 0)[POLICY]
        truth = np.sqrt(8)  # of means 1 and 1
        held += columns["update_gain_low"] <= truth <= columns["update_gain_high"]
    assert held >= 85


def test_a_ranking_has_update_gains_where_it_is_asked_for(settings: dict[str, Any]) -> None:
    session = updated(settings)
    config, ids = session.config, session.keys.questions
    result = rank_task.fn(config, ids, {}, {}, [])
    ranks = pl.read_parquet(Path(config.store) / "runs" / config.name / "ranks.parquet")
    assert set(result["files"]) == {"ranks.parquet"} and len(ranks) == 3 * 2
    known = ranks.filter(pl.col("teacher") == "large")
    policy = np.stack([update(session, i, POLICY) for i in ids]).astype(float)
    for row in known.iter_rows(named=True):
        of_signal = np.stack([update(session, i, Signal(row["teacher"], row["context"], row["loss"])) for i in ids])
        gain, _ = Products.of(policy, of_signal.astype(float)).scores(np.ones(len(ids)))
        carries = bool(np.abs(policy).sum())
        assert row["update_gain"] == (pytest.approx(float(gain)) if carries else None)
    equal = ranks.filter((pl.col("teacher") == "self") & (pl.col("context") == "none"))
    assert equal["update_gain"].is_null().all()  # it teaches nothing
    planned = {
        of_stage.stage: of_stage for of_stage in cost(start_session(checked({**settings, "update": WHOLE, "seed": 1})))
    }
    assert planned["updates"].forwards == 6 * 4 * (1 + 3) * (1 + 2 * 2)
    assert updating_signals(checked(settings)) == [] and "updates" in ranking_stages(config)


def test_updates_depend_on_the_teacher_and_loss_alone(settings: dict[str, Any]) -> None:
    base = start_session(checked({**settings, "update": WHOLE}))
    more = start_session(checked({**settings, "update": WHOLE, "losses": ["reverse_kl", "jsd"]}))
    other = start_session(checked({**settings, "update": {"dimensions": 99}}))
    question, signal = base.keys.questions[0], Signal(*Source("large", "none"), "reverse_kl")
    keys = [session.keys.key("updates", question, signal) for session in (base, more, other)]
    assert keys[0] == keys[1] != keys[2]
    assert base.keys.key("updates", question, POLICY) == more.keys.key("updates", question, POLICY)
