"""The commands that administer tenants."""

import json
from typing import Annotated

import typer
from rich import progress as bars
from rich.table import Column, Table

from ..db.tenants.placement import Placement, TenantState
from ..settings import Settings
from .console import (
    Contract,
    Down,
    PlanAsJson,
    ShowPlan,
    ShowSql,
    Wait,
    Yes,
    confirm_loss,
    operations_urls,
    out,
    talk,
)
from .migrate import Loss
from .moving import move as move_tenant
from .moving import undo as undo_move
from .provisioning import TenantAdmin
from .tenant_migrations import PROCESSES, Outcome, describe, migrate_all, stragglers
from .tenant_plans import plan_all
from .tenant_server import TenantError

tenants = typer.Typer(no_args_is_help=True, help="Add, list, move, suspend, resume, drop and migrate tenants.")

NAME_HELP = "Tenant: lower-case letters, digits, single '-' or '_'; at most 40."
Name = Annotated[str, typer.Argument(help=NAME_HELP, show_default=False)]

JSON = {key: key for key in ("name", "server", "state", "revision")} | {"moving_to": "target", "left_on": "left_on"}
"""Fields of a placement that are printed as JSON, by their keys there."""

COLOURS = {TenantState.ACTIVE: "green", TenantState.SUSPENDED: "yellow"}


def administration() -> TenantAdmin:
    """Return the tenants' admin that the settings describe."""
    operations_urls()
    return TenantAdmin.from_settings(Settings())


def report(message: str) -> None:
    """Print the result of a command."""
    talk.print(message)


@tenants.command()
def add(
    name: Name,
    server: Annotated[str | None, typer.Option(help="Server; default: the one with the fewest tenants.")] = None,
) -> None:
    """Create a tenant's database with the newest schema, and serve the tenant."""
    admin = administration()
    with talk.status(f"adding {name}"):
        added = admin.add(name, server)
    report(f"[green]added[/]: {name} on {added.server}, at revision {added.revision}")


