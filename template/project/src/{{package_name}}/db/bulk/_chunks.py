"""Cut the rows of a load into chunks of one shape; values are the caller's, completed by the columns' defaults."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, count
from operator import itemgetter
from typing import Any, Self, TypeAlias

from sqlalchemy import ARRAY, JSON, Column, LargeBinary, String, Table, inspect
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.schema import CallableColumnDefault, ScalarElementColumnDefault

from ..errors import DistributedSQLError, MisuseError

Values: TypeAlias = tuple[Any, ...]
"""Values of one row, in the order of the shape's columns."""

Default: TypeAlias = Callable[[Any], Any]
"""Function that computes a default; its argument is a `_CurrentRow`."""

_SIZED = (String, LargeBinary, JSON, ARRAY)
"""Types whose values can have any size; values of other types take a few bytes, which the number of rows bounds."""


class BadRow(DistributedSQLError):
    """A row cannot be loaded: its keys differ from the first row's, or a value violates a type or a constraint."""

    def __init__(self, reason: str, rows: range, *, sqlstate: str | None = None) -> None:
        where = f"row {rows[0]}" if len(rows) == 1 else f"rows {rows[0]} to {rows[-1]}"
        super().__init__(f"{where}: {reason}", sqlstate=sqlstate)
        self.reason = reason
        self.rows = rows
        """Number of the row, from 1, or the rows it is among: the server checks some constraints per chunk."""


@dataclass(frozen=True)
class Shape:
    """Columns that a load fills: those that its first row names, then those that have defaults."""

    table: Table
    names: tuple[str, ...]
    """Keys of a row, in the order of the first columns."""
    columns: tuple[Column[Any], ...]
    defaults: tuple[Default, ...]
    """Default functions of the columns after the named ones."""
    needs_insert: bool
    """True if a default is an SQL expression, which COPY cannot compute."""

    @classmethod
    def of(cls, model: type[Any] | Table, first: Mapping[str, Any]) -> Self:
        """Return the shape that the first row sets.

        Raises:
            BadRow: The row has no names, a name that the table lacks, or two names of one column.
            MisuseError: The model spans several tables.
        """
        table, by_name, defaults = _describe(model)
        if unknown := [str(name) for name in first if name not in by_name]:
            raise BadRow(f"{table.name} has no {' and no '.join(unknown)}; it has {', '.join(by_name)}", range(1, 2))
        # Sorted, so that the order of a row's keys does not matter.
        names = sorted(first, key=lambda name: by_name[name].name)
        named = [by_name[name] for name in names]
        if len(set(named)) < max(len(names), 1):
            raise BadRow("it names a column twice" if names else "it names no column", range(1, 2))
        others = set(table.columns).difference(named)
        filled = [column for column in defaults if column in others]
        needs_insert = any(map(_is_computed, others.difference(defaults)))
        return cls(table, tuple(names), (*named, *filled), tuple(defaults[column] for column in filled), needs_insert)

    def complete(self, values: list[Values]) -> list[Values]:
        """Append the defaults. Called once per chunk, so that a chunk that is run again has the same values."""
        if not self.defaults:
            return values
        row = _CurrentRow([column.key for column in self.columns])
        completed = []
        for row.values in values:
            completed.append((*row.values, *[default(row) for default in self.defaults]))
        return completed


@dataclass(frozen=True)
class Chunk:
    """Rows that one transaction loads."""

    number: int
    """Number of the chunk, from 1."""
    rows: range
    """Numbers of its rows within the load, from 1."""
    shape: Shape
    values: list[Values]
    digest: str | None
    """Hash of the rows; None for a load without a name."""


def chunks(
    model: type[Any] | Table, rows: Iterable[Mapping[str, Any]], *, max_rows: int, max_bytes: int, with_digest: bool
) -> Iterator[Chunk]:
    """Cut `rows` into chunks of `max_rows` rows or about `max_bytes` bytes; read no further than the yielded chunk."""
    remaining = iter(rows)
    try:
        head = next(remaining)
    except StopIteration:
        return
    if not isinstance(head, Mapping):
        raise BadRow(f"it is a {type(head).__name__}, not a mapping from names to values", range(1, 2))
    shape = Shape.of(model, head)
    remaining = chain([head], remaining)
    first = 1
    for number in count(1):
        values = _read(remaining, shape, first, max_rows, max_bytes)
        if not values:
            return
        digest = _digest(shape, values) if with_digest else None
        yield Chunk(number, range(first, first + len(values)), shape, shape.complete(values), digest)
        first += len(values)


