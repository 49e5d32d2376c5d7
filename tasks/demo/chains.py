"""A checkable reasoning task: apply three to six operations to a digit, keeping the last digit.

    question  start 3 add 4 times 7 minus 2
    solution  3 + 4 = 7 , 7 * 7 = 9 , 9 - 2 = 7 ; answer 7

A slip makes an attempt wrong: a misread operand, a skipped step, a wrong result. Later steps continue correctly from
there, so wrong attempts fail at different tokens and for different reasons.
"""

import random
from dataclasses import dataclass

WORDS = {"+": "add", "*": "times", "-": "minus"}
DIGITS = [str(d) for d in range(10)]
SPECIAL = ["<pad>", "<eos>", "<user>", "<assistant>"]
VOCABULARY = [
    *SPECIAL,
    "start",
    *WORDS.values(),
    "answer",
    "solution",
    "summary",
    "wrong",
    *"=+*-,;",
    *DIGITS,
]

CONTEXTS = {
    "answer": "{{ prompt }} answer {{ answer }}",
    "solution": "{{ prompt }} solution {{ solution }}",
    "summary": "{{ prompt }} summary {{ summary }}",
    "wrong_attempt": "{{ prompt }} wrong {{ wrong_attempt }}",
}

_SLIP_BY_OPERATION = {"+": 0.6, "-": 1.0, "*": 1.8}


@dataclass(frozen=True)
class Chain:
    """One question: a first digit and the operations."""

    first: int
    operations: tuple[tuple[str, int], ...]

    @property
    def question(self) -> str:
        return f"start {self.first} " + " ".join(f"{WORDS[op]} {n}" for op, n in self.operations)

    @property
    def values(self) -> list[int]:
        """The digit after each operation."""
        values, value = [], self.first
        for op, n in self.operations:
            value = apply(value, op, n)
            values.append(value)
        return values

    @property
    def answer(self) -> int:
        return self.values[-1]

    def solution(self) -> str:
        return self.attempt(random.Random(0), slip=0.0)  # noqa: S311 - not for security

    def attempt(self, rng: random.Random, slip: float) -> str:
        """A worked solution in which a step goes wrong with probability `slip`, scaled by operation difficulty."""
        value, steps = self.first, []
        for i, (op, operand) in enumerate(self.operations):
            n = operand
            rate, u = slip * _SLIP_BY_OPERATION[op], rng.random()
            if u < 0.3 * rate:
                n = rng.randrange(2, 10)
            elif u < 0.4 * rate and i > 0:
                continue
            result = apply(value, op, n)
            if 0.4 * rate <= u < rate:
                result = (result + rng.choice([1, 2, 5, 9])) % 10
            steps.append(f"{value} {op} {n} = {result}")
            value = result
        return " , ".join(steps) + f" ; answer {value}"

    def wrong_attempt(self, rng: random.Random) -> str:
        """An attempt whose answer is wrong."""
        while True:
            attempt = self.attempt(rng, slip=0.4)
            if attempt.split()[-1] != str(self.answer):
                return attempt

    def row(self, rng: random.Random) -> dict[str, str]:
        """The chain as a row of a questions file, with all columns that contexts need."""
        return {
            "question": self.question,
            "answer": str(self.answer),
            "solution": self.solution(),
            "summary": " ".join(map(str, self.values)),
            "wrong_attempt": self.wrong_attempt(rng),
        }


def apply(value: int, op: str, n: int) -> int:
    """Last digit of `value op n`."""
    return (value + n if op == "+" else value * n if op == "*" else value - n) % 10


def draw_chain(rng: random.Random) -> Chain:
    """A random chain of three to six operations."""
    operations = tuple((rng.choice("+*-"), rng.randrange(2, 10)) for _ in range(rng.randint(3, 6)))
    return Chain(rng.randrange(10), operations)


def draw_questions(n: int, seed: int) -> list[dict[str, str]]:
    """`n` distinct questions, with ids."""
    rng = random.Random(f"questions {seed}")  # noqa: S311 - not for security
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < n:
        chain = draw_chain(rng)
        rows.setdefault(chain.question, {"id": f"chain-{len(rows) + 1:03d}", **chain.row(rng)})
    return list(rows.values())
