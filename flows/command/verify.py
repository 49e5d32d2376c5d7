"""`opdscope verify`: what the verifier reads in rollouts, and where another one would judge otherwise."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from flows.command.guarded import CONSOLE, ERRORS, OK, guarded
from flows.command.run import load
from flows.verify import Sample
from schemas.text import after_thinking, visible

_ROWS = 20
_END = 48
"""Characters of a completion that are shown: its last ones."""


def verify_file(path: Path, assignments: list[str], *, questions: int) -> int:
    """`opdscope verify`; makes the rollouts of the first questions that have none."""

    def action() -> int:
        config = load(path, assignments)
        from flows.command.live import progress
        from flows.command.terminal import show_table
        from flows.show import asked, rollouts_of
        from flows.verify import attempts, samples, verifiers
        from tasks.run.session import close_sessions, open_session

        session = open_session(config)
        try:
            models, _ = asked(session, None)
            chosen = session.keys.questions[:questions]
            kinds = verifiers(config, [models.answer(question) for question in chosen])
            with progress(ERRORS):
                rollouts = rollouts_of(session, chosen, make=True)
            texts = {q: attempts(models.tokenizer, models.answer(q), arrays) for q, arrays in rollouts.items()}
            judged = samples(kinds, texts)
        finally:
            close_sessions()
        show_table(CONSOLE, sample_table(judged))
        for line in summary(judged):
            CONSOLE.print(escape(line), soft_wrap=True)
        return OK

    return guarded(action)


def sample_table(judged: list[Sample]) -> Table:
    """Disputed samples first, with the readings of the run's verifier and of those that dispute its verdicts."""
    first = next(iter(judged[0].readings))
    kinds = [first, *dict.fromkeys(kind for sample in judged for kind in sample.disputed)]
    shown = sorted(judged, key=lambda sample: not sample.disputed)[:_ROWS]
    title = f"{len(shown)} of {len(judged)} rollouts, as {first} (the run's verifier) reads them"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("question", "rollout", "its end", "answer", *kinds):
        table.add_column(escape(name), justify="right" if name == "rollout" else "left")
    for sample in shown:
        text = visible(after_thinking(sample.attempt.completion))
        end = text if len(text) <= _END else f"...{text[3 - _END :]}"
        cells = [sample.question, str(sample.rollout), end + (" (cut)" if sample.attempt.truncated else "")]
        table.add_row(
            *map(escape, cells),
            escape(visible(sample.attempt.answer)),
            *(_reading(sample, kind) for kind in kinds),
        )
    return table


def _reading(sample: Sample, kind: str) -> str:
    answer, correct = sample.readings[kind]
    verdict = "[green]right[/]" if correct else "[red]wrong[/]"
    return verdict if answer is None else f"{verdict} {escape(visible(answer[:_END]))}"


def summary(judged: list[Sample]) -> list[str]:
    """How many rollouts the run's verifier accepts, and on how many each other one gives another verdict."""
    first, *others = judged[0].readings
    right = sum(sample.readings[first].correct for sample in judged)
    silent = sum(sample.readings[first].answer is None for sample in judged) if first != "python" else 0
    lines = [
        f"{first} accepts {right} of {len(judged)} rollouts" + (f", and reads nothing in {silent}" if silent else "")
    ]
    for kind in others:
        disputed = sum(kind in sample.disputed for sample in judged)
        lines.append(f"{kind} gives another verdict on {disputed}" if disputed else f"{kind} agrees on all")
    return lines
