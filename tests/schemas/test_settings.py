"""Settings: every kind has what does it, cosmetic fields are in no key, and unknown ones are errors."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from schemas.config import (
    JSD,
    YARDSTICKS,
    AdaptiveTree,
    Context,
    Engine,
    Execution,
    Loss,
    MathVerifier,
    Model,
    Prompt,
    Questions,
    RunConfig,
    Settings,
    Teacher,
    TopK,
    TransformersEngine,
    Tree,
    Verifier,
    is_cosmetic,
    loss_name,
    settings_in,
)
from tasks.operations.implementations import implementation
from tasks.stages.distillation.losses import distillation_direction

UNIONS: dict[str, Any] = {"engine": Engine, "loss": Loss, "tree": Tree, "verifier": Verifier}
WITHOUT = {"auto", "recorded", "top_k", "sampled_token", "python", "minillm", "dr_grpo", "grpo"}
"""Kinds that another place does: the machine chooses an engine, tables are looked up, a truncated or sampled loss goes
by the one that it is made of, a user's own names its function itself, and draws or the reward need others."""


def members(union: Any) -> list[type[BaseModel]]:
    return settings_in(get_args(union)[0])


def every_settings() -> Iterator[type[Settings]]:
    waiting = [Settings]
    while waiting:
        found = waiting.pop()
        waiting += found.__subclasses__()
        if found.__module__.startswith("schemas.") and found.model_fields:
            yield found


ALL = sorted(set(every_settings()), key=lambda c: c.__name__)


@pytest.mark.parametrize("union", UNIONS)
def test_members_of_a_union_are_told_apart_by_kind_and_can_be_imported(union: str) -> None:
    kinds = [member.model_fields["kind"].default for member in members(UNIONS[union])]
    assert len(set(kinds)) == len(kinds) >= 3
    for member, kind in zip(members(UNIONS[union]), kinds, strict=True):
        assert get_args(member.model_fields["kind"].annotation) == (kind,)
        if kind in WITHOUT and union != "verifier":
            assert not hasattr(member, "implementation")
        else:
            assert issubclass(member, Settings) and callable(implementation(member.implementation))


@pytest.mark.parametrize("union", UNIONS)
def test_an_unknown_kind_is_refused_with_those_that_are(union: str) -> None:
    with pytest.raises(ValidationError, match=r"does not match any of the expected tags.*"):
        TypeAdapter(UNIONS[union]).validate_python({"kind": "none of these"})


@pytest.mark.parametrize("union", UNIONS)
def test_every_settings_class_with_a_kind_is_a_member(union: str) -> None:
    """One that is written and not in its union could never be chosen."""
    module = members(UNIONS[union])[0].__module__
    of_module = {c for c in ALL if c.__module__ == module and "kind" in c.model_fields}
    assert of_module == set(members(UNIONS[union]))


def test_each_loss_runs_with_its_own_defaults() -> None:
    import torch

    log_p, log_t = torch.log_softmax(torch.tensor([[[2.0, 1.0, 0.0]], [[0.0, 1.0, 3.0]]]), dim=-1)
    for member in members(Loss):
        if member in YARDSTICKS or any(field.is_required() for field in member.model_fields.values()):
            continue  # the reward itself, or a user's own
        loss = member()
        assert isinstance(loss, Settings)
        assert distillation_direction(loss, log_p, log_t).sum().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("settings", ALL, ids=lambda c: c.__name__)
