"""Configuration: every field is in the keys or listed as cosmetic; errors are one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flows.command.configuration import ConfigurationError, checked, merged, parse_overrides
from schemas import config as schema
from schemas.config import RecordedTeacher, RunConfig, Settings, is_cosmetic, settings_in
from schemas.pipeline import diagnosis_stages
from tasks.engines.vllm.served import Served
from tasks.operations.user_code import ALLOW_CODE
from tasks.run.session import start_session
from tasks.statistics.streams import stream_seed

_SCORING: dict[str, Any] = {"device": "cpu", "batch_tokens": 1000, "score_rows": 3, "threads": 1}
ENGINES: dict[str, dict[str, Any]] = {
    "auto": dict(_SCORING),
    "transformers": {**_SCORING, "memory": 0.5, "rows": 7},
    "vllm": {
        **_SCORING,
        "memory_fraction": 0.5,
        "cache": 2.0,
        "max_num_seqs": 8,
        "tensor_parallel": 2,
        "context_length": 512,
        "eager": True,
    },
    "vllm-server": {
        **_SCORING,
        "urls": ["http://127.0.0.1:8001"],
        "model": "student",
        "concurrency": 3,
        "patience": 1.0,
        "timeout": 5.0,
        "api_key_variable": "KEY",
    },
}
"""Which engine it is, and of which version, is in the keys; none of its settings is."""

LOSSES: list[dict[str, Any]] = [
    {"kind": "reverse_kl"},
    {"kind": "forward_kl"},
    {"kind": "jsd", "beta": 0.4},
    {"kind": "mixed_kl", "weight": 0.4},
    {"kind": "skew_kl", "alpha": 0.2},
    {"kind": "skew_reverse_kl", "alpha": 0.2},
    {"kind": "total_variation"},
    {"kind": "alpha_divergence", "alpha": 0.3},
    {"kind": "sampled_token", "of": "forward_kl"},
    {"kind": "python", "function": "tests.helpers.users:reverse_kl"},
    {"kind": "top_k", "k": 5},
    {"kind": "minillm"},
    {"kind": "dr_grpo"},
    {"kind": "grpo"},
]

COSMETIC = {
    "name",
    "store",
    "task.name",
    "task.folder",
    "questions.path",
    "questions.id",
    "questions.layout",
    "questions.answer",
    "questions.limit",
    "questions.without_signal",
    "student.path",
    "student.revision",
    "student.trust_remote_code",
    *(f"teachers.server.{name}" for name in ("url", "concurrency", "timeout", "api_key_variable")),
    "rollouts.table.path",
    "rollouts.table.format",
    "rollouts.table.reward",
    "verifier.math.workers",
    "verifier.python.workers",
    "teachers.name",
    "teachers.contexts.name",
    "teachers.recorded.name",
    "teachers.recorded.path",
    "tree.recorded.path",
    *(f"losses.{loss['kind']}.name" for loss in LOSSES),
    *(f"engine.{kind}.{name}" for kind, changes in ENGINES.items() for name in changes),
    "execution.questions_in_flight",
    "execution.questions_per_task",
    "execution.round_draws",
    "execution.round_seconds",
    "execution.retries",
    "execution.retry_seconds",
    "execution.lease",
    "execution.task_runner",
    "execution.ray_address",
    "execution.ray_cpus",
    "execution.num_gpus",
    "execution.gpu_limit",
    "execution.storage_block",
}
"""Every field that cannot change a number. Of paths and columns the content counts, not the name."""

SERVER = {f"teachers.server.{n}" for n in ("url", "model", "top", "concurrency", "timeout", "api_key_variable")}
"""Fields of teachers on servers, whose keys `tests.engines.test_served_teacher` looks at."""

TABLE = {f"rollouts.table.{name}" for name in ("path", "format", "reward", "correct_from")}
"""Fields of rollouts from a table, whose keys `tests.inputs.test_rollouts` looks at."""

RECORDED = {"tree.recorded.path", "tree.recorded.tail_limit", "teachers.recorded.name", "teachers.recorded.path"}
"""Fields of recorded runs, whose keys `test_recorded` looks at."""

USING = {
    "right_attempt": "{{ prompt }} {{ right_attempt }}",
    "demonstrations": "{% for d in demonstrations %}{{ d.question }}{% endfor %}{{ prompt }}",
    "rationale": "{{ prompt }} solution {{ rationale }}",
}
"""Templates in which a setting of contexts is used."""

CHANGES: dict[str, Any] = {
    "name": "other",
    "store": "{tmp}/elsewhere",
    "seed": 1,
    "task.name": "gsm8k",
    "task.folder": "{tmp}/elsewhere",
    "questions.layout": "plain",
    "questions.path": "{copy}",
    "questions.id": "number",
    "questions.answer": "result",
    "questions.limit": 2,
    "questions.without_signal": "leave_out",
    "student.path": "{moved}",
    "student.revision": "main",
    "student.dtype": "bfloat16",
    "student.trust_remote_code": True,
    "prompt.template": "{{ question }} ;",
    "prompt.system": "answer",
    "prompt.chat": False,
    "prompt.chat_template_kwargs": {"enable_thinking": False},
    "verifier.exact.marker": "answer",
    "verifier.exact.ignore_case": True,
    "verifier.numeric.marker": "answer",
    "verifier.numeric.tolerance": 0.5,
    "verifier.yes_no.marker": "answer",
    "verifier.regex.pattern": "[0-9]",
    "verifier.regex.ignore_case": True,
    "verifier.choice.marker": "answer",
    "verifier.choice.ignore_case": True,
    "verifier.choice.labels": [str(i) for i in range(9, -1, -1)],
    "verifier.math.seconds": 1.0,
    "verifier.math.workers": 1,
    "verifier.python.function": "tests.helpers.judges:always",
    "verifier.python.seconds": 1.0,
    "verifier.python.workers": 1,
    "sampling.rollouts": 5,
    "sampling.max_tokens": 25,
    "sampling.stop": ["1"],
    "sampling.temperature": 0.9,
    "tree.forced.nodes": 7,
    "tree.forced.node_choice": "uniform",
    "tree.forced.head": 2,
    "tree.forced.tail": 3,
    "tree.forced.tail_limit": 0.1,
    "tree.forced.draws": 13,
    "tree.forced.allocation": "equal",
    "tree.adaptive.head": 2,
    "tree.adaptive.tail": 3,
    "tree.adaptive.tail_limit": 0.1,
    "tree.adaptive.allocation": "equal",
    "tree.adaptive.target": "tokens",
    "tree.adaptive.draws": 1024,
    "tree.adaptive.tokens": 1000,
    "tree.adaptive.seconds": 10.0,
    "tree.adaptive.half_width": 0.1,
    "tree.adaptive.node_draws": 32,
    "tree.adaptive.round": 512,
    "tree.windows.draws": 100,
    "tree.windows.min_visits": 40,
    "tree.windows.tail_limit": 0.1,
    "teachers.name": "bigger",
    "teachers.chat_template": "own",
    "teachers.contexts.name": "hint",
    "teachers.contexts.chat_template_kwargs": {"enable_thinking": True},
    "teachers.contexts.system": "{{ answer }}",
    "teachers.contexts.otherwise": "{{ prompt }} no {{ answer }}",
    "teachers.contexts.demonstrations": 3,
    "teachers.contexts.generate.by": "student",
    "teachers.contexts.generate.template": "{{ prompt }} {{ answer }}",
    "teachers.contexts.generate.max_tokens": 7,
    "teachers.contexts.generate.temperature": 0.5,
    "teachers.contexts.generate.tries": 2,
    "teachers.contexts.generate.shortest": 0,
    "teachers.contexts.generate.answer": "absent",
    "teachers.contexts.generate.same_script": False,
    "teachers.contexts.generate.success_draws": 3,
    "success.rollouts": 3,
    "update.dimensions": 64,
    "success.parts": [0.5],
    "success.continuations": 2,
    "teachers.contexts.template": "{{ prompt }} solution {{ answer }}",
    **{f"losses.{loss['kind']}.name": "mine" for loss in LOSSES},
    **{f"losses.{loss['kind']}.teacher_temperature": 0.5 for loss in LOSSES[:-3]},
    "losses.minillm.length_normalised": True,
    "losses.jsd.beta": 0.6,
    "losses.mixed_kl.weight": 0.6,
    "losses.skew_kl.alpha": 0.7,
    "losses.skew_reverse_kl.alpha": 0.7,
    "losses.alpha_divergence.alpha": 0.7,
    "losses.top_k.of": {"kind": "jsd"},
    "losses.sampled_token.of": {"kind": "jsd"},
    "losses.sampled_token.clip": 9.0,
    "losses.python.function": "tests.helpers.users:forward_kl",
    "losses.top_k.k": 6,
    "losses.top_k.support": "union",
    "losses.top_k.rest": "renormalised",
    "losses.top_k.clip": 0.5,
    "losses.top_k.floor": True,
    "losses.top_k.stop_gradient": True,
    "scores.level": 0.9,
    "scores.forecast_level": 0.8,
    "scores.posterior": 101,
    "scores.bootstrap": 201,
    "scores.groupings.by": "position",
    "scores.groupings.bins": 3,
    "ranking.segments": 4,
    "ranking.draws": 2,
    **{f"engine.{kind}.{name}": change for kind, changes in ENGINES.items() for name, change in changes.items()},
    "execution.questions_in_flight": 1,
    "execution.questions_per_task": 1,
    "execution.round_draws": 10,
    "execution.round_seconds": 0.0,
    "execution.retries": 0,
    "execution.retry_seconds": 1.0,
    "execution.lease": 5.0,
    "execution.task_runner": "ray",
    "execution.ray_address": "auto",
    "execution.ray_cpus": 2,
    "execution.num_gpus": 0.5,
    "execution.gpu_limit": "gpus",
    "execution.storage_block": "store",
}


def fields(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every field by dotted name; members of a union stand under their kind."""
    out: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name == "kind" and field.default is not None and "none" not in str(field.annotation):
            continue  # the member of a union, walked below
        inner = settings_in(field.annotation)
        place = f"{prefix}{name}"
        if not inner or place in ("teachers.model", "losses.top_k.of", "losses.sampled_token.of"):
            out[place] = field
        for m in inner:
            if place in ("teachers.model", "losses.top_k.of", "losses.sampled_token.of"):
                continue  # the same class as `student`, and losses that are walked by themselves
            several = len(inner) > 1 and place != "teachers"
            kind = f".{m.model_fields['kind'].default}" if several or m is RecordedTeacher else ""
            out |= fields(m, f"{place}{kind}.")
    return out