class _CurrentRow:
    """Argument of a default function: the documented part of SQLAlchemy's execution context."""

    def __init__(self, keys: list[str]) -> None:
        self._keys = keys
        self.values: Values = ()

    def get_current_parameters(self, isolate_multiinsert_groups: bool = True) -> dict[str, Any]:
        """Return the values of the row that the default is for."""
        return dict(zip(self._keys, self.values, strict=False))


def _describe(model: type[Any] | Table) -> tuple[Table, dict[str, Column[Any]], dict[Column[Any], Default]]:
    """Return the table of a model, its columns by each of their names, and the defaults that are computed here."""
    mapper: Mapper[Any] | None = None if isinstance(model, Table) else inspect(model)
    table = mapper.local_table if mapper else model
    tables = len(mapper.tables) if mapper else 1
    if not isinstance(table, Table) or tables > 1:
        raise MisuseError(f"{model} has {tables} tables: load each of them by itself")
    by_name = {column.name: column for column in table.columns}
    defaults: dict[Column[Any], Default] = {}
    for column in table.columns:
        if isinstance(column.default, ScalarElementColumnDefault):
            defaults[column] = _always(column.default.arg)
        elif isinstance(column.default, CallableColumnDefault):
            defaults[column] = column.default.arg
    if mapper:
        for attribute in mapper.column_attrs:
            if isinstance(first := attribute.columns[0], Column):
                by_name[attribute.key] = first
        if isinstance(mapper.polymorphic_on, Column):
            defaults[mapper.polymorphic_on] = _always(mapper.polymorphic_identity)
        if isinstance(mapper.version_id_col, Column) and callable(mapper.version_id_generator):
            defaults[mapper.version_id_col] = _always(mapper.version_id_generator(None))
    return table, by_name, defaults


def _always(value: Any) -> Default:
    return lambda _: value


def _is_computed(column: Column[Any]) -> bool:
    """Return True if the default is part of an INSERT; a sequence that the server reads by itself is not."""
    default = column.default
    return default is not None and not (default.is_sequence and column.server_default is not None)


def _read(rows: Iterator[Mapping[str, Any]], shape: Shape, first: int, max_rows: int, max_bytes: int) -> list[Values]:
    names = shape.names
    pick: Callable[[Mapping[str, Any]], Values] = itemgetter(*names)
    if len(names) == 1:
        pick = lambda row: (row[names[0]],)  # noqa: E731 - `itemgetter` of one name returns the bare value
    sized = [number for number, column in enumerate(shape.columns[: len(names)]) if isinstance(column.type, _SIZED)]
    values: list[Values] = []
    size = 0
    for row in rows:
        try:
            # The same number of keys, and all of ours: the same keys. Much cheaper than comparing them.
            if len(row) != len(names):
                raise KeyError
            picked = pick(row)
        except (KeyError, TypeError):
            found = ", ".join(map(str, row)) if isinstance(row, Mapping) else f"a {type(row).__name__}"
            number = first + len(values)
            raise BadRow(f"it has {found}; the first row has {', '.join(names)}", range(number, number + 1)) from None
        values.append(picked)
        for number in sized:
            size += _size(picked[number])
        if len(values) >= max_rows or size >= max_bytes:
            break
    return values


def _size(value: Any) -> int:
    """Return about how many bytes a value has: the characters of text, the length of the `repr` of nested values."""
    if isinstance(value, str | bytes):
        return len(value)
    return 0 if value is None else len(repr(value))


def _digest(shape: Shape, values: list[Values]) -> str:
    """Hash the given values. Takes 0.4 to 1.6 µs per row, which a load without a name does not pay."""
    names = [column.name for column in shape.columns[: len(shape.names)]]
    return blake2b(repr((names, values)).encode(), digest_size=16).hexdigest()
