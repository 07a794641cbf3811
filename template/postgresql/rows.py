"""Compare the rows of tables that several nodes have, and name the rows that differ.

The servers hash ranges of the primary key, and rows are fetched only from ranges whose hashes differ. Two values are
the same if they are printed the same, with settings that the comparison chooses itself, so NULL differs from '', and
1.0 from 1.00. Writers go on meanwhile: a row that differs is looked at again after the nodes have caught up, and it
counts only if nothing has changed it in between.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from ..db.retry import first_line
from .base import OperationError, numbered
from .topology import Topology

RANGE_ROWS = 10_000
"""Number of rows in a range. A range that differs is divided into ten, and those of them that differ are fetched."""

LOOKS = 5
"""Number of looks at a row that differs, each after the nodes have caught up, before it counts as busy."""

T = TypeVar("T")

Key: TypeAlias = tuple[str, ...]
"""Values of a primary key, as the server prints them."""

Span: TypeAlias = tuple[Key | None, Key | None]
"""The key before a range, and the last key in it; None where the table begins or ends."""


class ComparisonError(OperationError):
    """The rows cannot be compared; the message says why."""


@dataclass(frozen=True)
class Column:
    """A column, with its name and its type in SQL."""

    name: str
    type: str


@dataclass(frozen=True)
class Table:
    """A table that several nodes have."""

    schema: str
    name: str
    columns: tuple[Column, ...]
    """Columns that hold values of their own, in alphabetical order."""
    key: tuple[Column, ...]
    """Columns of the primary key; empty if there is none."""
    is_partitioned: bool
    estimate: float = field(compare=False)
    """Number of rows by the server's last ANALYZE; -1 if there was none."""

    def __str__(self) -> str:
        return self.name if self.schema == "public" else f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Version:
    """The row that one node has for a key."""

    values: Mapping[str, str | None]
    """Value of each column, as the server prints it; None for NULL."""
    written: str | None = None
    """Time of its last change; None if the server does not know."""
    origin: str | None = None
    """Origin of replication of its last change; None if it was made on this node, or the server does not know."""


@dataclass(frozen=True)
class Difference:
    """A row that is not the same on all nodes."""

    table: str
    key: Mapping[str, str]
    versions: Mapping[str, Version | None]
    """Row of each node; None where there is none."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns whose values differ between the nodes that have the row."""
        rows = [version.values for version in self.versions.values() if version]
        return [name for name in rows[0] if len({row.get(name) for row in rows}) > 1]

    @property
    def odd_nodes(self) -> list[str]:
        """Names of the nodes whose row is not that of most nodes; of all nodes if no row has a majority."""
        rows = {node: repr(version and sorted(version.values.items())) for node, version in self.versions.items()}
        [(common, count)] = Counter(rows.values()).most_common(1)
        return [node for node, row in rows.items() if row != common or 2 * count <= len(rows)]

    def __str__(self) -> str:
        key = ", ".join(f"{name}={value}" for name, value in self.key.items())
        missing = [node for node, version in self.versions.items() if version is None]
        parts = [f"is missing on {', '.join(missing)}"] if missing else []
        for column in self.columns:
            found = [(node, version.values[column]) for node, version in self.versions.items() if version]
            shown = ", ".join(f"{node} has {'NULL' if value is None else repr(value[:60])}" for node, value in found)
            parts.append(f"{column}: {shown}")
        return f"{self.table} {key} {'; '.join(parts)}"


@dataclass
class Comparison:
    """Result for one table."""

    table: str
    rows: int = 0
    """Number of rows compared, on the node that has the most."""
    differences: list[Difference] = field(default_factory=list)
    busy: int = 0
    """Number of rows that differed at each look and were written between the looks."""
    problem: str | None = None
    """Reason why rows could not be named, although the tables differ."""
    earlier: str | None = None
    """Description of the rows that an earlier, interrupted comparison has looked at."""
    is_complete: bool = True
    """False if the comparison stopped because there are too many differences."""

    @property
    def agrees(self) -> bool:
        """True if no difference was found."""
        return not self.differences and self.problem is None

    @property
    def findings(self) -> list[str]:
        """Line for each difference."""
        lines = [str(difference) for difference in self.differences]
        if self.problem:
            lines.append(f"{self.table}: {self.problem}")
        if not self.is_complete:
            lines.append(f"{self.table}: the rest was not compared, after {len(self.differences)} differences")
        return lines

    @property
    def doubts(self) -> list[str]:
        """Line if nothing can be said of some rows."""
        left = f"{self.table}: {numbered(self.busy, 'row')} left out, written between all looks"
        return [left] if self.busy else []


