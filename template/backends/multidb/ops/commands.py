"""The commands that only unrelated databases need: what is outstanding between them, and what one sees of another."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.table import Table

from .. import sales
from ..db import outbox
from ..db import twophase as protocol
from ..db.copies import behind, copy, position
from ..db.databases import Databases
from ..places import COPIES, LOG, open_databases
from .connections import connect
from .console import Debug, configured_urls, explained, give_up, out, talk
from .foreign import TARGET, ForeignError, examples, explain, local_cluster, set_up, sources, take_down

fdw = typer.Typer(no_args_is_help=True, help="The tables of the other databases, seen from the reporting database.")
messages = typer.Typer(no_args_is_help=True, help="What the outboxes hold, and its delivery.")
reports = typer.Typer(no_args_is_help=True, help="The copies in the reporting database.")
twophase = typer.Typer(no_args_is_help=True, help="Two-phase commits that somebody has not finished.")


@twophase.command("list")
def list_outstanding(debug: Debug = False) -> None:
    """Show every two-phase commit that is prepared somewhere, and what `recover` would do about it."""
    with explained(debug), _databases() as databases:
        found = protocol.outstanding(databases.servers, databases.server(LOG))
        if not found:
            talk.print("[green]nothing outstanding[/]: every two-phase commit is finished")
            return
        table = _table("id", "prepared on", "age", "state")
        for one in found:
            table.add_row(str(one.id), ", ".join(one.prepared), f"{one.age.total_seconds():.0f} s", one.state)
        out.print(table)


@twophase.command()
def recover(debug: Debug = False) -> None:
    """Finish what was abandoned: commit what was decided, roll back the rest, leave alone what is in flight."""
    with explained(debug), _databases() as databases:
        done = protocol.recover(databases.servers, databases.server(LOG))
        out.print(
            f"{len(done.committed)} committed, {len(done.rolled_back)} rolled back, {len(done.in_flight)} in flight",
            highlight=False,
        )
        if done.unreachable:
            give_up("; ".join(f"{name}: {why}" for name, why in done.unreachable.items()) + ". Run it again later.")


@messages.command("list")
def list_messages(debug: Debug = False) -> None:
    """Show what waits in the outboxes, and why it was not delivered."""
    with explained(debug), _databases() as databases:
        table = _table("from", "to", "topic", "id", "failures", "reason")
        for source in _with_outbox():
            for one in outbox.waiting(databases, source):
                message = one.message
                cells = [source, one.target, message.topic, str(message.id), str(one.failures), one.reason or ""]
                table.add_row(*cells)
        if table.row_count:
            out.print(table)
        else:
            talk.print("[green]nothing waits[/]")


@messages.command()
def deliver(debug: Debug = False) -> None:
    """Deliver what waits in the outboxes, answers included; failed messages stay, with their reason."""
    with explained(debug), _databases() as databases:
        done = outbox.Delivery()
        while True:
            round_trip = outbox.Delivery()
            for source in _with_outbox():
                round_trip += outbox.deliver(databases, source, sales.RECEIVERS)
            done += round_trip
            # A message may be answered with another, by a database whose turn is over.
            if not round_trip.delivered or round_trip.failed:
                break
        for target in _with_outbox():
            outbox.forget(databases, target)
        out.print(f"{done.delivered} delivered, {done.known} known already, {done.failed} failed", highlight=False)
        if done.failed:
            raise typer.Exit(1)


@reports.command("copy")
def copy_all(
    afresh: Annotated[bool, typer.Option("--afresh", help="Copy everything, and remove what is no more.")] = False,
    debug: Debug = False,
) -> None:
    """Bring the copies up to date."""
    with explained(debug), _databases() as databases:
        for one in COPIES:
            done = copy(databases, one, afresh=afresh)
            how = "afresh" if done.afresh else "since the last time"
            out.print(f"{one.into.name}: {done.rows} rows copied, {done.deleted} removed, {how}", highlight=False)


@reports.command("status")
def show_copies(debug: Debug = False) -> None:
    """Show how far the copies have come."""
    with explained(debug), _databases() as databases:
        table = _table("copy", "of", "complete below", "rows changed since")
        for one in COPIES:
            found = position(databases, one)
            cells = [one.into.name, one.source, found.horizon if found else "never begun", str(behind(databases, one))]
            table.add_row(*cells)
        out.print(table)


@fdw.command()
def setup(
    rotate: Annotated[bool, typer.Option("--rotate", help="Give the readers new passwords.")] = False,
    debug: Debug = False,
) -> None:
    """Show the tables of the other databases in the reporting database; run it again after a migration."""
    with explained(debug, ForeignError):
        urls, admin_urls = configured_urls()
        owner = next(iter(urls.values())).username or ""
        for seen in set_up(admin_urls, owner=owner, cluster=local_cluster(urls), rotate=rotate):
            out.print(f"{TARGET} sees {seen.schema}: {', '.join(seen.tables)}", highlight=False)


@fdw.command()
def check(debug: Debug = False) -> None:
    """Show what queries over foreign tables send along. Exit 1: a condition or a join is not."""
    with explained(debug, ForeignError):
        urls, _ = configured_urls()
        node = next(node for node in urls if node == _node_of(TARGET))
        failed = False
        with connect(urls[node], node=TARGET) as connection:
            for name, query in examples(sources()[0].name).items():
                plan = explain(connection, query)
                failed |= not plan.is_pushed_down
                out.print(
                    f"{name}: {'sent along' if plan.is_pushed_down else 'NOT sent along: ' + '; '.join(plan.local)}"
                )
                for statement in plan.remote:
                    out.print(f"  {statement}", style="dim", highlight=False, soft_wrap=True)
        if failed:
            raise typer.Exit(1)


@fdw.command()
def remove(debug: Debug = False) -> None:
    """Remove what `setup` made, the readers' roles included."""
    with explained(debug, ForeignError):
        _, admin_urls = configured_urls()
        take_down(admin_urls)
        talk.print("[green]removed[/]")


@contextmanager
def _databases() -> Iterator[Databases]:
    configured_urls()
    with open_databases() as databases:
        yield databases


def _with_outbox() -> list[str]:
    return sorted({target for target, _ in sales.RECEIVERS})


def _node_of(name: str) -> str | None:
    from ..places import PLACES

    return next(place.node for place in PLACES if place.name == name)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading)
    return table
