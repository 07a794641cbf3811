"""COPY a chunk through psycopg.

COPY bypasses SQLAlchemy, so this module applies its bind processors and wraps driver errors. COPY also converts
nothing: in binary format a value that does not fit its column arrives as another one, since psycopg cuts 2**32 + 5
down to 5. So the server's catalogue decides about the format, and values that COPY would falsify are found beforehand.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import psycopg
from psycopg import sql
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.exc import DBAPIError

from ..backend import Backend
from ._chunks import BadRow, Chunk, Shape, Values


class Unfit(Exception):
    """A value that COPY would refuse or falsify, though an INSERT may convert it."""


# The names below are those of pg_type, with "enum" for every enumeration.

_BINARY = re.compile(
    "bool|bpchar|bytea|date|enum|float8|int2|int4|int8|interval|json|jsonb|numeric|text|time|timestamp|timestamptz"
    "|timetz|uuid|varchar|_bytea|_float8|_int8|_interval|_numeric|_text|_timestamptz|_uuid|_varchar"
)
"""Types that psycopg writes in binary without loss. Not float4 (1e300 becomes infinite), not _int4 (cut to 32 bits)."""

_INSERT = re.compile("_date|_timestamp|daterange|datemultirange|tsrange|tsmultirange")
"""Types whose elements would need a guard; columns of these take an INSERT."""


_GUARDS: Mapping[str, Callable[[Any], bool]] = {
    "int2": lambda value: value is None or (isinstance(value, int) and -(2**15) <= value < 2**15),
    "int4": lambda value: value is None or (isinstance(value, int) and -(2**31) <= value < 2**31),
    "bool": lambda value: value is None or isinstance(value, bool),
    # An INSERT converts to the session's time zone first.
    "date": lambda value: not isinstance(value, datetime),
    "timestamp": lambda value: getattr(value, "tzinfo", None) is None,
}
"""Tests that a value passes if COPY stores it as an INSERT would; COPY itself would not complain."""

_TYPES = text("""
    WITH RECURSIVE base AS (
        SELECT attname, atttypid FROM pg_attribute
        WHERE attrelid = CAST(CAST(:table AS text) AS regclass) AND attnum > 0 AND NOT attisdropped
      UNION ALL
        SELECT base.attname, t.typbasetype FROM base JOIN pg_type AS t ON t.oid = base.atttypid WHERE t.typtype = 'd'
    )
    SELECT base.attname, CASE WHEN t.typtype = 'e' THEN 'enum' ELSE CAST(t.typname AS text) END,
           CASE WHEN t.typtype = 'e' OR t.typname = 'bpchar' THEN CAST(25 AS oid) ELSE t.oid END
    FROM base JOIN pg_type AS t ON t.oid = base.atttypid
    WHERE t.typtype <> 'd'
""")
"""Name and type of each column, and the OID of its values in binary format, where enum and bpchar are text (25).
A domain counts as the type it is made of."""


@dataclass(frozen=True)
class CopyStatement:
    """COPY for the rows of one shape."""

    text: str
    oids: tuple[int, ...]  # OIDs of the columns' types; empty in text format, where the server parses the text
    processors: tuple[Callable[[Any], Any] | None, ...]
    guards: tuple[Callable[[Any], bool] | None, ...]

    @classmethod
    def of(cls, shape: Shape, connection: Connection) -> Self | None:
        """Build the statement from the server's catalogue; return None if the rows take an INSERT."""
        if shape.needs_insert or connection.dialect.driver != "psycopg":
            return None
        dialect = connection.dialect
        types = [column.type.dialect_impl(dialect) for column in shape.columns]
        if any(type_.bind_expression(bindparam("value", type_=type_)) is not None for type_ in types):
            return None
        schema = connection.schema_for_object(shape.table)
        # Quoted by psycopg, because the dialect doubles each %.
        table = sql.Identifier(*([schema] if schema else []), shape.table.name).as_string(None)
        known = {name: (kind, oid) for name, kind, oid in connection.execute(_TYPES, {"table": table})}
        if any(column.name not in known or _INSERT.fullmatch(known[column.name][0]) for column in shape.columns):
            return None
        kinds, oids = zip(*[known[column.name] for column in shape.columns], strict=True)
        binary = Backend.binary_copy and all(map(_BINARY.fullmatch, kinds))
        names = ", ".join(sql.Identifier(column.name).as_string(None) for column in shape.columns)
        return cls(
            f"COPY {table} ({names}) FROM STDIN{' (FORMAT BINARY)' if binary else ''}",
            oids if binary else (),
            tuple(type_.bind_processor(dialect) for type_ in types),
            tuple(map(_GUARDS.get, kinds)),
        )

    def send(self, connection: Connection, chunk: Chunk) -> None:
        """Copy a chunk, or raise `Unfit`."""
        rows = self._encoded(chunk)
        driver: Any = connection.connection.driver_connection
        with self._errors_as_sqlalchemy(connection), driver.cursor() as cursor, cursor.copy(self.text) as copy:
            if self.oids:
                copy.set_types(self.oids)
            try:
                for row in rows:
                    copy.write_row(row)
            except Exception as error:
                if driver.broken or getattr(error, "sqlstate", None):
                    raise
                raise Unfit(str(error)) from error

    def _encoded(self, chunk: Chunk) -> Iterable[Values]:
        """Return the values as the driver takes them."""
        if not any(self.processors) and not any(self.guards):
            return chunk.values
        columns = list(zip(*chunk.values, strict=True))
        for number, (processor, guard) in enumerate(zip(self.processors, self.guards, strict=True)):
            name = chunk.shape.columns[number].name
            if processor:
                processed: list[Any] = []
                try:
                    for value in columns[number]:
                        processed.append(processor(value))
                except Exception as error:
                    raise BadRow(f"{name}: {error}", chunk.rows[len(processed) :][:1]) from error
                columns[number] = tuple(processed)
            if guard and not all(map(guard, columns[number])):
                raise Unfit(f"{name} has a value of another type or size")
        return zip(*columns, strict=True)

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
