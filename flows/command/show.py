"""`opdscope show`: the prompts of one question, and the probabilities of its first tokens."""

import math
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from flows.command.guarded import CONSOLE, ERRORS, OK, guarded
from flows.command.run import load
from schemas.text import visible

_TOKENS = 20
_TOKEN_WIDTH = 24


def show_file(path: Path, assignments: list[str], *, question: str | None, score: bool) -> int:
    """`opdscope show`; makes the rollouts of the question, or, without scores, loads no model."""

    def action() -> int:
        config = load(path, assignments)
        from flows.command.live import progress
        from flows.command.terminal import show_table
        from flows.show import asked, by_name, prompts, rollouts_of, scored, texts_of
        from tasks.run.session import close_sessions, open_session
        from tasks.stages.texts import told

        session = open_session(config)
        try:
            models, chosen = asked(session, question)
            with progress(ERRORS):
                rollouts = rollouts_of(session, [chosen], make=score).get(chosen)
                texts = texts_of(session, chosen, make=score)
            for name, text in prompts(config, models, chosen, rollouts, texts).items():
                CONSOLE.rule(escape(f"{name}, question {chosen}"), align="left", characters="-")
                CONSOLE.print(escape("\n".join(map(visible, text.split("\n")))), soft_wrap=True)
            for line in told({source: [arrays] for source, arrays in texts.items()}):
                CONSOLE.print(escape(line), soft_wrap=True)
            if rollouts is not None and score:
                found = scored(config, models, chosen, rollouts, texts, _TOKENS)
                for columns in fitting(by_name(found), CONSOLE.width if CONSOLE.is_terminal else None):
                    show_table(CONSOLE, token_table(found.tokens, columns))
                CONSOLE.print(
                    f"the student as its own teacher: log-probabilities within {found.own:.1e} nat", soft_wrap=True
                )
        finally:
            close_sessions()
        return OK

    return guarded(action)


def fitting(columns: dict[str, list[float]], width: int | None) -> list[dict[str, list[float]]]:
    """The columns in groups that fit beside numbers and tokens; all together where there is no width."""
    groups: list[dict[str, list[float]]] = [{}]
    room = left = math.inf if width is None else width - _TOKEN_WIDTH
    for name, values in columns.items():
        left -= cell_len(name) + 3
        if left < 0 and groups[-1]:
            groups.append({})
            left = room - cell_len(name) - 3
        groups[-1][name] = values
    return groups


def token_table(tokens: list[str], columns: dict[str, list[float]]) -> Table:
    """Probabilities of tokens by student and teachers."""
    table = Table(title="probability of the first rollout's tokens", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", justify="right")
    table.add_column("token")
    for name in columns:
        table.add_column(escape(name), justify="right")
    for i, token in enumerate(tokens):
        table.add_row(str(i), escape(repr(token)), *(_probability(values[i]) for values in columns.values()))
    return table


def _probability(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