class Comparer:
    """Comparison of the rows of several nodes."""

    def __init__(
        self,
        connections: Mapping[str, Connection],
        *,
        wait_for_catchup: Callable[[], None],
        rate: float = 0.0,
        most: int = 100,
        on_range: Callable[[Comparison, Key | None], None] = lambda result, until: None,
    ) -> None:
        """Prepare a comparison, and let all nodes print values in the same way.

        Args:
            connections: a connection to each node, in autocommit, for a role that may read the tables.
            wait_for_catchup: waits until everything that was committed is visible on all nodes.
            rate: number of rows a second that each node may be asked to read; 0 means no limit.
            most: number of differences after which a table is left.
            on_range: called after each range with the result so far and the last key in it; None: the table's end.
        """
        self.connections = connections
        self.wait_for_catchup = wait_for_catchup
        self.rate = rate
        self.most = most
        self.on_range = on_range
        for connection in connections.values():
            print_alike(connection)

    def tables(self, names: Sequence[str] = ()) -> list[Table]:
        """Return these tables, by default all that any node has; raise ComparisonError if there is no such table."""
        found = self._everywhere(lambda node: find_tables(self.connections[node]))
        every = {name: table for tables in reversed(found.values()) for name, table in tables.items()}
        for name in names:
            if name not in every:
                raise ComparisonError(f"there is no table {name!r}; the tables are {', '.join(sorted(every))}")
        self._found = found
        return [every[name] for name in sorted(names or every)]

    def compare(self, table: Table, after: Key | None = None) -> Comparison:
        """Compare a table that `tables` returned, or the rows of it after a key.

        Raises:
            ComparisonError: a node does not answer, or its rows may not be read.
            TopologyError: the nodes do not catch up.
        """
        result = Comparison(str(table))
        if others := [node for node, tables in self._found.items() if tables.get(str(table)) != table]:
            result.problem = f"it is missing or has other columns on {', '.join(others)}"
        else:
            self.compare_into(result, dict.fromkeys(self.connections, table), after)
        return result

    def compare_into(self, result: Comparison, tables: Mapping[str, Table], after: Key | None = None) -> None:
        """Compare the tables of the nodes, which have the same columns and the same key; see `compare`."""
        if all(table.key for table in tables.values()):
            self._compare_ranges(next(iter(tables)), tables, (after, None), RANGE_ROWS, result)
        else:
            self._compare_whole(tables, result)

    def _compare_whole(self, tables: Mapping[str, Table], result: Comparison) -> None:
        for _ in range(LOOKS):
            digests = self._digests(tables, (None, None))
            result.rows = max(rows for rows, _ in digests.values())
            if len(set(digests.values())) == 1:
                self.on_range(result, None)
                return
            self.wait_for_catchup()
        counts = ", ".join(f"{rows} rows on {node}" for node, (rows, _) in digests.items())
        result.problem = f"its content differs ({counts}). Without a primary key, its rows cannot be told apart"

    def _compare_ranges(
        self, reference: str, tables: Mapping[str, Table], whole: Span, size: int, result: Comparison
    ) -> None:
        """Compare a range in ranges that have `size` rows on the node `reference`."""
        smallest = max(1, RANGE_ROWS // 10)
        after, last = whole
        while result.is_complete:
            started = time.monotonic()
            until = _end_of_range(self.connections[reference], tables[reference], (after, last), size)
            span = after, until or last
            digests = self._digests(tables, span)
            fullest = max(digests, key=lambda node: digests[node][0])
            rows, _ = digests[fullest]
            if len(set(digests.values())) == 1 or rows <= 2 * smallest:
                result.rows += rows
                if self.rate:
                    time.sleep(max(0.0, rows / self.rate - (time.monotonic() - started)))
                if len(set(digests.values())) > 1:
                    self._compare_rows(tables, span, result)
                self.on_range(result, span[1])
            else:
                # There are more rows than `size` where the node that the ranges were taken from lacks some.
                smaller = RANGE_ROWS if rows > 2 * RANGE_ROWS else smallest
                self._compare_ranges(fullest, tables, span, smaller, result)
            if until is None:
                return
            after = until

    def _compare_rows(self, tables: Mapping[str, Table], span: Span, result: Comparison) -> None:
        """Find the rows of a range that differ."""
        hashes = self._everywhere(lambda node: _hashes(self.connections[node], tables[node], span))
        suspects = [
            key
            for key in sorted(set().union(*hashes.values()))
            if len({found.get(key) for found in hashes.values()}) > 1
        ]
        while suspects and result.is_complete:
            some, suspects = suspects[: self.most], suspects[self.most :]
            for difference in self.settle(tables, some, result):
                # Two keys that are printed differently can be equal, such as 1.0 and 1.00.
                if difference.versions not in [known.versions for known in result.differences]:
                    result.differences.append(difference)
            result.is_complete = len(result.differences) < self.most

    def settle(self, tables: Mapping[str, Table], keys: Sequence[Key], result: Comparison) -> Iterator[Difference]:
        """Yield the rows that differ although the nodes have caught up and nothing has changed them meanwhile."""
        before = self._look_up(tables, keys)
        unsettled = set(range(len(keys)))
        for _ in range(LOOKS):
            self.wait_for_catchup()
            now = self._look_up(tables, keys)
            for number in sorted(unsettled):
                versions = {node: rows.get(number) for node, rows in now.items()}
                if are_alike(versions):
                    unsettled.remove(number)
                elif versions == {node: rows.get(number) for node, rows in before.items()}:
                    unsettled.remove(number)
                    names = (column.name for column in tables[next(iter(tables))].key)
                    yield Difference(result.table, dict(zip(names, keys[number], strict=True)), versions)
            if not unsettled:
                return
            before = now
        result.busy += len(unsettled)

    def _digests(self, tables: Mapping[str, Table], span: Span) -> dict[str, tuple[int, str]]:
        return self._everywhere(lambda node: _digest(self.connections[node], tables[node], span))

    def _look_up(self, tables: Mapping[str, Table], keys: Sequence[Key]) -> dict[str, dict[int, Version]]:
        return self._everywhere(lambda node: look_up(self.connections[node], tables[node], keys))

    def _everywhere(self, read: Callable[[str], T]) -> dict[str, T]:
        """Call a function with the name of each node, all at once."""
        found = {}
        with ThreadPoolExecutor(len(self.connections)) as threads:
            running = {node: threads.submit(read, node) for node in self.connections}
            for node, result in running.items():
                try:
                    found[node] = result.result()
                except DBAPIError as error:
                    raise ComparisonError(f"{node}: {first_line(error)}") from error
        return found


def are_alike(versions: Mapping[str, Version | None]) -> bool:
    """Return True if all nodes have the same values, or all have no row."""
    values = [version and version.values for version in versions.values()]
    return all(value == values[0] for value in values)


def print_alike(connection: Connection) -> None:
    """Let a session print values of the same type and content in one way, and read rows without a policy."""
    for setting in _PRINT_ALIKE:
        connection.exec_driver_sql(f"SET {setting}")


def lock_rows(connection: Connection, table: Table, keys: Sequence[Key]) -> dict[int, Version]:
    """Return the rows that have these keys, by their numbers in the list, locked until the transaction ends."""
    return look_up(connection, table, keys, "FOR UPDATE OF t")


_PRINT_ALIKE = (
    "TimeZone = 'UTC'",
    "DateStyle = 'ISO, YMD'",
    "IntervalStyle = 'postgres'",
    "extra_float_digits = 3",
    "bytea_output = 'hex'",
    "xmlbinary = 'base64'",
    "lc_monetary = 'C'",
    # A query that a policy would take rows from is an error.
    "row_security = off",
)

_TABLES = """
    SELECT nspname, relname, relkind = 'p', reltuples,
           (SELECT array_agg(ARRAY[attname, format_type(atttypid, atttypmod)] ORDER BY attname)
            FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''),
           (SELECT array_agg(ARRAY[attname, format_type(atttypid, atttypmod)] ORDER BY place)
            FROM pg_index, unnest(indkey) WITH ORDINALITY AS k (number, place)
            JOIN pg_attribute ON attnum = number
            WHERE indrelid = c.oid AND indisprimary AND attrelid = c.oid AND place <= indnkeyatts)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE relkind IN ('r', 'p') AND NOT relispartition AND relpersistence = 'p'
      AND nspname !~ '^(pg_|_verify_)' AND nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 1259 AND objid = c.oid AND deptype = 'e')
"""


def find_tables(connection: Connection) -> dict[str, Table]:
    """Return the tables of users, by their names; those of the schema `public` without it."""
    tables = {}
    for schema, name, is_partitioned, estimate, columns, key in connection.exec_driver_sql(_TABLES):
        if schema not in Topology.system_schemas and columns:
            table = Table(schema, name, _columns(columns), _columns(key), is_partitioned, estimate)
            tables[str(table)] = table
    return tables


def _columns(found: Sequence[Sequence[str]] | None) -> tuple[Column, ...]:
    return tuple(Column(name, type_) for name, type_ in found or ())


def _quote(name: str) -> str:
    """Quote a name; all names in the queries below are quoted, and all values are parameters."""
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


def _source(table: Table) -> str:
    # The rows of a table that inherits from this one are rows of that table.
    only = "" if table.is_partitioned else "ONLY "
    return f"{only}{_quote(table.schema)}.{_quote(table.name)} AS t"


def _list(columns: Iterable[Column], form: str = "t.{}") -> str:
    return ", ".join(form.format(_quote(column.name)) for column in columns)


def _key_from_text(table: Table) -> str:
    return ", ".join(f"CAST(%s AS {column.type.replace('%', '%%')})" for column in table.key)


def _within(table: Table, span: Span) -> tuple[str, Key]:
    """Return the condition of a range, which has its last key and not the one before it, and its parameters."""
    ends = [(sign, key) for sign, key in zip((">", "<="), span, strict=True) if key is not None]
    key, given = _list(table.key), _key_from_text(table)
    condition = " AND ".join(f"({key}) {sign} ({given})" for sign, _ in ends)
    return condition or "true", tuple(value for _, end in ends for value in end)


def _hash(table: Table) -> str:
    """Return the hash of a row: each value is hashed with the hash of those before it as its seed."""
    found = "0"
    for first in range(0, len(table.columns), _MASK_BITS):
        some = table.columns[first : first + _MASK_BITS]
        # NULL is hashed as '', so the seed tells them apart.
        nulls = (f"CASE WHEN t.{_quote(one.name)} IS NULL THEN {1 << bit} ELSE 0 END" for bit, one in enumerate(some))
        found = f"{found} # ({' + '.join(nulls)})"
        for column in some:
            found = f"hashtextextended(coalesce({_printed(column)}, '') COLLATE \"C\", {found})"
    return found


def _printed(column: Column) -> str:
    # A cast that somebody has made could print two values alike; ROW prints every type as it is, and takes longer.
    name, kind = f"t.{_quote(column.name)}", column.type.partition("(")[0]
    return f"{name}::text" if kind in _PRINTED_BY_CAST else f"ROW({name})::text"


_MASK_BITS = 60

_PRINTED_BY_CAST = {
    *("bigint", "integer", "smallint", "numeric", "double precision", "real", "boolean", "uuid"),
    *("text", "character varying", "date", "timestamp without time zone", "timestamp with time zone"),
    *("jsonb", "json", "bytea"),
}
"""Types whose cast to text, which is part of the server, prints different values differently."""


def _digest(connection: Connection, table: Table, span: Span) -> tuple[int, str]:
    """Return the number of rows in a range, and a digest of them that does not depend on their order."""
    condition, parameters = _within(table, span)
    aggregates = f"count(*), coalesce(sum({_hash(table)}), 0)::text"
    query = f"SELECT {aggregates} FROM {_source(table)} WHERE {condition}"  # noqa: S608
    rows, digest = connection.exec_driver_sql(query, parameters).one()
    return rows, digest


def _end_of_range(connection: Connection, table: Table, span: Span, size: int) -> Key | None:
    """Return the last key of the first `size` rows; None if there are fewer."""
    condition, parameters = _within(table, span)
    query = (
        f"SELECT {_list(table.key, 't.{}::text')} FROM {_source(table)} WHERE {condition} "  # noqa: S608
        f"ORDER BY {_list(table.key)} OFFSET {size - 1} LIMIT 1"
    )
    found = connection.exec_driver_sql(query, parameters).one_or_none()
    return None if found is None else tuple(found)


def _hashes(connection: Connection, table: Table, span: Span) -> dict[Key, int]:
    """Return the hash of each row in a range by its key."""
    condition, parameters = _within(table, span)
    columns = f"{_hash(table)}, {_list(table.key, 't.{}::text')}"
    query = f"SELECT {columns} FROM {_source(table)} WHERE {condition}"  # noqa: S608
    return {tuple(key): digest for digest, *key in connection.exec_driver_sql(query, parameters)}


def look_up(connection: Connection, table: Table, keys: Sequence[Key], lock: str = "") -> dict[int, Version]:
    """Return the rows that have these keys, by their numbers in the list."""
    wanted = ", ".join(f"({number}, {_key_from_text(table)})" for number in range(len(keys)))
    names = ", ".join(f"k{number}" for number in range(len(table.key)))
    matches = " AND ".join(f"t.{_quote(column.name)} = wanted.k{number}" for number, column in enumerate(table.key))
    query = (
        f"SELECT wanted.number, times.written::text, o.roname, {_list(table.columns, 't.{}::text')} "  # noqa: S608
        f"FROM {_source(table)} JOIN (VALUES {wanted}) AS wanted (number, {names}) ON {matches} "
        "CROSS JOIN LATERAL pg_xact_commit_timestamp_origin("
        "CASE WHEN current_setting('track_commit_timestamp')::boolean THEN t.xmin END) AS times (written, origin) "
        f"LEFT JOIN pg_replication_origin AS o ON o.roident = times.origin {lock}"
    )
    columns = [column.name for column in table.columns]
    rows = connection.exec_driver_sql(query, tuple(value for key in keys for value in key))
    return {
        number: Version(dict(zip(columns, values, strict=True)), written, origin)
        for number, written, origin, *values in rows
    }
