"""Commands for what happens between the databases: in-doubt transactions, messages, copies, foreign tables."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.table import Table

from ..databases import DATABASES, OUTBOXES, RECEIVERS, TABLE_SYNCS, open_databases
from ..db import outbox
from ..db import twophase as protocol
from ..db.databases import Databases
from ..db.table_sync import TableSync, lag, position, sync_table
from .base import OperationError
from .connections import connect
from .console import configured_urls, operations_urls, out, talk
from .foreign import TARGET, examples, explain, local_cluster, set_up, sources, take_down

fdw = typer.Typer(no_args_is_help=True, help="Foreign tables: the other databases as seen from the reporting database.")
messages = typer.Typer(no_args_is_help=True, help="Messages in the outboxes.")
reports = typer.Typer(no_args_is_help=True, help="Copies in the reporting database.")
twophase = typer.Typer(no_args_is_help=True, help="Two-phase commits that are not finished.")


@twophase.command("list")
def list_in_doubt() -> None:
    """Show every two-phase commit that is prepared somewhere, and what `recover` would do with it."""
    with _databases() as databases:
        found = protocol.in_doubt_transactions(databases)
        if not found:
            talk.print("[green]nothing in doubt[/]: every two-phase commit is finished")
            return
        table = _table("id", "prepared on", "age", "state")
        for one in found:
            table.add_row(str(one.id), ", ".join(one.prepared), f"{one.age.total_seconds():.0f} s", one.state)
        out.print(table)


@twophase.command()
def recover() -> None:
    """Finish abandoned two-phase commits: commit decided ones, roll back the others, skip those in flight."""
    with _databases() as databases:
        done = protocol.recover(databases)
        out.print(
            f"{len(done.committed)} committed, {len(done.rolled_back)} rolled back, {len(done.in_flight)} in flight"
        )
        if done.unreachable:
            reasons = "; ".join(f"{name}: {why}" for name, why in done.unreachable.items())
            raise OperationError(f"{reasons}. Run it again later.")


@messages.command("list")
def list_messages() -> None:
    """Show the messages that wait in the outboxes, and why they were not delivered."""
    with _databases() as databases:
        table = _table("from", "to", "topic", "id", "failures", "reason")
        for source in _with_outbox():
            for one in outbox.pending(databases, source):
                table.add_row(source, one.target, one.topic, str(one.id), str(one.failures), one.reason or "")
        if table.row_count:
            out.print(table)
        else:
            talk.print("[green]nothing waits[/]")


@messages.command()
def deliver() -> None:
    """Deliver the messages in the outboxes, answers included; failed ones stay, with the reason."""
    with _databases() as databases:
        done = outbox.RelayResult()
        while True:
            round_trip = outbox.RelayResult()
            for source in _with_outbox():
                round_trip += outbox.relay(databases, source, RECEIVERS)
            done += round_trip
            # A receiver may answer with a message of its own, in an outbox that was emptied before.
            if not round_trip.delivered or round_trip.failed:
                break
        for target in _with_outbox():
            outbox.prune_inbox(databases, target)
        out.print(f"{done.delivered} delivered, {done.duplicates} duplicates, {done.failed} failed")
        if done.failed:
            raise typer.Exit(1)


@reports.command("sync")
def sync_all(
    full_refresh: Annotated[
        bool, typer.Option("--full-refresh", help="Copy everything, and delete rows that the source lacks.")
    ] = False,
) -> None:
    """Bring the copies up to date."""
    with _databases() as databases:
        for one in _copies():
            done = sync_table(databases, one, full_refresh=full_refresh)
            kind = "full refresh" if done.full_refresh else "incremental"
            out.print(f"{one.into.name}: {done.rows} rows copied, {done.deleted} deleted, {kind}")


@reports.command("status")
def show_copies() -> None:
    """Show how far behind the copies are."""
    with _databases() as databases:
        table = _table("copy", "of", "complete below", "rows changed since")
        for one in _copies():
            found = position(databases, one)
            cells = [one.into.name, one.source, found.horizon if found else "never synced", str(lag(databases, one))]
            table.add_row(*cells)
        out.print(table)


@fdw.command()
def setup(rotate: Annotated[bool, typer.Option("--rotate", help="Give the readers new passwords.")] = False) -> None:
    """Create the foreign tables in the reporting database; run it again after a migration."""
    urls = operations_urls()
    cluster = local_cluster(urls.application)
    application = next(iter(urls.application.values())).username or ""
    done = set_up(urls.admin, owner_urls=urls.owner, application=application, cluster=cluster, rotate=rotate)
    for schema, tables in done.items():
        out.print(f"schema {schema} of {TARGET}: {', '.join(tables)}")


@fdw.command()
def check() -> None:
    """Show what queries over foreign tables push down. Exit 1: a condition or a join is not pushed down."""
    urls = configured_urls()
    node = next(node for node in urls if node == _node_of(TARGET))
    failed = False
    with connect(urls[node], node=TARGET) as connection:
        for name, query in examples(sources()[0].name).items():
            plan = explain(connection, query)
            failed |= not plan.is_pushed_down
            outcome = "pushed down" if plan.is_pushed_down else f"NOT pushed down: {'; '.join(plan.local)}"
            out.print(f"{name}: {outcome}")
            for statement in plan.remote:
                out.print(f"  {statement}", style="dim")
    if failed:
        raise typer.Exit(1)


@fdw.command()
def remove() -> None:
    """Remove what `setup` created, the readers' roles included."""
    take_down(operations_urls().admin)
    talk.print("[green]removed[/]")


@contextmanager
def _databases() -> Iterator[Databases]:
    configured_urls()
    with open_databases() as databases:
        yield databases


def _with_outbox() -> list[str]:
    return sorted({*OUTBOXES, *(target for target, _ in RECEIVERS)})


def _copies() -> Sequence[TableSync]:
    if not TABLE_SYNCS:
        raise OperationError("databases.py declares no copy: add a TableSync to TABLE_SYNCS")
    return TABLE_SYNCS


def _node_of(name: str) -> str | None:
    return next(spec.node for spec in DATABASES if spec.name == name)


def _table(*headings: str) -> Table:
    return Table(*headings, box=None, pad_edge=False, header_style="dim")