@tenants.command("list")
def list_tenants(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the server, the state and the revision of every tenant."""
    found = administration().all()
    if as_json:
        print(json.dumps([{key: getattr(one, field) for key, field in JSON.items()} for one in found], indent=2))
        return
    columns = [Column(heading, overflow="fold") for heading in ("tenant", "server", "state", "revision", "")]
    table = Table(*columns, box=None, pad_edge=False, header_style="dim")
    for one in found:
        state = f"[{COLOURS.get(one.state, 'red')}]{one.state}[/]"
        table.add_row(one.name, one.server, state, one.revision or "?", _remark(one))
    out.print(table)
    talk.print(_count(len(found)), style="dim")


@tenants.command()
def move(
    name: Name,
    server: Annotated[str | None, typer.Argument(help="Server to move to.", show_default=False)] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take back a move that did not end.")] = False,
) -> None:
    """Move a tenant to another server while it is used: writers wait for a moment, nothing is lost."""
    admin = administration()
    if undo:
        found = undo_move(admin, name)
        left = f"; remains of it are on {found.left_on}, which does not answer" if found.left_on else ""
        report(f"[green]taken back[/]: {name} is on {found.server}{left}")
        return
    if server is None:
        raise TenantError(f"no server given: `tenants move {name} SERVER`")
    with talk.status(f"moving {name}") as status:
        moved = move_tenant(admin, name, server, on_step=lambda step: status.update(f"moving {name}: {step}"))
    if moved.source == moved.target:
        report(f"[green]finished[/]: {name} is on {server}, and nothing of it is left elsewhere")
        return
    report(
        f"[green]moved[/]: {name} from {moved.source} to {moved.target} in {moved.seconds:.1f} s; writers waited "
        f"for {1000 * moved.pause:.0f} ms"
    )
    if moved.left:
        report(
            f"[yellow]left[/]: the old copy on {moved.source}, which is not used any more: {moved.left}. "
            f"`tenants move {name} {moved.target}` removes it"
        )


@tenants.command()
def suspend(name: Name) -> None:
    """Stop serving a tenant: its sessions end, its data stays."""
    found = administration().suspend(name)
    report(f"[green]suspended[/]: {name} on {found.server}; `tenants resume {name}` ends that")


@tenants.command()
def resume(name: Name) -> None:
    """Serve a suspended tenant again."""
    report(f"[green]active[/]: {name} on {administration().resume(name).server}")


@tenants.command()
def rotate(
    names: Annotated[list[str] | None, typer.Argument(help="Tenants; default: all.", show_default=False)] = None,
    new_secret: Annotated[bool, typer.Option("--new-secret", help="The secret has changed, on purpose.")] = False,
) -> None:
    """Give tenants other passwords, for example after their secret has changed; sessions go on."""
    admin = administration()
    chosen = names or [
        found.name for found in admin.all() if found.state in (TenantState.ACTIVE, TenantState.SUSPENDED)
    ]
    if not new_secret:
        # All of them first, so that either none or all are changed.
        for name in chosen:
            admin.check_secret(admin.find(name))
    for name in chosen:
        admin.rotate(name, new_secret=new_secret)
    report(f"[green]rotated[/]: the passwords of {_count(len(chosen))}")


@tenants.command()
def drop(name: Name, force: Annotated[bool, typer.Option("--force", help="Also if it is served.")] = False) -> None:
    """Delete a suspended tenant and all its data."""
    administration().drop(name, force=force)
    report(f"[green]dropped[/]: {name} and all its data")


@tenants.command()
def migrate(
    names: Annotated[list[str] | None, typer.Argument(help="Tenants; default: all.", show_default=False)] = None,
    to: Annotated[str, typer.Option(help="A revision; `base` is before the first one.")] = "head",
    down: Down = False,
    yes: Yes = False,
    contract: Contract = False,
    wait: Wait = 0,
    at_once: Annotated[int, typer.Option(min=1, help="Number of tenants at the same time.")] = PROCESSES,
    plan: ShowPlan = False,
    sql: ShowSql = False,
    as_json: PlanAsJson = False,
) -> None:
    """Migrate every tenant to one revision; run again to continue with those that are behind."""
    admin = administration()
    if plan or sql or as_json:
        plans, failed = plan_all(admin, target=to, down=down, rehearse=not sql, names=names)
        if as_json:
            print(json.dumps([one.as_dict() for one in plans], indent=2))
        for one in () if as_json else plans:
            print("\n".join(one.sql() if sql else one.lines()))
        if failed:
            raise TenantError(f"no plan for {_count(len(failed))}.\n{describe(failed)}")
        raise typer.Exit(1 if any(step.refusal for one in plans for step in one.plan.revisions) else 0)
    columns = (bars.BarColumn(), bars.MofNCompleteColumn(), bars.TextColumn("{task.description}"))
    total = len(names) if names else len(admin.all())
    with bars.Progress(*columns, console=talk, disable=not talk.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total)

        def show(outcome: Outcome) -> None:
            bar.update(task, advance=1, description=outcome.name)

        def confirm(loss: Loss) -> None:
            bar.stop()
            confirm_loss(str(loss), to, yes=yes)
            bar.start()

        outcomes = migrate_all(
            admin,
            target=to,
            down=down,
            contract=contract,
            wait=wait,
            names=names,
            at_once=at_once,
            on_done=show,
            confirm=confirm,
        )
    behind = stragglers(outcomes)
    done = sum(outcome.moved for outcome in outcomes)
    rest = len(outcomes) - len(behind) - done
    if behind:
        raise TenantError(
            f"{len(behind)} of {_count(len(outcomes))} are behind; {done} migrated, {rest} there already.\n"
            f"{describe(behind)}\nRun it again after you have solved that: it continues with these"
        )
    report(f"[green]migrated[/]: {_count(done)}; {rest} there already")


def _count(number: int) -> str:
    return "1 tenant" if number == 1 else f"{number} tenants"


def _remark(one: Placement) -> str:
    if one.target is not None:
        return f"on its way to {one.target}: the move did not end, or is running"
    return f"an old copy is left on {one.left_on}" if one.left_on else ""
