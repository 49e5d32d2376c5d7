"""`opdscope verify`: readings and verdicts of a run's rollouts, by the run's verifier and by others."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.command.configuration import checked
from flows.command.guarded import BAD_INPUT, OK
from flows.command.verify import sample_table, summary, verify_file
from flows.verify import attempts, samples, verifiers
from schemas.config import ChoiceVerifier, ExactVerifier, MathVerifier, NumericVerifier, RegexVerifier, YesNoVerifier
from schemas.config import Verifier as Settings
from tasks.run.session import start_session
from tasks.run.shells import run_stage
from tasks.store.store import Store
from tasks.verifiers.protocol import Attempt
from tasks.verifiers.verifier import Verifier
from tests.helpers.sessions import provided


@pytest.mark.parametrize(
    ("settings", "completion", "truncated", "reading"),
    [
        (NumericVerifier(), "3 then 1,234.5 in all", False, "1,234.5"),
        (NumericVerifier(), "3 then 12", True, None),
        (NumericVerifier(), "<think>3</think>none", False, None),
        (ExactVerifier(marker="answer:"), "answer: the  sea", False, " the  sea"),
        (ExactVerifier(marker="answer:"), "the sea", False, None),
        (ChoiceVerifier(), "A, no, (B).", False, "B"),
        (YesNoVerifier(), "Yes. No!", False, "No"),
        (RegexVerifier(), "<answer>4</answer><answer>5</answer>", False, "5"),
        (MathVerifier(workers=1), r"\boxed{1} so \boxed{\frac{1}{2}}", True, r"\frac{1}{2}"),
        (MathVerifier(workers=1), "so it is $x = 3$", False, "x = 3"),
        (MathVerifier(workers=1), "so it is 3", True, None),
    ],
)
def test_what_a_verifier_reads_is_what_it_judges(
    settings: Settings, completion: str, truncated: bool, reading: str | None
) -> None:
    verifier = Verifier(settings)
    try:
        assert verifier.read_all([Attempt(completion, "7", truncated)]) == [reading]
        if reading is None:
            assert verifier.check_all([Attempt(completion, "7", truncated)]) == [False]
    finally:
        verifier.close()


def test_disputed_rollouts_come_first() -> None:
    chosen: dict[str, Settings] = {
        "numeric": NumericVerifier(),
        "exact": ExactVerifier(),
        "math": MathVerifier(workers=1),
    }
    judged = samples(
        chosen, {"q[b]": [Attempt("7", "7", False), Attempt("so 7", "7", False), Attempt("\x1b[31m8", "7", True)]}
    )
    assert [sample.disputed for sample in judged] == [[], ["exact"], []]
    assert judged[1].readings["exact"] == ("so 7", False) and judged[2].readings["numeric"] == (None, False)
    table = sample_table(judged)
    assert [column.header for column in table.columns][4:] == ["numeric", "exact"]
    cells = [list(column.cells) for column in table.columns]
    assert cells[1] == ["1", "0", "2"] and cells[2][2] == r"\x1b[31m8 (cut)" and cells[0][0] == r"q\[b]"
    assert summary(judged) == [
        "numeric accepts 2 of 3 rollouts, and reads nothing in 1",
        "exact gives another verdict on 1",
        "math agrees on all",
    ]


def test_the_samples_are_the_runs_own_rollouts(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert verify_file(path, [], questions=2) == OK
    said = capsys.readouterr().out
    session = start_session(checked(settings))
    assert run_stage(session, "rollouts", session.keys.questions[:2]).cached == 2
    assert not Store(settings["store"]).has("rollouts", session.keys.key("rollouts", session.keys.questions[2]))
    right, total = 0, 0
    for question in session.keys.questions[:2]:
        arrays = session.store.need("rollouts", session.keys.key("rollouts", question)).arrays
        right, total = right + int(arrays["correct"].sum()), total + len(arrays["correct"])
        texts = attempts(provided(session).tokenizer, "1", arrays)
        assert len(texts) == len(arrays["correct"])
    assert f"{session.config.verifier.kind} accepts {right} of {total} rollouts" in said
    path.write_text(yaml.safe_dump({**settings, "verifier": {"kind": "math", "seconds": -1}}))
    assert verify_file(path, [], questions=2) == BAD_INPUT


def test_others_that_cannot_judge_the_answers_are_left_out(settings: dict[str, Any]) -> None:
    config = checked({**settings, "verifier": {"kind": "exact", "marker": "so"}})
    assert list(verifiers(config, ["yes", "no"])) == ["exact", "math", "yes_no"]
    found = verifiers(config, ["A"])
    assert "choice" in found and found["choice"] == ChoiceVerifier(marker="so")
    assert json.dumps(sorted(verifiers(config, ["7"]))) == '["exact", "math", "numeric"]'
