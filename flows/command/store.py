"""`opdscope store`: list a store, verify it, and remove unreferenced artefacts."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.prompt import Confirm
from rich.table import Table

from tasks.store.garbage import check_marked, leases, remove, sweep, unreachable
from tasks.store.listing import Stored, damaged, holdings
from tasks.store.store import Store

_DAY = 86400.0
_SHOWN = 20


def show(store: Store, console: Console) -> int:
    """`opdscope store ls`."""
    table = Table(title=escape(store.url), title_justify="left")
    table.add_column("stage")
    for name in ("artefacts", "objects", "MB"):
        table.add_column(name, justify="right")
    for row in holdings(store):
        table.add_row(row.stage, f"{row.artefacts:,}", f"{row.objects:,}", f"{row.size / 1e6:,.1f}")
    console.print(table)
    console.print(f"runs: {escape(', '.join(store.names('runs')) or 'none')}", soft_wrap=True)
    console.print(f"at work now: {len(leases(store))}")
    return 0


def verify(store: Store, console: Console, *, repair: bool) -> int:
    """`opdscope store verify`; exit code 1 if damaged objects remain.

    Raises:
        StoreError: to be repaired, but not marked as a store.
    """
    if repair:
        check_marked(store)
    with Progress(console=console, disable=not console.is_terminal) as display:
        bar = display.add_task("verify", total=sum(row.objects for row in holdings(store)))
        found = damaged(store, lambda n: display.advance(bar, n))
    for item in found:
        console.print(f"damaged: {item.artefact}/{item.name}", soft_wrap=True)
    if repair:
        remove(store, found)
    console.print(f"{len(found)} damaged" + (", removed: the next run makes them again" if repair and found else ""))
    return 1 if found and not repair else 0


def collect(store: Store, console: Console, *, days: float, yes: bool, dry_run: bool) -> int:
    """`opdscope store gc`.

    Raises:
        StoreError: not marked as a store, or the references of runs cannot be read.
    """
    check_marked(store)
    found = unreachable(store, days * _DAY)
    artefacts, size = len({item.artefact for item in found}), sum(item.size for item in found)
    console.print(
        f"{artefacts:,} artefacts ({size / 1e6:,.1f} MB) that no run in runs/ refers to, older than {days:g} days"
    )
    _list(found, console)
    if dry_run or not found or not (yes or Confirm.ask("remove them?", console=console, default=False)):
        return 0
    with Progress(console=console, disable=not console.is_terminal) as display:
        bar = display.add_task("remove", total=len(found))
        removed = sweep(store, found, lambda n: display.advance(bar, n))
    console.print(f"removed {removed:,} artefacts")
    return 0


def _list(items: Sequence[Stored], console: Console) -> None:
    for item in items[:_SHOWN]:
        console.print(f"  {item.artefact}/{item.name}", soft_wrap=True)
    if len(items) > _SHOWN:
        console.print(f"  and {len(items) - _SHOWN:,} more")
