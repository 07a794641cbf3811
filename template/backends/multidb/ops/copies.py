"""Compare the copies of tables with their sources.

A copy promises what its source had at the last sync. A row that the source has changed or deleted since is newer, and
no difference; rows of the source carry the number of the transaction that changed them last, which shows that.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer
from rich.markup import escape
from sqlalchemy import URL, Connection
from sqlalchemy.exc import DBAPIError

from ..databases import DATABASES, TABLE_SYNCS
from ..db.retry import first_line
from ..db.table_sync import TableSync, changed_since, position_of, server_of
from .base import numbered
from .connections import connect
from .console import operations_urls, talk
from .differences import AsJson, Limit, Rate, print_lines, report
from .rows import Comparer, Comparison, ComparisonError, Difference, Key, Table, are_alike, find_tables, look_up


@dataclass
class CopyComparison(Comparison):
    """Result for one copy."""

    newer: int = 0
    """Number of rows that the source has changed or deleted since the sync, so that nothing can be said of the copy."""
    left: str | None = None
    """Reason why nothing was compared."""

    @property
    def doubts(self) -> list[str]:
        """Line if nothing was compared."""
        return [f"{self.table}: {self.left}"] if self.left else []


class CopyComparer(Comparer):
    """Comparison of a copy with its source."""

    def __init__(self, sync: TableSync, source: Connection, target: Connection, **options: Any) -> None:
        """Prepare a comparison.

        Args:
            sync: source and target.
            source: connection to the source, in autocommit, for a role that may read it.
            target: connection to the target, in the same way.
            options: those of `Comparer`.
        """
        # A copy catches up with the next sync, for which a comparison does not wait.
        connections = {sync.source: source, sync.target: target}
        super().__init__(connections, wait_for_catchup=lambda: None, **options)
        self.sync, self.source, self.target = sync, source, target
        self.server = server_of(source)

    def estimate(self) -> float:
        """Return the number of rows of the copy by the server's last ANALYZE; -1 if there was none."""
        found = find_tables(self.target).get(_name(self.sync.into))
        return found.estimate if found else -1

    def compare_copy(self) -> CopyComparison:
        """Compare the copy with what its source had at the last sync; raise ComparisonError if that is not possible."""
        result = CopyComparison(_name(self.sync.into))
        try:
            at = position_of(self.target, self.sync)
            if at is None:
                result.left = "it was never synced: `reports sync` does that"
            elif at.server != self.server:
                result.left = "a full refresh of it did not end, or its source is another server: run `reports sync`"
            else:
                self.compare_into(result, self._tables())
        except DBAPIError as error:
            raise ComparisonError(f"{result.table}: {first_line(error)}") from error
        return result

    def _tables(self) -> dict[str, Table]:
        """Return the tables of both databases, with the columns that are copied."""
        found = {}
        sides = ((self.sync.source, self.source, self.sync.table), (self.sync.target, self.target, self.sync.into))
        for name, connection, model in sides:
            table = find_tables(connection).get(_name(model))
            if table is None:
                raise ComparisonError(f"{name} has no table {_name(model)}: run `migrate`")
            found[name] = table
        # The source may compute a column whose values the copy stores.
        stored = set.intersection(*({column.name for column in table.columns} for table in found.values()))
        copied = stored & set(self.sync.columns)
        return {
            name: replace(table, columns=tuple(column for column in table.columns if column.name in copied))
            for name, table in found.items()
        }

    def settle(self, tables: Mapping[str, Table], keys: Sequence[Key], result: Comparison) -> Iterator[Difference]:
        """Yield the rows of the copy that are not those that the source had at the position of the sync."""
        # The position and the rows of one moment.
        self.target.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            at = position_of(self.target, self.sync)
            copied = look_up(self.target, tables[self.sync.target], keys)
        finally:
            self.target.exec_driver_sql("ROLLBACK")
        # After the copy, and asked after that whether it is newer: whatever changes meanwhile is.
        found = look_up(self.source, tables[self.sync.source], keys)
        texts = [key for (key,) in keys]
        is_known = at is not None and at.server == self.server
        newer = changed_since(self.source, self.sync, at, texts) if at and is_known else set(texts)
        if isinstance(result, CopyComparison):
            result.newer += len(newer)
        for number, key in enumerate(texts):
            versions = {self.sync.source: found.get(number), self.sync.target: copied.get(number)}
            if key not in newer and not are_alike(versions):
                yield Difference(result.table, {"id": key}, versions)


@contextmanager
def open_copies(
    owner_urls: Mapping[str, URL], names: Sequence[str] = (), **options: Any
) -> Iterator[list[CopyComparer]]:
    """Connect to the databases of copies, by default of all, as the owner of the tables.

    Raises:
        ComparisonError: there is no such copy.
        Unreachable: a database does not answer.
    """
    every = {_name(sync.into): sync for sync in TABLE_SYNCS}
    if not every:
        raise ComparisonError("databases.py declares no copy: add a TableSync to TABLE_SYNCS")
    for name in names:
        if name not in every:
            raise ComparisonError(f"there is no copy {name!r}; the copies are {', '.join(sorted(every))}")
    nodes = {spec.name: spec.node for spec in DATABASES}
    chosen = [every[name] for name in dict.fromkeys(names or every)]
    with ExitStack() as stack:
        connections = {
            name: stack.enter_context(connect(owner_urls[nodes[name] or ""], node=name, statement_timeout=60))
            for sync in chosen
            for name in (sync.source, sync.target)
        }
        yield [CopyComparer(sync, connections[sync.source], connections[sync.target], **options) for sync in chosen]


def diff(
    copies: Annotated[list[str] | None, typer.Argument(help="Copies to compare; all by default.")] = None,
    as_json: AsJson = False,
    limit: Limit = 100,
    rate: Rate = 0,
) -> None:
    """Compare copies with what their sources had at the last sync. Exit 0: the same, 1: not, 2: not compared."""
    urls = operations_urls()
    results = []
    with talk.status("comparing") as status:

        def show(result: Comparison, _until: Key | None) -> None:
            status.update(f"comparing: {escape(result.table)}, {result.rows} rows")

        with open_copies(urls.owner, copies or (), rate=rate, most=limit, on_range=show) as comparers:
            for comparer in comparers:
                results.append(comparer.compare_copy())
                if not as_json:
                    print_lines(results[-1])
    newer = numbered(sum(result.newer for result in results), "row")
    raise report(results, f"{newer} newer than the last sync", as_json=as_json)


def _name(table: Any) -> str:
    return str(table.fullname).removeprefix("public.")
