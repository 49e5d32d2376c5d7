"""What a log file shows of a run: what is done of how much, how fast, and what is left, while it works."""

import io
import re
import time

import pytest
from rich.console import Console

from flows.command.live import progress
from tasks.operations.progress import Amount, Step, publish


def test_a_log_file_says_every_so_often_how_far_the_work_is() -> None:
    out = io.StringIO()
    with progress(Console(file=out), pause=0.05):
        publish("rollouts", 0, 2)
        publish("completions", 0, 16)
        time.sleep(0.12)  # nothing is done yet: it says so all the same
        for _ in range(2):
            publish("completions", 8)
            publish("rollouts", 1)
        publish("trees", 0, 4)
        publish("trees", 1)
        time.sleep(0.12)
    lines = out.getvalue().splitlines()
    assert lines[0] == "rollouts: 0 of 2, 0 s" and lines[1] == "completions: 0 of 16, 0 s"
    waiting = lines[2 : lines.index(next(line for line in lines if "16 of 16" in line))]
    assert waiting and set(waiting) == {"completions: 0 of 16, 0 s"}  # of the last to begin
    assert any(re.fullmatch(r"rollouts: 2 of 2, 0 s, \S+/s", line) for line in lines)
    trees = [line for line in lines if line.startswith("trees: 1 of 4")]
    assert trees and all(re.fullmatch(r"trees: 1 of 4, 0 s, \S+/s, about \d+ s left", line) for line in trees)
    assert not any(line.startswith("rollouts") for line in lines[lines.index("trees: 0 of 4, 0 s") :])


def test_nothing_is_written_after_the_end() -> None:
    out = io.StringIO()
    with progress(Console(file=out), pause=0.01):
        publish("trees", 0, 4)
    ended = out.getvalue()
    time.sleep(0.05)
    publish("trees", 4)
    assert out.getvalue() == ended


@pytest.mark.parametrize(
    ("done", "over", "text"),
    [(0, False, "0 of 1,200, 10 s"), (300, False, "300 of 1,200, 10 s, 30/s, about 30 s left"), (300, True, "30/s")],
)
def test_amounts_in_words(done: int, over: bool, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    amount = Amount(1200, started=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: 10.0)
    amount.add(Step("trees", done, over=over))
    assert str(amount).endswith(text)


def test_tokens_are_told_as_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    amount = Amount(4, started=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: 10.0)
    amount.add(Step("draws", 1, tokens=10_000))
    amount.add(Step("draws", 1, tokens=2_345))
    assert str(amount) == "2 of 4, 10 s, 0.2/s, 1,234 tokens/s, about 10 s left"


def test_a_stage_that_ends_below_its_upper_bound_has_nothing_left() -> None:
    out = io.StringIO()
    with progress(Console(file=out)):
        for stage in ("cached", "draws"):
            publish(stage, 0, 4)
        publish("draws", 3, tokens=7)
        for stage in ("cached", "draws", "unknown"):
            publish(stage, over=True)
    assert [line.split(",")[0] for line in out.getvalue().splitlines()] == [
        "cached: 0 of 4",
        "draws: 0 of 4",
        "draws: 3 of 4",
    ]
    assert "left" not in out.getvalue()


def test_bars_show_tokens_and_end_where_the_work_does() -> None:
    out = io.StringIO()
    with progress(Console(file=out, force_terminal=True, width=200)):
        publish("draws", 0, 4)
        publish("draws", 3, tokens=70)
        time.sleep(0.01)
        publish("draws", over=True)
    assert "3/3" in out.getvalue() and "tokens/s" in out.getvalue()


def test_what_is_told_twice_counts_up_to_the_total() -> None:
    amount = Amount(10)
    amount.add(Step("trees", 8))
    amount.add(Step("trees", 8))
    assert amount.complete and amount.done == 10
