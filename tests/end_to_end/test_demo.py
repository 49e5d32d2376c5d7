"""The demo's task and its models' cache; training itself is seen in the demo that the test command runs."""

import random
from pathlib import Path
from typing import Any

import pytest

from schemas.config import DemoConfig
from tasks.demo.chains import VOCABULARY, Chain, draw_questions
from tasks.demo.models import MANIFEST, _digest, is_complete, make_models, models_key, models_of
from tasks.demo.train import make_tokenizer, recipes


def test_a_chain_and_its_solution() -> None:
    chain = Chain(3, (("+", 4), ("*", 7), ("-", 2)))
    assert chain.question == "start 3 add 4 times 7 minus 2"
    assert chain.solution() == "3 + 4 = 7 , 7 * 7 = 9 , 9 - 2 = 7 ; answer 7"
    assert chain.values == [7, 9, 7]


def test_wrong_attempts_fail_at_different_tokens_and_for_different_reasons() -> None:
    chain = Chain(3, (("+", 4), ("*", 7), ("-", 2), ("+", 9)))
    rng = random.Random(0)
    attempts = {chain.wrong_attempt(rng) for _ in range(200)}
    right = chain.solution().split()
    first_wrong = {next(i for i, (a, b) in enumerate(zip(t.split(), right, strict=False)) if a != b) for t in attempts}
    assert all(t.split()[-1] != str(chain.answer) for t in attempts)
    assert len(first_wrong) >= 6
    assert any(len(t.split()) < len(right) for t in attempts)  # a step left out


def test_questions_are_distinct_and_in_the_vocabulary() -> None:
    rows = draw_questions(50, 3)
    assert len({r["question"] for r in rows}) == len({r["id"] for r in rows}) == 50
    assert rows == draw_questions(50, 3) != draw_questions(50, 4)
    words = {w for r in rows for name, text in r.items() if name != "id" for w in text.split()}
    assert words <= set(VOCABULARY)
    tokenizer = make_tokenizer()
    assert tokenizer.decode(tokenizer(rows[0]["solution"])["input_ids"]) == rows[0]["solution"]


def test_models_that_do_not_verify_are_not_there(tmp_path: Path) -> None:
    assert not is_complete(tmp_path)
    (tmp_path / "weights").write_text("1")
    (tmp_path / MANIFEST).write_text(f'{{"files": {{"weights": "{_digest(tmp_path / "weights")}"}}}}')
    assert is_complete(tmp_path)
    (tmp_path / "weights").write_text("2")
    assert not is_complete(tmp_path)


def test_models_are_keyed_by_what_makes_them() -> None:
    def keys(**size: Any) -> list[str]:
        return [models_key(wanted) for wanted in models_of(DemoConfig(**size))]

    assert keys() == keys(seconds=5) == keys(questions=9) != keys(seed=1)
    assert keys() == keys(validate_forecast=True)[:1]


def test_training_that_does_not_learn_in_time_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="did not learn in 2 s"):
        make_models(recipes(0, 2, 64), tmp_path / "models" / "key")
    assert list((tmp_path / "models").iterdir()) == []