Keys = tuple[set[tuple[str, str]], str]
"""Of a run's artefacts; and of everything that it refers to, its tables included."""


def keys_of(settings: dict[str, Any]) -> Keys:
    job = start_session(checked(settings))
    artefacts = {pair for question in job.keys.questions for pair in job.keys.artefacts(question)}
    every = job.keys.references([*diagnosis_stages(), "values", "ranking", "updates"])
    return artefacts, json.dumps([every, job.keys.aggregate(job.keys.questions)])


def artefact_keys(settings: dict[str, Any]) -> set[tuple[str, str]]:
    return keys_of(settings)[0]


@pytest.fixture
def base(
    settings: dict[str, Any], questions: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    monkeypatch.setenv(ALLOW_CODE, "1")
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rich = tmp_path / "rich.jsonl"
    columns = [{**r, "number": r["id"], "result": r["answer"], "odd": "yes"} for r in rows[:3]]
    rich.write_text("".join(json.dumps(row) + "\n" for row in columns))
    (tmp_path / "copy.jsonl").write_text(rich.read_text())
    student = Path(shutil.copytree(models / "student", tmp_path / "student"))
    (student / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}<assistant>")
    (tmp_path / "moved").symlink_to(student)
    return merged(settings, {"questions": {"path": str(rich)}, "student": {"path": str(student)}, "losses": LOSSES})


@pytest.fixture
def engines_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of runs on engines that are not installed here."""
    served = Served("http://127.0.0.1:8000", "student", 4096, "0.32.0")
    monkeypatch.setattr("tasks.engines.vllm.offline.find_spec", lambda name: name)
    monkeypatch.setattr("tasks.engines.vllm.offline.installed_version", lambda *names: "0.32.0")
    monkeypatch.setattr("tasks.engines.vllm.server.look_up", lambda settings: [served])
    monkeypatch.setattr("tasks.run.session.use_block", lambda name: None)


@pytest.mark.usefixtures("engines_at_hand")
def test_each_engine_has_keys_of_its_own(base: dict[str, Any]) -> None:
    server = {"kind": "vllm-server", "urls": ["http://127.0.0.1:8000"]}
    keys = [artefact_keys({**base, "engine": engine}) for engine in ({}, {"kind": "vllm"}, server)]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert keys[0] == artefact_keys(base)


@pytest.mark.usefixtures("engines_at_hand")
def test_every_field_changes_the_keys_or_is_listed_as_cosmetic(base: dict[str, Any], tmp_path: Path) -> None:
    of_trainings = "validation."  # their keys are tested with them
    walked = {name: field for name, field in fields(RunConfig).items() if not name.startswith(of_trainings)}
    known = (
        set(CHANGES) | {"teachers.model", "teachers.contexts.kind", "teachers.tokenizer"} | RECORDED | TABLE | SERVER
    )
    assert set(walked) - known == set(), "new fields: say here how a change of each shows"
    assert {name for name, field in walked.items() if is_cosmetic(field.json_schema_extra)} == COSMETIC

    asked: dict[str, Keys] = {}

    def keys(settings: dict[str, Any]) -> Keys:
        place = json.dumps(settings, sort_keys=True)
        if place not in asked:
            asked[place] = keys_of(settings)
        return asked[place]

    places = {"{tmp}": str(tmp_path), "{copy}": str(tmp_path / "copy.jsonl"), "{moved}": str(tmp_path / "moved")}
    for name, change in CHANGES.items():
        value = change
        if isinstance(change, str):
            for place, path in places.items():
                value = value.replace(place, path)
        parts = name.split(".")
        plain = base if parts[0] == "losses" else {**base, "losses": LOSSES[:2]}
        start = plain
        if parts[0] == "verifier":
            kind = parts.pop(1)
            choice: dict[str, Any] = {"labels": [str(i) for i in range(10)]} if kind == "choice" else {}
            start = {**plain, "verifier": {"kind": kind, **choice}}
            if kind == "python":
                start["verifier"]["function"] = "tests.helpers.judges:last_word"
            if kind == "yes_no":
                start = merged(start, {"questions": {"answer": "odd"}})
        elif parts[0] == "task":  # beside which everything that it sets is set
            start = {**checked(plain).model_dump(mode="json"), "task": {"name": "boolq"}}
        elif parts[0] == "tree":
            kind = parts.pop(1)
            start = plain if kind == "forced" else {**plain, "tree": {"kind": kind}, "losses": LOSSES[:1]}
        elif parts[0] == "engine":
            kind = parts.pop(1)
            start = {
                **plain,
                "engine": {"kind": kind, "urls": ["http://127.0.0.1:8000"]} if "server" in kind else {"kind": kind},
            }
        elif parts[0] == "losses":
            parts[1] = str([loss["kind"] for loss in LOSSES].index(parts[1]))
        elif parts[:2] == ["teachers", "contexts"]:
            of_kind = {"otherwise": "right_attempt", "demonstrations": "demonstrations", "generate": "rationale"}
            used = of_kind.get(parts[2])
            if used is not None:
                writing = {"template": "{{ prompt }} {{ solution }}", "max_tokens": 12}
                written = {"generate": writing} if used == "rationale" else {}
                using = {"kind": used, "template": USING[used], **written}
                start = merged(plain, {"teachers": {"1": {"contexts": {"1": using}}}})
            parts = ["teachers", "1", "contexts", "1", *parts[2:]]
        elif parts[0] == "teachers":
            parts.insert(1, "0")
        elif parts[0] == "success":
            start = merged(plain, {"success": {"rollouts": 2}})
        elif parts[:2] == ["scores", "groupings"]:
            start = merged(plain, {"scores": {"groupings": [{"by": "entropy"}]}})
            parts.insert(2, "0")
        override: Any = value
        for part in reversed(parts):
            override = {part: override}
        changed = merged(start, override)
        same = keys(start)[0] == keys(changed)[0]
        if name == "questions.limit":
            # single nodes are read with a prior of all questions; the rest is each question's own
            fewer, more = ({k for k in keys(c)[0] if k[0] not in ("prior", "alignment")} for c in (changed, start))
            assert fewer < more
        elif name in COSMETIC:
            assert same, f"{name} is listed as cosmetic and changes the keys"
        else:
            assert keys(start)[1] != keys(changed)[1], f"{name} changes no key and is not listed as cosmetic"


def test_random_streams_are_what_they_were() -> None:
    assert stream_seed(0, "chain-001", "draw", 1, 2, 3, 4) == 10646623134652063195
    assert stream_seed(7, "é 1/2", "nodes") == 3398526765666629799


def test_a_change_reaches_only_what_depends_on_it(base: dict[str, Any]) -> None:
    def stages_changed(override: dict[str, Any]) -> set[str]:
        return {stage for stage, _ in artefact_keys(base) ^ artefact_keys(merged(base, override))}

    assert stages_changed({"losses": {"2": {"beta": 0.7}}}) == {"distillation", "alignment"}
    assert stages_changed({"teachers": {"1": {"contexts": ["solution"]}}}) == {"distillation", "alignment"}
    assert stages_changed({"scores": {"posterior": 300}}) == {"alignment"}
    assert stages_changed({"scores": {"groupings": []}}) == set()
    assert stages_changed({"tree": {"draws": 14}}) == {"trees", "ideal", "prior", "distillation", "alignment"}
    assert stages_changed({"sampling": {"temperature": 0.5}}) == {
        "rollouts",
        "trees",
        "ideal",
        "prior",
        "distillation",
        "alignment",
    }


def test_no_teacher_is_in_a_trees_key(base: dict[str, Any]) -> None:
    alone = merged(base, {"teachers": [{"name": "one"}], "losses": ["total_variation"]})
    of = {pair for pair in artefact_keys(base) if pair[0] in ("rollouts", "trees", "ideal")}
    assert of <= artefact_keys(alone)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ({"tre": {}}, "tre: unknown field, given {}; did you mean tree?"),
        ({"teachers": {"0": {"nam": 3}}}, "teachers.0.nam: unknown field, given 3; did you mean name?"),
        (
            {"teachers": {"0": {"model": {"pat": 3}}}},
            "teachers.0.model.pat: unknown field, given 3; did you mean path?",
        ),
        ({"tree": {"drawz": 3}}, "tree.drawz: unknown field, given 3; did you mean draws?"),
        ({"verifier": {"kind": "numeric", "tolerence": 1}}, "did you mean tolerance?"),
        ({"seed": "soon"}, "seed: input should be a valid integer"),
        ({"sampling": {"rollouts": 0}}, "sampling.rollouts: input should be greater than or equal to 1, given 0"),
        (
            {"tree": {"draws": 9}},
            "tree.draws: 9 is too small for two draws per branch: head 3 and tail 2 need at least 10",
        ),
        ({"verifier": {"kind": "vibes"}}, "verifier: kind 'vibes' is not known; known are"),
        ({"teachers": []}, "teachers: list should have at least 1 item"),
        ({"losses": ["jsd", "jsd"]}, "losses: 'jsd' appears twice"),
        ({"teachers": {"1": {"contexts": ["none", "none"]}}}, "'none' appears twice"),
        ({"teachers": {"1": {"contexts": {"1": {"template": "{{ answer }}"}}}}}, "does not contain {{ prompt }}"),
        (
            {"prompt": {"template": "{question}"}},
            "prompt.template: '{question}' has no column in it; write {{ question }} for one",
        ),
        ({"name": "../up"}, "name: string should match pattern"),
    ],
)
def test_errors_name_field_and_value_in_one_line(settings: dict[str, Any], override: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        checked(merged(settings, override))
    assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_overrides() -> None:
    assert parse_overrides(["tree.draws=128", "teachers.0.name=big", "prompt.system=null", "name=a=b"]) == {
        "tree": {"draws": 128},
        "teachers": {"0": {"name": "big"}},
        "prompt": {"system": None},
        "name": "a=b",
    }
    for bad in ("tree", "=3", "a..b=3"):
        with pytest.raises(ConfigurationError, match="--set"):
            parse_overrides([bad])
    with pytest.raises(ConfigurationError, match="which is already set as a whole"):
        parse_overrides(["a=1", "a.b=2"])


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        (
            "teachers.2.name=x",
            "--set: teachers has 2 entries, from 0 to 1, but no entry 2; give the whole list to add one",
        ),
        ("teachers.999999.name=x", "--set: teachers has 2 entries, from 0 to 1, but no entry 999999"),
        (f"teachers.{'9' * 5000}.name=x", "--set: teachers has 2 entries"),
        ("teachers.00.name=x", "--set: teachers has 2 entries, from 0 to 1, but no entry 00"),
        ("teachers.1.contexts.2.kind=answer", "--set: teachers.1.contexts has 2 entries, from 0 to 1, but no entry 2"),
        ("teachers={}", "teachers: input should be a valid list, given {}"),
        ("teachers.name=x", "teachers: input should be a valid list, given {'name': 'x'}"),
        ("losses={}", "losses: input should be a valid list, given {}"),
    ],
)
def test_overrides_change_no_list_in_silence(settings: dict[str, Any], assignment: str, line: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        checked(merged(settings, parse_overrides([assignment])))
    assert line in str(error.value) and len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 400


def test_settings_of_another_kind_replace_what_stands_there() -> None:
    base = {"verifier": {"kind": "numeric", "marker": "answer"}, "tree": {"nodes": 3}}
    assert merged(base, parse_overrides(["verifier.kind=math"]))["verifier"] == {"kind": "math"}
    assert merged(base, parse_overrides(["verifier.kind=numeric"]))["verifier"] == base["verifier"]
    assert merged(base, parse_overrides(["tree.kind=forced"]))["tree"] == {"nodes": 3, "kind": "forced"}


def test_defaults_are_documented() -> None:
    for member in vars(schema).values():
        if isinstance(member, type) and issubclass(member, Settings):
            assert member.__doc__, member


def test_a_field_that_is_wrong_by_itself_is_named_once(base: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"^store: the URL contains a password"):
        checked({**base, "store": "s3://me:word@bucket/x"})
