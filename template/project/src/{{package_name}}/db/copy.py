"""How a chunk goes through COPY: past SQLAlchemy, so its types are asked and its errors are made here.

COPY converts nothing. In binary form a value that does not fit its column arrives as another one: psycopg cuts 2**32 + 5 down
to 5. So what the server's catalogue says about a column decides about the format, and what is at risk is looked at first.
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

from . import backend
from .chunks import BadRow, Chunk, Shape, Values


class Unfit(Exception):
    """A value that COPY would refuse or falsify, though an INSERT may convert it."""


def _is_int(bits: int) -> Callable[[Any], bool]:
    bound = 1 << bits - 1
    return lambda value: value is None or (isinstance(value, int) and -bound <= value < bound)


# Names of types in pg_type, "enum" for all enumerations. What none of these knows goes by COPY in text format.

_BINARY = re.compile(
    "bool|bpchar|bytea|date|enum|float8|int2|int4|int8|interval|json|jsonb|numeric|text|time|timestamp|timestamptz|timetz|uuid"
    "|varchar|_bytea|_float8|_int8|_interval|_numeric|_text|_timestamptz|_uuid|_varchar"
)
"""Those whose binary form psycopg writes right. Not float4: 1e300 becomes infinite. Not _int4: the upper bits are cut off."""

_GUARDS: Mapping[str, Callable[[Any], bool]] = {
    "int2": _is_int(16),
    "int4": _is_int(32),
    "bool": lambda value: value is None or isinstance(value, bool),
    # An INSERT converts to the session's time zone first.
    "date": lambda value: not isinstance(value, datetime),
    "timestamp": lambda value: getattr(value, "tzinfo", None) is None,
}
"""Whether a value comes through COPY as it would through INSERT, where COPY would not complain."""

_INSERT = re.compile("_date|_timestamp|daterange|datemultirange|tsrange|tsmultirange")
"""Those that hold what would need such a guard."""

_TYPES = text("""
    WITH RECURSIVE base AS (
        SELECT attname, atttypid FROM pg_attribute
        WHERE attrelid = CAST(:table AS regclass) AND attnum > 0 AND NOT attisdropped
      UNION ALL
        SELECT base.attname, t.typbasetype FROM base JOIN pg_type AS t ON t.oid = base.atttypid WHERE t.typtype = 'd'
    )
    SELECT base.attname,
           CASE WHEN t.typtype = 'e' THEN 'enum' ELSE t.typname END,
           -- As which type it travels: these two look like text.
           CASE WHEN t.typtype = 'e' OR t.typname = 'bpchar' THEN CAST('text' AS regtype) ELSE t.oid END
    FROM base JOIN pg_type AS t ON t.oid = base.atttypid
    WHERE t.typtype <> 'd'
""")


@dataclass(frozen=True)
class Copy:
    """How the rows of one shape are copied."""

    statement: str
    oids: tuple[int, ...]
    """Types of the columns on the wire; empty in text format, where the server reads them from the text."""
    processors: tuple[Callable[[Any], Any] | None, ...]
    guards: tuple[Callable[[Any], bool] | None, ...]

    @classmethod
    def of(cls, shape: Shape, connection: Connection) -> Self | None:
        """Look the columns up on the server; None if they take an INSERT."""
        if shape.has_sql_defaults or not can_copy(connection):
            return None
        dialect = connection.dialect
        types = [column.type.dialect_impl(dialect) for column in shape.columns]
        if any(type_.bind_expression(bindparam("value", type_=type_)) is not None for type_ in types):
            return None
        schema = connection.schema_for_object(shape.table)
        # Not quoted by the dialect, whose statements have a doubled %.
        table = sql.Identifier(*([schema] if schema else []), shape.table.name).as_string(None)
        known = {name: (kind, oid) for name, kind, oid in connection.execute(_TYPES, {"table": table})}
        if any(column.name not in known or _INSERT.fullmatch(known[column.name][0]) for column in shape.columns):
            return None
        kinds, oids = zip(*[known[column.name] for column in shape.columns], strict=True)
        binary = backend.BINARY_COPY and all(map(_BINARY.fullmatch, kinds))
        names = ", ".join(sql.Identifier(column.name).as_string(None) for column in shape.columns)
        return cls(
            f"COPY {table} ({names}) FROM STDIN{' (FORMAT BINARY)' if binary else ''}",
            oids if binary else (),
            tuple(type_.bind_processor(dialect) for type_ in types),
            tuple(_GUARDS.get(kind) for kind in kinds),
        )

    def send(self, connection: Connection, chunk: Chunk) -> None:
        """Copy a chunk.

        Raises:
            BadRow: a type of SQLAlchemy refuses a value.
            Unfit: COPY does, or would falsify it.
            DBAPIError: the server refuses.
        """
        rows = self._encoded(chunk)
        driver: Any = connection.connection.driver_connection
        with (
            _errors_as_sqlalchemy(connection, self.statement),
            driver.cursor() as cursor,
            cursor.copy(self.statement) as copy,
        ):
            if self.oids:
                copy.set_types(self.oids)
            write = copy.write_row
            try:
                for row in rows:
                    write(row)
            except Exception as error:
                if driver.broken or getattr(error, "sqlstate", None):
                    raise
                raise Unfit(str(error)) from error

    def _encoded(self, chunk: Chunk) -> Iterable[Values]:
        """The values as the driver takes them."""
        if not any(self.processors) and not any(self.guards):
            return chunk.values
        columns = list(zip(*chunk.values, strict=True))
        for number, (processor, guard) in enumerate(zip(self.processors, self.guards, strict=True)):
            name = chunk.shape.columns[number].name
            if processor:
                columns[number] = _processed(columns[number], processor, name, chunk.first)
            if guard and not all(map(guard, columns[number])):
                raise Unfit(f"{name} has a value of another type or size")
        return zip(*columns, strict=True)


def _processed(values: Values, processor: Callable[[Any], Any], name: str, first: int) -> Values:
    processed: list[Any] = []
    try:
        for value in values:
            processed.append(processor(value))
    except Exception as error:
        number = first + len(processed)
        raise BadRow(f"{name}: {error}", range(number, number + 1)) from error
    return tuple(processed)


def can_copy(connection: Connection) -> bool:
    """Whether the server knows COPY, and this driver's way to it."""
    return backend.COPY and connection.dialect.driver == "psycopg"


@contextmanager
def _errors_as_sqlalchemy(connection: Connection, statement: str) -> Iterator[None]:
    """Raise errors of the driver as SQLAlchemy does, for that is how they are told apart."""
    dialect: Any = connection.dialect
    driver = connection.connection.driver_connection
    try:
        yield
    except psycopg.Error as error:
        is_gone = dialect.is_disconnect(error, driver, None)
        if is_gone:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement, None, error, psycopg.Error, connection_invalidated=is_gone, dialect=dialect
        ) from error
