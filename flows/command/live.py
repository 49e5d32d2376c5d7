"""The progress of a run while it works: bars in a terminal, lines elsewhere."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.text import Text

from tasks.operations.progress import Amount, Step, listen


class RateColumn(ProgressColumn):
    """Items per second, and tokens per second where models process some."""

    def render(self, task: RichTask) -> Text:
        """The rates, once they are known."""
        text = "" if task.speed is None else f"{task.speed:,.3g}/s"
        if task.fields["tokens"] and task.elapsed:
            text += f", {task.fields['tokens'] / task.elapsed:,.0f} tokens/s"
        return Text(text, style="progress.data.speed")


_PAUSE = 30.0
"""Maximum seconds between two lines of a stage if the output is not a terminal."""


@contextmanager
def progress(console: Console, pause: float = _PAUSE) -> Iterator[None]:
    """Show every stage's progress: as bars in a terminal, as lines elsewhere, such as in a log file.

    Args:
        pause: seconds after which a line is written again if the output is not a terminal.
    """
    with _bars(console) if console.is_terminal else _lines(console, pause):
        yield


@contextmanager
def _bars(console: Console) -> Iterator[None]:
    bars: dict[str, RichTask] = {}
    display = Progress(
        TextColumn("{task.description:12}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )

    def show(step: Step) -> None:
        bar = bars.get(step.stage)
        if step.total is not None:
            if bar is not None:
                display.reset(bar.id, total=step.total, tokens=0)
            else:
                display.add_task(step.stage, total=step.total, tokens=0)
                bars[step.stage] = display.tasks[-1]
        elif bar is not None:
            display.update(bar.id, advance=step.done, tokens=bar.fields["tokens"] + step.tokens)
            if step.over:
                end(bar)

    def end(bar: RichTask) -> None:
        """Fill a bar whose total was an upper bound, as of draws that were cached, or training that ended early."""
        display.update(bar.id, total=bar.completed if bar.completed else bar.total)

    stop = listen(show)
    try:
        with display:
            yield
            for bar in display.tasks:
                end(bar)
    finally:
        stop()


@contextmanager
def _lines(console: Console, pause: float) -> Iterator[None]:
    """A line when a stage starts and when it is complete, and every `pause` seconds in between."""
    amounts: dict[str, Amount] = {}
    reported: dict[str, int] = {}
    over, lock = threading.Event(), threading.Lock()

    def report(stage: str) -> None:
        reported[stage] = amounts[stage].done
        console.print(escape(f"{stage}: {amounts[stage]}"), soft_wrap=True)

    def show(step: Step) -> None:
        with lock:
            if step.total is not None:
                amounts.pop(step.stage, None)  # so that the running stage comes last
                amounts[step.stage] = Amount(step.total)
                report(step.stage)
            elif (amount := amounts.get(step.stage)) is not None and not amount.complete:
                amount.add(step)
                if amount.complete and amount.done:
                    report(step.stage)

    def report_regularly() -> None:
        while not over.wait(pause):
            with lock:
                moved = [stage for stage, amount in amounts.items() if amount.done > reported[stage]]
                for stage in moved or [stage for stage in list(amounts)[-1:] if not amounts[stage].complete]:
                    report(stage)

    stop, reporter = listen(show), threading.Thread(target=report_regularly, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        stop()
        over.set()
        reporter.join()
