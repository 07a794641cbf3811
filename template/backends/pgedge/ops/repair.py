"""The command `repair`, which makes rows of some nodes the same as those of another one.

A change runs on the wrong node alone and is not replicated. It runs only while the rows of both nodes are those that
the plan was made for; the rows are locked on both, so neither a writer nor a link changes them in between.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import groupby
from typing import Annotated

import typer
from psycopg import sql
from rich.markup import escape
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError

from ..db.retry import Verdict, classify, first_line, sqlstate_of
from .base import OperationError, numbered
from .connections import connect_all, engine_for
from .console import operations_urls, out, talk
from .diff import open_comparer
from .rows import Comparer, Comparison, Difference, Table, Version, lock_rows, print_alike
from .topology import Topology, mark_as_local

CHUNK_ROWS = 100
"""Number of rows changed in one transaction."""

TRIES = 5
"""Number of attempts at a transaction that loses a race."""


@dataclass(frozen=True)
class Change:
    """A row of one node, and the one of the source that it has to become."""

    table: Table
    node: str
    difference: Difference
    right: Version | None
    """Row of the source; None if there is none."""
    wrong: Version | None
    """Row of the node; None if there is none."""

    @property
    def statement(self) -> str:
        """Statement that makes the row the same."""
        table = sql.Identifier(self.table.schema, self.table.name)
        if self.right is None:
            return sql.SQL("DELETE FROM {} WHERE {}").format(table, self._matches_key()).as_string()
        values = self.right.values
        if self.wrong is None:
            # A column GENERATED ALWAYS AS IDENTITY takes a value only so.
            return (
                sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})")
                .format(table, _join(map(sql.Identifier, values)), _join(map(sql.Literal, values.values())))
                .as_string()
            )
        changed = [name for name in values if values[name] != self.wrong.values[name]]
        return (
            sql.SQL("UPDATE {} SET {} WHERE {}")
            .format(table, _join(_equals(name, values[name]) for name in changed), self._matches_key())
            .as_string()
        )

    def _matches_key(self) -> sql.Composed:
        # Keys that are equal may be printed differently.
        values = self.wrong.values if self.wrong else {}
        return sql.SQL(" AND ").join(_equals(column.name, values[column.name]) for column in self.table.key)


@dataclass
class Outcome:
    """Result of changes."""

    done: int = 0
    """Number of changes that were made."""
    refused: list[str] = field(default_factory=list)
    """Reason for each change that a constraint or a rule refused."""


class _KeptByRuleError(Exception):
    pass


def repair(
    source: Annotated[str, typer.Option("--from", help="Node whose rows are right.")],
    tables: Annotated[list[str] | None, typer.Argument(help="Tables to repair; all by default.")] = None,
    to: Annotated[list[str] | None, typer.Option(help="Node to repair; all others by default.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Make the changes instead of showing them.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Differences of a table that are planned at once.")] = 1000,
) -> None:
    """Make the rows of other nodes the same as those of one. Exit 0: they are the same, 1: they differ, 2: refused."""
    urls = operations_urls()
    nodes = to or [node for node in urls.owner if node != source]
    for node in (source, *nodes):
        if node not in urls.owner:
            raise OperationError(f"there is no node {node!r}; the nodes are {', '.join(urls.owner)}")
    if source in nodes:
        raise OperationError(f"{source} cannot be repaired from itself: name other nodes with --to")
    chosen = {node: urls.owner[node] for node in (source, *nodes)}
    repaired = 0
    outcome = Outcome()
    with (
        connect_all(urls.admin, pinned=True) as watchers,
        Topology(watchers).migration_lock(),
        open_comparer(chosen, urls.admin, most=limit) as comparer,
        talk.status("comparing"),
    ):
        changes, results = plan(comparer, source, tables or ())
        if yes and changes:
            with open_for_changes(chosen) as connections:
                # A row that one round refuses may be accepted after the others.
                while changes and (outcome := apply(changes, connections, source)).done:
                    repaired += outcome.done
                    changes, results = plan(comparer, source, tables or ())
    _print_changes(changes)
    doubts = [line for result in results for line in _doubts(result)]
    for line in (*(outcome.refused if changes else ()), *doubts):
        talk.print(escape(line))
    if repaired:
        talk.print(f"repaired: {numbered(repaired, 'row')}, as on {escape(source)}")
    if changes:
        left = "these were refused" if outcome.refused else "these were written meanwhile, so repeat it"
        advice = left if yes else "`--yes` makes these changes"
        talk.print(f"[red]not the same[/]: {numbered(len(changes), 'row')} to change; {advice}")
    elif not doubts:
        rows = sum(result.rows for result in results)
        talk.print(f"[green]the same[/]: {numbered(rows, 'row')} on {', '.join(chosen)}")
    raise typer.Exit(1 if changes or doubts else 0)


def plan(comparer: Comparer, source: str, names: Sequence[str]) -> tuple[list[Change], list[Comparison]]:
    """Return the changes that make the nodes the same as `source`, in the order of foreign keys, and what was compared.

    Rows are deleted before the rows that they refer to, and come after them otherwise.

    Args:
        comparer: comparison with the nodes to repair and the source.
        source: node whose rows are right.
        names: names of the tables; all if it is empty.

    Raises:
        ComparisonError: a table does not exist, or a node does not answer.
    """
    tables = _in_order(comparer.connections[source], comparer.tables(names))
    results = [comparer.compare(table) for table in tables]
    changes = [
        Change(table, node, difference, difference.versions[source], version)
        for table, result in zip(tables, results, strict=True)
        for difference in result.differences
        for node, version in difference.versions.items()
        if _values(version) != _values(difference.versions[source])
    ]
    place = {table: number for number, table in enumerate(tables)}
    deleted = sorted((each for each in changes if each.right is None), key=lambda each: (-place[each.table], each.node))
    written = sorted((each for each in changes if each.right), key=lambda each: (place[each.table], each.node))
    return deleted + written, results


@contextmanager
def open_for_changes(urls: Mapping[str, URL]) -> Iterator[dict[str, Connection]]:
    """Connect to nodes, as the owner of their tables, so that no link carries what is written."""
    with ExitStack() as stack:
        connections = {}
        for node, url in urls.items():
            connection = stack.enter_context(engine_for(url, statement_timeout=60).connect())
            print_alike(connection)
            connection.exec_driver_sql("SET lock_timeout = '10s'")
            mark_as_local(connection)
            connection.commit()
            connections[node] = connection
        yield connections


def apply(changes: Sequence[Change], connections: Mapping[str, Connection], source: str) -> Outcome:
    """Make changes, up to `CHUNK_ROWS` in one transaction.

    Changes of a row that was written since the plan was made, on its node or on the source, are left out.

    Args:
        changes: changes in the order in which to make them.
        connections: connections of `open_for_changes`.
        source: node whose rows are right.

    Raises:
        OperationError: a node does not answer, or forbids it; the transactions before stay.
    """
    outcome = Outcome()
    for (table, node, _), group in groupby(changes, _place):
        some = list(group)
        waiting = [some[first : first + CHUNK_ROWS] for first in range(0, len(some), CHUNK_ROWS)]
        while waiting:
            chunk = waiting.pop(0)
            try:
                outcome.done += _apply_chunk(table, chunk, connections[source], connections[node])
            except (DBAPIError, _KeptByRuleError) as error:
                if isinstance(error, DBAPIError) and not (sqlstate_of(error) or "").startswith("23"):
                    raise OperationError(f"{node}, table {table}: {first_line(error)}") from error
                if len(chunk) == 1:
                    outcome.refused.append(f"{node} refuses {chunk[0].statement}: {first_line(error)}")
                else:
                    # A constraint may refuse one row only, or may not after another one.
                    middle = len(chunk) // 2
                    waiting = [chunk[:middle], chunk[middle:], *waiting]
    return outcome


def _apply_chunk(table: Table, chunk: Sequence[Change], right: Connection, wrong: Connection) -> int:
    keys = [tuple(change.difference.key.values()) for change in chunk]
    for attempt in range(1, TRIES + 1):
        try:
            with right.begin(), wrong.begin():
                # A row that is written until this transaction ends waits for it, on both nodes.
                found = lock_rows(right, table, keys), lock_rows(wrong, table, keys)
                planned = [
                    change
                    for number, change in enumerate(chunk)
                    if (found[0].get(number), found[1].get(number)) == (change.right, change.wrong)
                ]
                with _without_triggers(wrong, table):
                    for change in planned:
                        _execute(wrong, change)
            return len(planned)
        except DBAPIError as error:
            if classify(error) is not Verdict.RETRY or attempt == TRIES:
                raise
    raise AssertionError  # The loop returns or raises.


def _execute(connection: Connection, change: Change) -> None:
    # Without parameters, because a % is one in a literal.
    result = connection.execution_options(no_parameters=True).exec_driver_sql(change.statement)
    if result.rowcount != 1:
        raise _KeptByRuleError("a rule of the table keeps the row as it is")


@contextmanager
def _without_triggers(connection: Connection, table: Table) -> Iterator[None]:
    """Disable the triggers of a table until the end of the block; other transactions never see that."""
    name = sql.Identifier(table.schema, table.name).as_string()
    found = connection.execute(text(_TRIGGERS), {"table": name}).all()
    for trigger, _ in found:
        connection.exec_driver_sql(f"ALTER TABLE {name} DISABLE TRIGGER {trigger}")
    yield
    for trigger, firing in found:
        connection.exec_driver_sql(f"ALTER TABLE {name} ENABLE {firing} TRIGGER {trigger}")


def _in_order(connection: Connection, tables: Sequence[Table]) -> list[Table]:
    """Return tables so that each comes after those that its foreign keys refer to, as far as there is such an order."""
    by_name = {(table.schema, table.name): table for table in tables}
    sorter = TopologicalSorter[Table](dict.fromkeys(tables, ()))
    for schema, name, other_schema, other_name in connection.execute(text(_FOREIGN_KEYS)):
        pair = by_name.get((schema, name)), by_name.get((other_schema, other_name))
        if pair[0] and pair[1] and pair[0] != pair[1]:
            sorter.add(pair[0], pair[1])
    try:
        return list(sorter.static_order())
    except CycleError:
        return list(tables)


def _print_changes(changes: Sequence[Change]) -> None:
    for (table, node, _), group in groupby(changes, _place):
        some = list(group)
        words = Counter(change.statement.partition(" ")[0] for change in some)
        counts = ", ".join(f"{number} {word}" for word, number in sorted(words.items()))
        out.print(escape(f"-- {node}, {table}: {counts}"))
        for change in some:
            out.print(escape(f"{change.statement};"))


def _place(change: Change) -> tuple[Table, str, bool]:
    return change.table, change.node, change.right is None


def _doubts(result: Comparison) -> list[str]:
    """Return why rows of a table are left although they may differ."""
    return [*result.doubts, *([f"{result.table}: {result.problem}"] if result.problem else [])]


def _values(version: Version | None) -> Mapping[str, str | None] | None:
    return version.values if version else None


def _equals(name: str, value: str | None) -> sql.Composed:
    return sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))


def _join(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)


_TRIGGERS = """
    SELECT quote_ident(tgname), CASE tgenabled WHEN 'A' THEN 'ALWAYS' ELSE '' END
    FROM pg_trigger WHERE tgrelid = CAST(:table AS regclass) AND NOT tgisinternal AND tgenabled IN ('O', 'A')
"""

_FOREIGN_KEYS = """
    SELECT n.nspname, c.relname, m.nspname, d.relname
    FROM pg_constraint
    JOIN pg_class AS c ON c.oid = conrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_class AS d ON d.oid = confrelid JOIN pg_namespace AS m ON m.oid = d.relnamespace
    WHERE contype = 'f'
"""
