"""COPY a chunk through psycopg, where COPY stores what an INSERT would.

COPY bypasses SQLAlchemy, so this module applies its bind processors and wraps driver errors. COPY also converts
otherwise than an INSERT does, where the driver sends a parameter of a type of its own and the server casts it: a UUID
in a text column gets no hyphens, and in binary format 2**32 + 5 arrives in an integer column as 5. So a chunk is copied
only if each of its values has a type that is known to arrive alike; the server's catalogue names the columns' types.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import IntEnum
from functools import partial
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, Self, TypeAlias
from uuid import UUID

import psycopg
import sqlalchemy as sa
from psycopg import sql
from psycopg.types.json import Json, Jsonb
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine

from ..backend import Backend
from ._chunks import BadRow, Chunk, Shape, Values
from ._stored import stored_type

Column: TypeAlias = Callable[[], Iterable[Any]]  # reads the values of a column of a chunk


class Way(IntEnum):
    """Ways to write a chunk, the fastest one last."""

    INSERT = 0
    TEXT = 1
    BINARY = 2


@dataclass(frozen=True)
class Rule:
    """Values that COPY stores in a column of one type as an INSERT does."""

    model: type[TypeEngine[Any]]  # type that the INSERT casts to
    values: tuple[type, ...]  # types of the values; their subclasses are others
    fits: Callable[[Sequence[Any]], bool] | None = None  # asked about values of these types


_ZONE = attrgetter("tzinfo")
_RULES: Mapping[str, Rule] = {
    "bool": Rule(sa.Boolean, (bool,)),
    "bpchar": Rule(sa.String, (str,)),
    "bytea": Rule(sa.LargeBinary, (bytes, psycopg.Binary)),
    "date": Rule(sa.Date, (date,)),
    "enum": Rule(sa.Enum, (str,)),
    # Beyond these limits, psycopg makes zero or infinity of a number.
    "float4": Rule(sa.Float, (float,), lambda values: all(not x or 1.2e-38 <= abs(x) <= 3.4e38 for x in values)),
    "float8": Rule(sa.Float, (float,)),
    "int2": Rule(sa.Integer, (int,), lambda values: min(values) >= -(2**15) and max(values) < 2**15),
    "int4": Rule(sa.Integer, (int,), lambda values: min(values) >= -(2**31) and max(values) < 2**31),
    "int8": Rule(sa.Integer, (int,)),
    "interval": Rule(INTERVAL, (timedelta,)),
    "json": Rule(sa.JSON, (Json, Jsonb)),
    "jsonb": Rule(sa.JSON, (Json, Jsonb)),
    "numeric": Rule(sa.Numeric, (Decimal, int)),
    "text": Rule(sa.String, (str,)),
    "time": Rule(sa.Time, (time,), lambda values: not any(map(_ZONE, values))),
    "timestamp": Rule(sa.DateTime, (datetime,), lambda values: not any(map(_ZONE, values))),
    "timestamptz": Rule(sa.DateTime, (datetime,), lambda values: all(map(_ZONE, values))),
    "timetz": Rule(sa.Time, (time,), lambda values: all(map(_ZONE, values))),
    "uuid": Rule(sa.Uuid, (UUID,)),
    "varchar": Rule(sa.String, (str,)),
}
"""Rules by the name of the column's type in pg_type, or "enum" for every enumeration; arrays have those of elements."""

_TYPES = text("""
    WITH RECURSIVE base AS (
        SELECT a.attname, a.atttypid FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
        WHERE a.attrelid = CAST(CAST(:table AS text) AS regclass) AND a.attnum > 0 AND NOT a.attisdropped
        AND NOT c.relhasrules
      UNION ALL
        SELECT base.attname, t.typbasetype FROM base JOIN pg_type AS t ON t.oid = base.atttypid WHERE t.typtype = 'd'
    )
    SELECT base.attname,
           CASE WHEN t.typtype = 'e' THEN 'enum' WHEN e.typtype = 'e' THEN '_enum' ELSE CAST(t.typname AS text) END,
           CASE WHEN t.typtype = 'e' OR t.typname = 'bpchar' THEN CAST(25 AS oid) ELSE t.oid END
    FROM base JOIN pg_type AS t ON t.oid = base.atttypid
    LEFT JOIN pg_type AS e ON e.oid = t.typelem AND t.typcategory = 'A'
    WHERE t.typtype <> 'd'
""")
"""Name and type of each column, and the OID of its values in binary format, where enum and bpchar are text (25).
A domain counts as the type it is made of. No rows for a view or a table with rules, which COPY would ignore."""


