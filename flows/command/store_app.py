"""`opdscope store`: the commands on the cache. Nothing heavy is imported before one needs it."""

from functools import partial
from typing import Annotated

import typer

store_app = typer.Typer(no_args_is_help=True, help="The cache: list it, verify it, remove what no run needs.")

Kept = Annotated[str, typer.Option("--store", help="The store; any fsspec URL.", metavar="URL")]


@store_app.command("ls")
def store_ls(store: Kept = ".opdscope") -> None:
    """List artefacts and bytes by stage, and the runs."""
    from flows.command.places import on_store
    from flows.command.store import show

    raise typer.Exit(on_store(store, show))


@store_app.command("verify")
def store_verify(
    store: Kept = ".opdscope",
    repair: Annotated[bool, typer.Option(help="Remove damaged objects; the next run makes them again.")] = False,
) -> None:
    """Check every object's SHA-256; exit code 1 if one is damaged."""
    from flows.command.places import on_store
    from flows.command.store import verify

    raise typer.Exit(on_store(store, partial(verify, repair=repair)))


@store_app.command("gc")
def store_gc(
    store: Kept = ".opdscope",
    days: Annotated[float, typer.Option("--older-than", min=0, help="Days since the artefact was last written.")] = 1.0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    dry_run: Annotated[bool, typer.Option(help="List what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove artefacts that no run under runs/ refers to; remove a run's folder first to free what it needs."""
    from flows.command.places import on_store
    from flows.command.store import collect

    raise typer.Exit(on_store(store, partial(collect, days=days, yes=yes, dry_run=dry_run)))
