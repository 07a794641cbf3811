"""The commands that show revisions: `history`, `current` and `check`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from .console import operations_urls, out, talk

if TYPE_CHECKING:
    from .versions import Place


def history() -> None:
    """List the revisions, newest first, with the databases that have them. Exit 2: a database does not answer."""
    from .versions import Place, places

    found = places(operations_urls().owner)
    groups: dict[tuple[str, ...], list[Place]] = {}
    for place in found:
        groups.setdefault(tuple(script.path for script in place.scripts.walk_revisions()), []).append(place)
    for group in groups.values():
        its_own = [place for place in group if place.problem is None]
        table = Table("revision", "follows", "title", "on", box=None, pad_edge=False, header_style="dim")
        for script in group[0].scripts.walk_revisions():
            having = [place.name for place in its_own if place.has(script.revision)]
            where = "all" if len(having) == len(group) > 1 else ", ".join(having)
            after = ", ".join(sorted(script._all_down_revisions)) or "nothing"
            table.add_row(script.revision, after, escape(script.doc), where or "none")
        out.print(table)
    _name_unknown(found)


def current() -> None:
    """Show the revision that each database is at. Exit 2: one does not answer."""
    from .versions import places

    found = places(operations_urls().owner)
    for place in found:
        if place.problem is None:
            out.print(escape(str(place)))
    _name_unknown(found)


def _name_unknown(found: "Sequence[Place]") -> None:
    """Print the databases whose version is unknown, and end the command if there is one."""
    if unknown := [place for place in found if place.problem is not None]:
        for place in unknown:
            talk.print(f"[red]error[/]: {escape(str(place))}")
        raise typer.Exit(2)


def check() -> None:
    """Compare the models, the revisions and the databases. Exit 1: they differ; each difference is a line."""
    from .versions import drift

    urls = operations_urls()
    problems = drift(urls.admin, owner_urls=urls.owner)
    for problem in problems:
        out.print(escape(problem))
    if problems:
        raise typer.Exit(1)
    talk.print("[green]no difference[/]: the models, the revisions and the databases agree")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (history, current, check):
        app.command()(command)