@dataclass(frozen=True)
class Target:
    """Column that COPY fills."""

    name: str
    oid: int
    bind: Callable[[Any], Any] | None
    ways: Mapping[type, Way]  # by the type of a value; values of other types take an INSERT
    rule: Rule | None  # for an array that of its elements
    is_array: bool
    is_float: bool

    @classmethod
    def of(cls, column: sa.Column[Any], type_: TypeEngine[Any], known: tuple[str, int], dialect: sa.Dialect) -> Self:
        """Compare a column of the model with that of the server."""
        kind, oid = known
        stored = stored_type(type_, dialect)
        is_array = isinstance(stored, sa.ARRAY)
        element = stored.item_type.dialect_impl(dialect) if isinstance(stored, sa.ARRAY) else stored
        name = kind.removeprefix("_") if is_array else kind
        rule = _RULES.get(name) if kind.startswith("_") is is_array else None
        zoned = bool(getattr(element, "timezone", False))
        # The class does not tell: up to SQLAlchemy 2.0, the dialect's type of floats is a Numeric.
        is_float = element.__visit_name__.lower() in ("float", "double", "double_precision", "real")
        is_model = rule and isinstance(sa.Float() if is_float else element, rule.model)
        if not rule or not is_model or is_float is not (rule.model is sa.Float) or zoned is not name.endswith("tz"):
            rule = None
        elif rule.model is sa.Integer:
            # The INSERT refuses what one of the two types cannot hold.
            small, big = isinstance(element, sa.SmallInteger), isinstance(element, sa.BigInteger)
            rule = _RULES[min(name, "int2" if small else "int8" if big else "int4")]
        ways: dict[type, Way] = {type(None): Way.BINARY}
        # The server converts text, and without a rule an INSERT does so by way of the model's type.
        # A cast to BIT(3) cuts what the column refuses.
        if rule or not getattr(stored, "render_bind_cast", False) or stored.__visit_name__.lower() == kind != "bit":
            ways[str] = Way.TEXT
        if rule and is_array:
            ways[list] = Way.TEXT if name in ("enum", "bpchar") else Way.BINARY
        elif rule:
            ways |= dict.fromkeys(rule.values, Way.BINARY)
        bind = type_.dialect_impl(dialect).bind_processor(dialect)
        return cls(column.name, oid, bind, ways, rule, is_array, is_float)

    def way(self, column: Column) -> Way:
        """Return the fastest way that stores the values of a column as an INSERT does."""
        way = min(self.ways.get(kind, Way.INSERT) for kind in set(map(type, column())))
        if way is Way.INSERT or self.rule is None:
            return way
        if self.is_array:
            values = list(chain.from_iterable(value for value in column() if type(value) is list))
            kinds = set(map(type, values)) - {type(None)}
            # Lists in lists and elements of several types take an INSERT.
            if len(kinds) > 1 or not kinds.issubset(self.rule.values):
                return Way.INSERT
            column = partial(iter, values)
        ruled = [value for value in column() if type(value) in self.rule.values] if self.rule.fits else []
        return way if not ruled or not self.rule.fits or self.rule.fits(ruled) else Way.INSERT

    def missing(self, value: Any) -> bool:
        """Return True for a missing value of another library: pandas' NaT and NA, and NaN outside of a Float column."""
        if isinstance(value, Range):
            value = [value.lower, value.upper]
        if isinstance(value, list | tuple | Multirange):
            return any(map(self.missing, value))
        if isinstance(value, Decimal) or (isinstance(value, float) and self.is_float):
            return False
        try:
            return bool(value != value)
        except TypeError:
            return True
        except ValueError:
            return False


