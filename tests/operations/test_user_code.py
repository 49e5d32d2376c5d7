"""Code that a configuration names: allowed or not, found or not, and part of keys."""

from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.config import PythonLoss, PythonVerifier, ReverseKL, RunConfig
from tasks.inputs.errors import InputError
from tasks.operations.user_code import ALLOW_CODE, check_code, code_fingerprint, keyed_with_code, user_function
from tasks.stages.distillation.losses import distillation_direction
from tasks.stages.distillation.user import check_user_losses
from tasks.verifiers.protocol import Attempt
from tasks.verifiers.verifier import Verifier, find_bad_answer, fingerprint
from tests.helpers import judges, users

HERE, JUDGES = users.__name__, judges.__name__


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_CODE, "1")


def config(**fields: Any) -> RunConfig:
    least = {"questions": {"path": "q.jsonl"}, "student": {"path": "m"}, "teachers": [{"kind": "model", "name": "t"}]}
    return RunConfig.model_validate({**least, **fields})


@pytest.mark.parametrize("value", [None, "0", "yes", ""])
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"verifier": {"kind": "python", "function": f"{JUDGES}:last_word"}}, "verifier.function"),
        (
            {"losses": [{"kind": "reverse_kl"}, {"kind": "python", "function": f"{HERE}:reverse_kl"}]},
            r"losses\[1\].fun",
        ),
        ({"student": {"path": "m", "trust_remote_code": True}}, "student.trust_remote_code"),
        (
            {"teachers": [{"kind": "model", "name": "t", "model": {"path": "n", "trust_remote_code": True}}]},
            r"teachers\[0\].model.trust_remote_code",
        ),
    ],
)
def test_no_code_runs_where_the_process_does_not_allow_it(
    monkeypatch: pytest.MonkeyPatch, value: str | None, fields: dict[str, Any], field: str
) -> None:
    if value is None:
        monkeypatch.delenv(ALLOW_CODE, raising=False)
    else:
        monkeypatch.setenv(ALLOW_CODE, value)
    with pytest.raises(InputError, match=rf"{field}.*OPDSCOPE_ALLOW_CODE=1"):
        check_code(config(**fields))
    monkeypatch.setenv(ALLOW_CODE, "1")
    check_code(config(**fields))


@pytest.mark.usefixtures("allowed")
def test_a_function_that_is_not_there_is_refused() -> None:
    for place, why in (
        ("nowhere_at_all:f", "No module named"),
        (f"{HERE}:absent", "no attribute 'absent'"),
        (f"{HERE}:NOTHING", "is of type int, not a function"),
    ):
        with pytest.raises(InputError, match=why):
            user_function("verifier.function", place)


@pytest.mark.parametrize("place", ["os", "os:", ":f", "a b:c", "os.path:join()", "../x:f", "x:y.z"])
def test_a_place_is_module_and_function(place: str) -> None:
    with pytest.raises(ValueError, match="function"):
        PythonVerifier(function=place)


@pytest.mark.usefixtures("allowed")
def test_modules_of_the_current_folder_are_found_and_their_code_is_in_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_losses.py").write_text("def f(log_p, log_t): return (log_p - log_t).square().sum(-1)\n")
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("def f(completion, answer): return True\n")
    monkeypatch.chdir(tmp_path)
    assert user_function("losses", "my_losses:f").__name__ == "f"
    loss, verifier = PythonLoss(function="my_losses:f"), PythonVerifier(function="my_package.inner:f")
    before = keyed_with_code(loss), fingerprint(verifier)
    assert before[0]["code"] == code_fingerprint("my_losses:f")
    (tmp_path / "my_losses.py").write_text(
        "def f(log_p, log_t):\n    return (log_p.exp() * (log_p - log_t)).sum(-1) * 2\n"
    )
    (package / "other.py").write_text("x = 1\n")  # which inner.py may import
    code_fingerprint.cache_clear()
    (tmp_path / "constants.py").write_text("K = 1\n")
    (tmp_path / "with_help.py").write_text("from constants import K\ndef f(completion, answer): return True\n")
    helped = code_fingerprint("with_help:f")
    (tmp_path / "constants.py").write_text("K = 2\n")
    code_fingerprint.cache_clear()
    assert code_fingerprint("with_help:f") != helped
    assert keyed_with_code(loss) != before[0] and fingerprint(verifier) != before[1]
    assert keyed_with_code(ReverseKL()) == ReverseKL().keyed()


@pytest.mark.usefixtures("allowed")
def test_a_users_loss_is_differentiated() -> None:
    log_p, log_t = torch.log_softmax(torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(0)), -1)
    with torch.inference_mode():
        mine = distillation_direction(PythonLoss(function=f"{HERE}:reverse_kl"), log_p, log_t)
    torch.testing.assert_close(mine, distillation_direction(ReverseKL(), log_p, log_t), rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("allowed")
def test_a_teacher_that_equals_the_student_has_no_direction_by_a_users_loss_either() -> None:
    log_p = torch.log_softmax(torch.randn(50, 3000, generator=torch.Generator().manual_seed(0)), -1)
    assert not bool(distillation_direction(PythonLoss(function=f"{HERE}:reverse_kl"), log_p, log_p).any())
    assert bool(distillation_direction(PythonLoss(function=f"{HERE}:entropy"), log_p, log_p).any())


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("summed", r"shape \[\]"),
        ("constant", "does not depend"),
        ("infinite", "not finite"),
        ("failing", "KeyError"),
        ("unsure", "gives a str"),
        ("leaving", "SystemExit"),
        ("unbounded", "a loss is not finite"),
        ("few", "vocabulary"),
        ("together", "depends on the other rows"),
    ],
)
def test_a_users_loss_is_tried_before_anything_costly(name: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        check_user_losses(config(losses=[{"kind": "python", "function": f"{HERE}:{name}"}]), 9)
    check_user_losses(config(losses=[{"kind": "python", "function": f"{HERE}:reverse_kl"}]), 9)


@pytest.mark.usefixtures("allowed")
def test_a_users_verifier_judges_in_a_process_with_a_time_limit() -> None:
    verifier = Verifier(PythonVerifier(function=f"{JUDGES}:last_word", seconds=2, workers=1))
    try:
        said = ["it is 7", "hang", "", "<think>7</think> 8", "so 7"]
        verdicts = verifier.check_all([Attempt(text, "7", False) for text in said])
    finally:
        verifier.close()
    assert verdicts == [True, False, False, False, True]
    for name, why in (
        ("failing", "a mistake"),
        ("unsure", "'perhaps'"),
        ("leaving", "SystemExit"),
        ("many", "gives"),
        ("sleeping", "not judged within 2 s"),
        ("dying", "not judged within 2 s"),
    ):
        settings = PythonVerifier(function=f"{JUDGES}:{name}", workers=1, seconds=2)
        if why.startswith("not judged"):
            assert find_bad_answer(settings, ["7"]) == (0, "is not judged within 2 s (verifier.seconds)")
            continue
        with pytest.raises(InputError, match=why):
            find_bad_answer(settings, ["7"])
