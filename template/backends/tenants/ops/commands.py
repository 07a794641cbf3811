"""The commands that only tenants need."""

import json
from typing import Annotated

import typer
from rich import progress as bars
from rich.table import Table

from ..db.registry import Placement, State
from ..db.tenants import TenantSettings
from .console import Debug, configured_urls, explained, give_up, out, talk
from .moving import move as move_tenant
from .moving import undo as undo_move
from .provisioning import Registrar, TenantError
from .statements import MigrationError
from .tenant_migrations import AT_ONCE, Outcome, migrate_all, stragglers, told

tenants = typer.Typer(no_args_is_help=True, help="The tenants: add, list, move, suspend, resume, drop, migrate.")

Name = Annotated[
    str,
    typer.Argument(help="The tenant: lower-case letters, digits, single '-' or '_'; at most 40.", show_default=False),
]

COLOURS = {State.ACTIVE: "green", State.SUSPENDED: "yellow"}


def registrar() -> Registrar:
    """Whoever may change the registry that is configured.

    Raises:
        ClusterError: no server is configured.
    """
    configured_urls()
    return Registrar.from_settings(TenantSettings())


@tenants.command()
def add(
    name: Name,
    server: Annotated[str | None, typer.Option(help="Where; the server with the fewest tenants if absent.")] = None,
    debug: Debug = False,
) -> None:
    """Make a tenant's database, with the newest schema, and serve it."""
    with explained(debug, TenantError, MigrationError):
        with talk.status(f"adding {name}"):
            made = registrar().add(name, server)
        talk.print(f"[green]added[/]: {name} on {made.server}, at revision {made.revision}", highlight=False)


@tenants.command("list")
def list_tenants(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """Show every tenant: where it is, in which state, at which revision."""
    with explained(debug, TenantError):
        found = registrar().all()
        if as_json:
            print(json.dumps([_as_json(one) for one in found], indent=2))
            return
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("tenant", "server", "state", "revision", ""):
            table.add_column(heading, overflow="fold")
        for one in found:
            state = f"[{COLOURS.get(one.state, 'red')}]{one.state}[/]"
            table.add_row(one.name, one.server, state, one.revision or "?", _remark(one))
        out.print(table)
        talk.print(_count(len(found)), style="dim", highlight=False)


@tenants.command()
def move(
    name: Name,
    server: Annotated[str | None, typer.Argument(help="Where it is to go.", show_default=False)] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take back a move that did not end.")] = False,
    debug: Debug = False,
) -> None:
    """Move a tenant to another server while it is used: writers are held up for a moment, nothing is lost."""
    with explained(debug, TenantError, MigrationError):
        if undo:
            found = undo_move(registrar(), name)
            talk.print(f"[green]taken back[/]: {name} is on {found.server}{_and_left(found)}", highlight=False)
            return
        if server is None:
            raise TenantError(f"where to? Name the server: `tenants move {name} SERVER`")
        with talk.status(f"moving {name}") as progress:
            moved = move_tenant(
                registrar(), name, server, on_step=lambda step: progress.update(f"moving {name}: {step}")
            )
        if moved.source == moved.target:
            talk.print(
                f"[green]finished[/]: {name} is on {server}, and nothing of it is left elsewhere", highlight=False
            )
            return
        talk.print(
            f"[green]moved[/]: {name} from {moved.source} to {moved.target} in {moved.seconds:.1f} s; writers were held up for "
            f"{1000 * moved.pause:.0f} ms",
            highlight=False,
            soft_wrap=True,
        )
        if moved.left:
            talk.print(
                f"[yellow]left[/]: the old copy on {moved.source}, which is not used any more: {moved.left}. "
                f"`tenants move {name} {moved.target}` removes it",
                highlight=False,
                soft_wrap=True,
            )


@tenants.command()
def suspend(name: Name, debug: Debug = False) -> None:
    """Serve a tenant no longer: its sessions end, its data stays."""
    with explained(debug, TenantError):
        found = registrar().suspend(name)
        talk.print(f"[green]suspended[/]: {name} on {found.server}; `tenants resume {name}` ends that", highlight=False)


@tenants.command()
def resume(name: Name, debug: Debug = False) -> None:
    """Serve a suspended tenant again."""
    with explained(debug, TenantError):
        found = registrar().resume(name)
        talk.print(f"[green]active[/]: {name} on {found.server}", highlight=False)


@tenants.command()
def drop(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Also if it is being served.")] = False,
    debug: Debug = False,
) -> None:
    """Delete a tenant and all its data; it has to be suspended first."""
    with explained(debug, TenantError):
        registrar().drop(name, force=force)
        talk.print(f"[green]dropped[/]: {name} and all its data", highlight=False)


@tenants.command()
def migrate(
    names: Annotated[list[str] | None, typer.Argument(help="Whom; all tenants if absent.", show_default=False)] = None,
    to: Annotated[str, typer.Option(help="A revision; `base` is before the first one.")] = "head",
    at_once: Annotated[int, typer.Option(min=1, help="How many at the same time.")] = AT_ONCE,
    debug: Debug = False,
) -> None:
    """Bring every tenant to one revision; run again, it goes on with those that are behind."""
    with explained(debug, TenantError, MigrationError):
        columns = (bars.BarColumn(), bars.MofNCompleteColumn(), bars.TextColumn("{task.description}"))
        total = len(names) if names else len(registrar().all())
        with bars.Progress(*columns, console=talk, disable=not talk.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=total)

            def show(outcome: Outcome) -> None:
                bar.update(task, advance=1, description=outcome.name)

            outcomes = migrate_all(registrar(), target=to, names=names, at_once=at_once, on_done=show)
        behind = stragglers(outcomes)
        done = sum(outcome.moved for outcome in outcomes)
        there = len(outcomes) - len(behind) - done
        if behind:
            give_up(
                f"{len(behind)} of {_count(len(outcomes))} did not come along; {done} migrated, {there} there already.\n"
                f"{told(behind)}\nRun it again when that is mended: it goes on with them"
            )
        talk.print(f"[green]migrated[/]: {_count(done)}; {there} there already", highlight=False)


def _count(number: int) -> str:
    return "1 tenant" if number == 1 else f"{number} tenants"


def _remark(one: Placement) -> str:
    if one.target is not None:
        return f"on its way to {one.target}: the move did not end, or is running"
    return f"an old copy is left on {one.left_on}" if one.left_on else ""


def _and_left(one: Placement) -> str:
    return f"; something of it is left on {one.left_on}, which does not answer" if one.left_on else ""


def _as_json(one: Placement) -> dict[str, str | None]:
    return {
        "name": one.name,
        "server": one.server,
        "state": one.state,
        "revision": one.revision,
        "moving_to": one.target,
        "left_on": one.left_on,
    }