def test_unknown_fields_are_errors_and_values_are_final(settings: type[Settings]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        settings.model_validate({"unheard_of": 1})
    if all(not field.is_required() for field in settings.model_fields.values()) and settings is not Context:
        made, name = settings(), next(iter(settings.model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(made, name, getattr(made, name))


NUMBERS = [
    (owner, name)
    for owner in ALL
    for name, field in owner.model_fields.items()
    if {a for a in (get_args(field.annotation) or (field.annotation,)) if a is not type(None)} in ({int}, {float})
]


@pytest.mark.parametrize(("owner", "name"), NUMBERS, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("value", [True, "5", "0.5"])
def test_a_number_is_neither_true_nor_a_text(owner: type[Settings], name: str, value: object) -> None:
    with pytest.raises(ValidationError) as error:
        owner.model_validate({name: value})
    assert (name,) in {detail["loc"] for detail in error.value.errors() if detail["type"] in ("int_type", "float_type")}


def test_numbers_with_limits_were_found() -> None:
    assert len(NUMBERS) > 40


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_setting(value: float) -> None:
    with pytest.raises(ValidationError):
        Execution(round_seconds=value)


@pytest.mark.parametrize("settings", ALL, ids=lambda c: c.__name__)
def test_keys_hold_every_field_but_cosmetic_ones(settings: type[Settings]) -> None:
    wanted = {name for name, field in settings.model_fields.items() if not is_cosmetic(field.json_schema_extra)}
    made = settings.model_construct(**dict.fromkeys(settings.model_fields))
    if settings is Context:
        wanted, made = {"template"}, Context()
    assert set(made.keyed()) == wanted


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Model(path="a"), Model(path="b", revision="main", trust_remote_code=True)),
        (MathVerifier(workers=1), MathVerifier(workers=7)),
        (Execution(), Execution(questions_per_task=1, retries=0, lease=1.0)),
        (TransformersEngine(), TransformersEngine(device="cpu", batch_tokens=64, rows=3)),
        (Context(kind="answer"), Context(kind="custom", name="mine", template=Context(kind="answer").text)),
        (
            Teacher(name="a", model=Model(path="x"), contexts=[Context(name="n")]),
            Teacher(name="b", model=Model(path="y"), contexts=[Context()]),
        ),
        (Questions(path="a"), Questions(path="b", id="n", answer="gold", limit=3)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_what_cannot_change_a_number_is_in_no_key(one: Settings, other: Settings) -> None:
    assert one != other and one.keyed() == other.keyed()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Model(path="a"), Model(path="a", dtype="bfloat16")),
        (MathVerifier(), MathVerifier(seconds=1.0)),
        (Context(kind="answer"), Context(kind="answer", template="{{ prompt }} {{ answer }}")),
        (Prompt(), Prompt(chat=False)),
        (TopK(k=2), TopK(k=2, of=JSD(beta=0.3))),
        (AdaptiveTree(), AdaptiveTree(target="tokens")),
    ],
    ids=lambda s: type(s).__name__,
)
def test_what_can_change_a_number_is_in_keys(one: Settings, other: Settings) -> None:
    assert one.keyed() != other.keyed()


def test_the_budget_of_an_adaptive_tree_is_no_part_of_its_rounds() -> None:
    small = AdaptiveTree(draws=512, tokens=10, seconds=1.0, half_width=0.5)
    large = AdaptiveTree(draws=8192)
    assert small.round_settings() == large.round_settings() and small.keyed() != large.keyed()
    assert small.round_settings() != AdaptiveTree(draws=512, round=128).round_settings()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 5000))
def test_an_adaptive_budget_is_spent_in_whole_rounds(head: int, nodes: int, extra: int) -> None:
    node = 2 * (head + 4)
    tree = AdaptiveTree(head=head, node_draws=node, round=node * nodes, draws=node * nodes + extra)
    assert tree.draws - tree.round <= tree.most_draws <= tree.draws


def test_a_context_without_the_students_own_text_is_refused() -> None:
    for context in ({"kind": "answer", "template": "{{ answer }}"}, {"kind": "custom", "name": "x", "template": "x"}):
        with pytest.raises(ValidationError, match=r"does not contain \{\{ prompt \}\}"):
            Context.model_validate(context)
    for context in ({"kind": "custom", "template": "{{ prompt }}"}, {"kind": "custom", "name": "x"}):
        with pytest.raises(ValidationError, match="a custom context needs a template and a name"):
            Context.model_validate(context)


def test_losses_are_named_by_what_differs_from_their_defaults() -> None:
    assert loss_name(JSD()) == "jsd" and loss_name(JSD(beta=0.9)) == "jsd(beta=0.9)"
    assert loss_name(TopK(k=5, of=JSD(beta=0.1))) == "top_k(of=jsd(beta=0.1), k=5)"


@given(
    st.integers(1, 1000),
    st.sampled_from(["student", "teacher", "union", "intersection"]),
    st.sampled_from(["dropped", "bucket", "renormalised", "teacher_renormalised", "zeroed"]),
    st.floats(0.01, 0.99),
    st.floats(0.1, 10),
)
def test_losses_that_differ_have_different_names(
    k: int, support: Any, rest: Any, beta: float, temperature: float
) -> None:
    one = TopK(k=k, support=support, rest=rest, of=JSD(beta=beta), teacher_temperature=temperature)
    other = TopK()
    assert (loss_name(one) == loss_name(other)) == (one == other)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jsd"])
def test_short_forms_are_the_long_ones(name: str, settings: dict[str, Any]) -> None:
    short, long = (RunConfig.model_validate({**settings, "losses": [loss]}) for loss in (name, {"kind": name}))
    assert short == long


def test_what_a_run_that_is_not_recorded_lacks_is_said(settings: dict[str, Any]) -> None:
    run = RunConfig.model_validate(settings)
    with pytest.raises(ValueError, match="the tree is forced, not recorded"):
        _ = run.recorded_tree
    bare = run.model_copy(update={"questions": None, "student": None})
    with pytest.raises(ValueError, match="no questions file"):
        _ = bare.asked
    with pytest.raises(ValueError, match="no student"):
        _ = bare.model


def test_a_run_survives_its_own_json(settings: dict[str, Any]) -> None:
    run = RunConfig.model_validate(settings)
    assert RunConfig.model_validate_json(run.model_dump_json()) == run
    assert RunConfig.model_validate(run.model_dump(mode="json")).keyed() == run.keyed()
