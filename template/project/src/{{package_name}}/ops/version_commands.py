"""The commands that show revisions: `history`, `current` and `check`."""

import typer
from rich.markup import escape
from rich.table import Table

from .console import configured_urls, out, talk


def history() -> None:
    """List the revisions, newest first, with the databases that have them."""
    from .versions import places

    urls, admin_urls = configured_urls()
    found = places(admin_urls, owner=next(iter(urls.values())).username or "")
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

    urls, admin_urls = configured_urls()
    for place in places(admin_urls, owner=next(iter(urls.values())).username or ""):
        out.print(escape(str(place)), soft_wrap=True)


def check() -> None:
    """Compare the models, the revisions and the databases. Exit 1: they differ; each difference is a line."""
    from .versions import drift

    urls, admin_urls = configured_urls()
    problems = drift(admin_urls, owner=next(iter(urls.values())).username or "")
    for problem in problems:
        out.print(escape(problem), soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    talk.print("[green]no difference[/]: the models, the revisions and the databases agree")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (history, current, check):
        app.command()(command)
