"""The commands that show revisions: `history`, `current` and `check`."""

import typer
from rich.markup import escape
from rich.table import Table

from .console import operations_urls, out, talk


def history() -> None:
    """List the revisions, newest first, with the databases that have them."""
    from .versions import places

    found = places(operations_urls().owner)
    shared = {id(place.scripts): place.scripts for place in found}
    for scripts in shared.values():
        its_own = [place for place in found if place.scripts is scripts]
        table = Table("revision", "follows", "title", "on", box=None, pad_edge=False, header_style="dim")
        for script in scripts.walk_revisions():
            having = [place.name for place in its_own if place.has(script.revision)]
            where = "all" if len(having) == len(its_own) > 1 else ", ".join(having)
            after = ", ".join(sorted(script._all_down_revisions)) or "nothing"
            table.add_row(script.revision, after, escape(script.doc), where or "none")
        out.print(table)


def current() -> None:
    """Show the revision that each database is at."""
    from .versions import places

    for place in places(operations_urls().owner):
        out.print(escape(str(place)), soft_wrap=True)


def check() -> None:
    """Compare the models, the revisions and the databases. Exit 1: they differ; each difference is a line."""
    from .versions import drift

    urls = operations_urls()
    problems = drift(urls.admin, owner_urls=urls.owner)
    for problem in problems:
        out.print(escape(problem), soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    talk.print("[green]no difference[/]: the models, the revisions and the databases agree")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (history, current, check):
        app.command()(command)