@dataclass(frozen=True)
class CopyStatement:
    """COPY for the rows of one shape."""

    text: str
    targets: tuple[Target, ...]
    best: Way  # fastest way that the table allows

    @classmethod
    def of(cls, shape: Shape, connection: Connection) -> Self | None:
        """Build the statement from the server's catalogue; return None if there is another driver."""
        dialect = connection.dialect
        if dialect.driver != "psycopg":
            return None
        schema = connection.schema_for_object(shape.table)
        # Quoted by psycopg, because the dialect doubles each %.
        table = sql.Identifier(*([schema] if schema else []), shape.table.name).as_string(None)
        known = {name: (kind, oid) for name, kind, oid in connection.execute(_TYPES, {"table": table})}
        best = Way.BINARY if Backend.binary_copy else Way.TEXT
        if shape.needs_insert or any(column.name not in known for column in shape.columns):
            best = Way.INSERT
        targets = []
        for column, type_ in zip(shape.columns, shape.types, strict=True):
            if type_.dialect_impl(dialect).bind_expression(bindparam("value", type_=type_)) is not None:
                best = Way.INSERT
            targets.append(Target.of(column, type_, known.get(column.name, ("", 0)), dialect))
        names = ", ".join(sql.Identifier(column.name).as_string(None) for column in shape.columns)
        return cls(f"COPY {table} ({names}) FROM STDIN", tuple(targets), best)

    def prepare(self, chunk: Chunk) -> tuple[Way, Iterable[Values]]:
        """Return the way to write a chunk, and its values as the driver takes them.

        Raises:
            BadRow: a column's type refuses a value, or it is a missing value of another library.
        """
        best = self.best
        columns: list[Column] = []
        for number, target in enumerate(self.targets):
            column: Column = partial(map, itemgetter(number), chunk.values)
            if target.bind:
                bound: list[Any] = []
                try:
                    for value in column():
                        bound.append(target.bind(value))
                except Exception as error:
                    raise BadRow(f"{target.name}: {error}", chunk.rows[len(bound) :][:1]) from error
                column = partial(iter, bound)
            if (way := target.way(column)) is Way.INSERT:
                for row, value in zip(chunk.rows, column(), strict=True):
                    if target.missing(value):
                        reason = f"{target.name}: {value!r} is a missing value of another library; use None"
                        raise BadRow(reason, range(row, row + 1))
            best = min(best, way)
            columns.append(column)
        if best is Way.TEXT and any(target.rule is _RULES["float4"] for target in self.targets):
            # Text would be rounded once, not twice.
            best = Way.INSERT
        is_bound = any(target.bind for target in self.targets)
        return best, zip(*[column() for column in columns], strict=True) if is_bound else chunk.values

    def send(self, connection: Connection, chunk: Chunk, way: Way, rows: Iterable[Values]) -> None:
        """Copy the prepared values of a chunk."""
        driver: Any = connection.connection.driver_connection
        statement = self.text + (" (FORMAT BINARY)" if way is Way.BINARY else "")
        written = 0
        with self._errors_as_sqlalchemy(connection), driver.cursor() as cursor, cursor.copy(statement) as copy:
            if way is Way.BINARY:
                copy.set_types([target.oid for target in self.targets])
            try:
                for row in rows:
                    copy.write_row(row)
                    written += 1
            except Exception as error:
                if driver.broken or getattr(error, "sqlstate", None):
                    raise
                raise BadRow(str(error), chunk.rows[written : written + 1]) from error

    @contextmanager
    def _errors_as_sqlalchemy(self, connection: Connection) -> Iterator[None]:
        """Raise the driver's errors as SQLAlchemy would, because the retries classify those."""
        dialect: Any = connection.dialect
        try:
            yield
        except psycopg.Error as error:
            is_gone = dialect.is_disconnect(error, connection.connection.driver_connection, None)
            if is_gone:
                connection.invalidate(error)
            raise DBAPIError.instance(
                self.text, None, error, psycopg.Error, connection_invalidated=is_gone, dialect=dialect
            ) from error
