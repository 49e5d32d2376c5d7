"""Real trainings on small models: gradients, checkpoints, selections, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from flows.command.configuration import ConfigurationError
from flows.plan import what_validation_takes
from schemas.arrays import TRAININGS, check_layout
from schemas.config import RunConfig, Selection
from schemas.signals import POLICY, Signal
from tasks.engines.protocol import EngineError
from tasks.inputs.errors import InputError
from tasks.validation.session import open_validation
from tasks.validation.steps import Asked, gradient, sample
from tasks.validation.trainer import Trainer
from tasks.validation.trainings import UNTRAINED, Training, trainings
from tests.validation.material import Kept, trainer_of, validation_config

LARGE = Signal("large", "none", "reverse_kl")
ANSWER = Signal("self", "answer", "forward_kl")


def silent(steps: int, tokens: int) -> None:
    """Takes progress."""


@pytest.fixture
def config(settings: dict[str, Any], tmp_path: Path) -> RunConfig:
    return validation_config(settings, tmp_path)


@pytest.fixture
def trainer(config: RunConfig) -> Any:
    made = trainer_of(config)
    yield made
    made.close()


def test_every_signal_is_trained_on_but_those_that_teach_nothing(config: RunConfig) -> None:
    every = trainings(config)
    assert every[0] == UNTRAINED and len(every) == 1 + 2 * (2 * 2 + 1)
    assert {t.signal.source for t in every if t.signal is not None} == {LARGE.source, ANSWER.source, POLICY.source}


def test_signals_are_chosen_by_patterns_and_selections_come_beside_them(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    chosen: dict[str, Any] = {
        "signals": ["self/*/*"],
        "selections": [{"kind": "tip"}],
        "selected": ["*/*/reverse_kl"],
        "reward": False,
    }
    every = trainings(validation_config(settings, tmp_path, seeds=2, **chosen))
    assert len(every) == 1 + 2 * 2 * (2 + 2)
    assert {t.signal for t in every if t.tokens == "tip 0.333"} == {LARGE, ANSWER._replace(loss="reverse_kl")}


def test_a_plan_says_what_trainings_take(config: RunConfig) -> None:
    assert what_validation_takes(config) == (
        "validate: 10 trainings of 1 student, 3 steps each, 180 rollouts, at most 4,320 tokens, besides 2 measurements "
        "of each"
    )


@pytest.mark.parametrize("loss", ["reverse_kl", "forward_kl"])
def test_a_step_has_the_gradient_of_the_loss_itself(
    loss: str, config: RunConfig, trainer: Trainer, models: Path
) -> None:
    """By autograd through the models as transformers has them, one rollout after another."""
    training = Training(LARGE._replace(loss=loss), None, "adamw", 0)
    trainer.student.start(config.validation.optimisers[0])
    questions = trainer.of_step(0, 0)
    rollouts = sample(Asked(trainer.models), config, trainer.student, training, 0, questions)
    assert len(rollouts) == 6 and {r.sequence.prompt for r in rollouts} == {
        tuple(trainer.models.prompt(q)) for q in questions
    }
    found = gradient(config, trainer.student, training, rollouts)
    student, teacher = (AutoModelForCausalLM.from_pretrained(models / name) for name in ("student", "teacher"))
    V, total = trainer.student.scorer.vocabulary, torch.zeros(())
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.sequence.prompt, *rollout.sequence.tokens]])
        rows = slice(len(rollout.sequence.prompt) - 1, ids.shape[1] - 1)
        log_p = torch.log_softmax(student(input_ids=ids).logits[0, rows, :V], -1)
        with torch.no_grad():
            log_t = torch.log_softmax(teacher(input_ids=ids).logits[0, rows, :V], -1)
        kl = log_p.exp() * (log_p - log_t) if loss == "reverse_kl" else log_t.exp() * (log_t - log_p)
        total = total + kl.sum() / len(rollouts)
    total.backward()
    expected = {name: p.grad for name, p in student.named_parameters()}
    ours = {name: found[p] for name, p in trainer.student.parameters.items()}
    assert set(ours) == set(expected)
    size = float(torch.stack([g.norm() for g in expected.values() if g is not None]).norm())
    for name, of_name in expected.items():
        assert of_name is not None and float((ours[name] - of_name).norm()) <= 1e-4 * size, name


def test_the_gradient_does_not_depend_on_how_rollouts_are_grouped(config: RunConfig, trainer: Trainer) -> None:
    training = Training(ANSWER, None, "adamw", 0)
    trainer.student.start(config.validation.optimisers[0])
    rollouts = sample(Asked(trainer.models), config, trainer.student, training, 0, trainer.of_step(0, 0))
    whole = gradient(config, trainer.student, training, rollouts)
    one_by_one = config.model_copy(update={"engine": config.engine.model_copy(update={"batch_tokens": 1})})
    parts = gradient(one_by_one, trainer.student, training, rollouts)
    for parameter, of_whole in whole.items():
        assert torch.allclose(parts[parameter], of_whole, atol=1e-6)


def test_the_reward_is_that_of_others_subtracted(settings: dict[str, Any], tmp_path: Path) -> None:
    """With one rollout a question the others of the step are the baseline: gradients of alike rewards vanish."""
    config = validation_config(settings, tmp_path, run={"verifier": {"kind": "regex", "pattern": "zzz"}})
    trainer = trainer_of(config)
    training = Training(POLICY, None, "adamw", 0)
    trainer.student.start(config.validation.optimisers[0])
    rollouts = sample(Asked(trainer.models), config, trainer.student, training, 0, trainer.of_step(0, 0))
    assert {r.correct for r in rollouts} == {False}
    assert all(float(g.abs().max()) == 0 for g in gradient(config, trainer.student, training, rollouts).values())
    mixed = [r._replace(correct=i % 2 == 0) for i, r in enumerate(rollouts)]
    assert any(float(g.abs().max()) > 0 for g in gradient(config, trainer.student, training, mixed).values())
    trainer.close()


@pytest.mark.parametrize("kind", ["first", "incorrect", "correct", "entropy", "divergence", "tip"])
def test_unselected_tokens_teach_nothing(kind: Any, config: RunConfig, trainer: Trainer) -> None:
    training = Training(LARGE, Selection(kind=kind), "adamw", 0)
    trainer.student.start(config.validation.optimisers[0])
    rollouts = sample(Asked(trainer.models), config, trainer.student, training, 0, trainer.of_step(0, 0))
    some = gradient(config, trainer.student, training, rollouts)
    whole = gradient(config, trainer.student, training._replace(selection=None), rollouts)
    if kind == "correct" and not any(r.correct for r in rollouts):
        assert all(float(g.abs().max()) == 0 for g in some.values())
        return
    assert any(not torch.allclose(some[p], whole[p], atol=1e-6) for p in whole) or kind == "incorrect"


def test_trainings_change_the_student_and_start_from_the_same_weights(config: RunConfig, trainer: Trainer) -> None:
    before = trainer.run(UNTRAINED, Kept(), silent)
    check_layout("trainings", TRAININGS, before)
    first = trainer.run(Training(LARGE, None, "adamw", 0), Kept(), silent)
    check_layout("trainings", TRAININGS, first)
    assert first["step"].tolist() == [1, 3] and first["success"].shape == (2, 10)
    assert (np.diff(first["decoded"]) > 0).all() and (first["scored"] > first["decoded"]).all()
    other = trainer.run(Training(ANSWER, None, "normalised", 0), Kept(), silent)
    assert not np.array_equal(other["success"], first["success"])
    again = trainer.run(Training(LARGE, None, "adamw", 0), Kept(), silent)
    assert all(np.array_equal(again[name], first[name]) for name in TRAININGS)
    assert np.array_equal(trainer.run(UNTRAINED, Kept(), silent)["success"], before["success"])


@pytest.mark.parametrize("optimiser", ["adamw", "normalised"])
@pytest.mark.parametrize("due", [1, 2])
def test_a_training_goes_on_from_a_state_to_the_same_bytes(
    due: int, optimiser: str, config: RunConfig, trainer: Trainer
) -> None:
    training = Training(LARGE, None, optimiser, 0)
    whole = trainer.run(training, Kept(), silent)
    weights = {n: p.detach().clone() for n, p in trainer.student.parameters.items()}
    kept = Kept(due)
    trainer.run(training, kept, silent)
    assert kept.state is not None and kept.state["done"].tolist() == [due]
    steps: list[int] = []
    resumed = trainer.run(training, kept, lambda n, tokens: steps.append(n))
    assert steps == [due, *[1] * (3 - due)]
    assert all(np.array_equal(resumed[name], whole[name]) for name in TRAININGS)
    assert all(torch.equal(p, weights[n]) for n, p in trainer.student.parameters.items())


def test_a_state_before_the_first_measurement_is_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = trainer_of(validation_config(settings, tmp_path, evaluate_at=[]))
    training, kept = Training(LARGE, None, "adamw", 0), Kept(1)
    whole = trainer.run(training, kept, silent)
    assert kept.state is not None and kept.state["success"].shape == (0, 10)
    assert np.array_equal(trainer.run(training, kept, silent)["success"], whole["success"])
    trainer.close()


def test_questions_that_a_step_has_twice_have_other_rollouts(settings: dict[str, Any], tmp_path: Path) -> None:
    config = validation_config(settings, tmp_path, batch=40)
    trainer = trainer_of(config)
    trainer.student.start(config.validation.optimisers[0])
    questions = trainer.of_step(0, 0)
    assert sorted(map(questions.count, set(questions))) == [2] * 20
    rollouts = sample(Asked(trainer.models), config, trainer.student, Training(LARGE), 0, questions)
    alone = sample(Asked(trainer.models), config, trainer.student, Training(LARGE), 0, questions[:20])
    assert [r.sequence for r in rollouts[:20]] == [r.sequence for r in alone]
    assert len({(r.sequence.prompt, tuple(r.sequence.tokens)) for r in rollouts}) > 30
    trainer.close()


def test_a_teacher_that_equals_the_student_moves_nothing(
    settings: dict[str, Any], models: Path, tmp_path: Path
) -> None:
    same = [{"name": "same", "model": {"path": str(models / "student")}}]
    trainer = trainer_of(validation_config(settings, tmp_path, run={"teachers": same}))
    before = {n: p.detach().clone() for n, p in trainer.student.parameters.items()}
    for optimiser in ("adamw", "normalised"):
        trainer.run(Training(Signal("same", "none", "reverse_kl"), None, optimiser, 0), Kept(), silent)
        assert all(torch.equal(p, before[n]) for n, p in trainer.student.parameters.items())
    trainer.close()


def test_adapters_are_float32_beside_narrow_weights_and_not_of_the_head(
    settings: dict[str, Any], models: Path, tmp_path: Path
) -> None:
    narrow = {"student": {"path": str(models / "student"), "dtype": "bfloat16"}}
    trainer = trainer_of(validation_config(settings, tmp_path, run=narrow, lora={"rank": 2}))
    assert {p.dtype for p in trainer.student.parameters.values()} == {torch.float32}
    trainer.run(Training(LARGE, None, "adamw", 0), Kept(), silent)
    trainer.close()
    of_head = trainer_of(validation_config(settings, tmp_path, lora={"targets": ["lm_head"]}))
    with pytest.raises(EngineError, match="the output head, which cannot be adapted"):
        of_head.run(UNTRAINED, Kept(), silent)
    of_head.close()


def test_the_student_as_it_is_measured_is_in_its_key(settings: dict[str, Any], tmp_path: Path) -> None:
    own, adapted = keys(validation_config(settings, tmp_path)), keys(validation_config(settings, tmp_path, lora={}))
    assert own[UNTRAINED] != adapted[UNTRAINED]


def test_normalised_steps_have_their_length(config: RunConfig, trainer: Trainer) -> None:
    student = trainer.student
    student.start(config.validation.optimisers[1])
    before = {n: p.detach().clone() for n, p in student.parameters.items()}
    student.step({p: torch.randn_like(p) for p in student.parameters.values()})
    moved = torch.stack([(p.detach() - before[n]).norm() for n, p in student.parameters.items()]).norm()
    assert float(moved) == pytest.approx(0.5, rel=1e-4)
    student.step({p: torch.zeros_like(p) for p in student.parameters.values()})


def test_adapters_are_trained_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    config = validation_config(settings, tmp_path, lora={"rank": 2, "alpha": 4})
    trainer = trainer_of(config)
    names = set(trainer.student.parameters)
    assert names and all("lora_" in name for name in names)
    others = {n: p.detach().clone() for n, p in trainer.student.scorer.model.named_parameters() if n not in names}
    plain = trainer.run(UNTRAINED, Kept(), silent)
    trained = trainer.run(Training(LARGE, None, "normalised", 0), Kept(), silent)
    now = dict(trainer.student.scorer.model.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in others.items())
    assert any(float(p.detach().abs().max()) > 0 for n, p in trainer.student.parameters.items() if "lora_B" in n)
    assert not np.array_equal(trained["success"][-1], plain["success"][0])
    trainer.close()


def test_a_current_teacher_is_the_student_as_it_is_now(settings: dict[str, Any], tmp_path: Path) -> None:
    ends = {}
    for teacher in ("initial", "current"):
        trainer = trainer_of(validation_config(settings, tmp_path, teacher=teacher))
        ends[teacher] = [
            trainer.run(Training(signal, None, "normalised", 0), Kept(), silent)["decoded"].tolist()
            for signal in (ANSWER, LARGE)
        ]
        trainer.close()
    assert ends["initial"][0] != ends["current"][0] and ends["initial"][1] == ends["current"][1]


def test_contexts_may_show_rollouts(settings: dict[str, Any], tmp_path: Path) -> None:
    teachers = [{"name": "self", "contexts": ["right_attempt"]}]
    with pytest.raises(InputError, match=r"shows other rollouts, which a step has where validation.rollouts is 2"):
        open_validation(validation_config(settings, tmp_path, run={"teachers": teachers}, reward=False))
    config = validation_config(settings, tmp_path, run={"teachers": teachers}, rollouts=2)
    trainer = trainer_of(config)
    signal = Signal("self", "right_attempt", "reverse_kl")
    trainer.student.start(config.validation.optimisers[0])
    rollouts = sample(Asked(trainer.models), config, trainer.student, Training(signal), 0, trainer.of_step(0, 0))
    assert len(rollouts) == 12 and {r.place for r in rollouts} == {0, 1}
    assert all(r.correct is not None for r in rollouts)
    assert gradient(config, trainer.student, Training(signal), rollouts)
    trainer.close()


def keys(config: RunConfig) -> dict[Training, str]:
    session = open_validation(config)
    found = {training: session.recipe(training).key for training in session.trainings}
    session.close()
    return found


def test_keys_hold_what_can_change_a_training_and_nothing_else(settings: dict[str, Any], tmp_path: Path) -> None:
    def changed(run: dict[str, Any] | None = None, **more: Any) -> RunConfig:
        return validation_config(settings, tmp_path, run, **more)

    own = keys(changed())
    assert len(set(own.values())) == len(own)
    for same in (
        changed(workers=2, diagnose=True),
        changed({"name": "x", "tree": {"kind": "adaptive"}}),
        changed(seeds=2),
    ):
        assert own.items() <= keys(same).items()
    more_rollouts = {**settings["sampling"], "rollouts": 8}
    assert own.items() <= keys(changed({"sampling": more_rollouts})).items()
    trained = [t for t in own if t.signal is not None]
    differing: list[tuple[Callable[[], RunConfig], set[Training]]] = [
        (lambda: changed(steps=4), set(trained)),
        (lambda: changed(batch=5), set(trained)),
        (lambda: changed(teacher="current"), set(trained)),
        (lambda: changed(rollouts=2), set(trained)),
        (lambda: changed(evaluate_at=[2]), set(trained)),
        (lambda: changed(held_out_rollouts=3), set(own)),
        (lambda: changed({"seed": 1}), set(own)),
        (lambda: changed(optimisers=["adamw"]), {t for t in trained if t.optimiser == "adamw"}),
    ]
    for other, expected in differing:
        found = keys(other())
        assert {t for t in own if t in found and own[t] != found[t]} == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"held_out": None}, "validation.held_out: missing"),
        ({"held_out": {"path": "nowhere.jsonl"}}, "validation.held_out.path: 'nowhere.jsonl' does not exist"),
        ({"questions": {"path": "nowhere.jsonl"}}, "validation.questions.path: 'nowhere.jsonl' does not exist"),
        ({"signals": ["large/none/jsd"]}, "'large/none/jsd' names no signal to train on; known are large/none/rev"),
        ({"signals": ["self/none/*"]}, "self/none equals the student"),
        (
            {"run": {"teachers": [{"name": "self"}]}, "reward": False},
            "validation.signals: there is nothing to train on",
        ),
    ],
)
def test_what_cannot_be_validated_is_refused(
    more: dict[str, Any], message: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        open_validation(validation_config(settings, tmp_path, **more))
    assert message in str(error.value)


def test_a_held_out_question_that_is_trained_on_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    config = validation_config(settings, tmp_path)
    (tmp_path / "held_out.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    with pytest.raises(InputError, match=r"validation.held_out: question 'chain-001' is question 'chain-001'"):
        open_validation(config)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"evaluate_at": [2, 1]}, "validation.evaluate_at"),
        ({"evaluate_at": [9]}, "validation.evaluate_at"),
        ({"signals": ["large"]}, "validation.signals: 'large' is not teacher/context/loss"),
        ({"selections": [{"kind": "tip"}]}, "validation.selected: empty"),
        ({"optimisers": ["adamw", "adamw"]}, "validation.optimisers"),
        ({"optimisers": [{"kind": "sgd"}]}, "kind 'sgd' is not known"),
    ],
)
def test_wrong_settings_are_explained(
    more: dict[str, Any], message: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as error:
        validation_config(settings, tmp_path, **more)
    assert message in str(error.value)
