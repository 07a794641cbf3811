"""Cut the rows of a load into chunks of one shape; values are the caller's, completed by the columns' defaults."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from operator import itemgetter
from typing import Any, Self, TypeAlias

from sqlalchemy import ARRAY, JSON, Column, LargeBinary, String, Table, inspect
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.schema import CallableColumnDefault, ScalarElementColumnDefault
from sqlalchemy.types import TypeEngine

from ..errors import DistributedSQLError, MisuseError
from ._stored import StoredForm

Values: TypeAlias = tuple[Any, ...]  # values of one row, in the order of the shape's columns
Default: TypeAlias = Callable[[Any], Any]  # computes a default; its argument is a `CurrentRow`

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


@dataclass
class CurrentRow:
    """Argument of a default function: the documented part of SQLAlchemy's execution context."""

    keys: list[str]
    values: Values = ()

    def get_current_parameters(self, isolate_multiinsert_groups: bool = True) -> dict[str, Any]:
        """Return the values of the row that the default is for."""
        return dict(zip(self.keys, self.values, strict=False))


@dataclass(frozen=True)
class Shape:
    """Columns that a load fills: those that its first row names, then those that have defaults."""

    table: Table
    names: tuple[str, ...]  # keys of a row, in the order of the first columns
    columns: tuple[Column[Any], ...]
    types: tuple[TypeEngine[Any], ...]  # types that convert the values of the columns
    defaults: tuple[Default, ...]  # defaults of the columns after the named ones
    needs_insert: bool  # a default is an SQL expression, which COPY cannot compute

    @classmethod
    def of(cls, model: type[Any] | Table, first: Mapping[str, Any], *, as_stored: bool) -> Self:
        """Return the shape that the first row sets; `as_stored`: see `bulk_load`."""
        mapper: Mapper[Any] | None = None if isinstance(model, Table) else inspect(model)
        table = mapper.local_table if mapper else model
        tables = len(mapper.tables) if mapper else 1
        if not isinstance(table, Table) or tables > 1:
            raise MisuseError(f"{model} has {tables} tables: load each of them by itself")
        by_name = {column.name: column for column in table.columns}
        for attribute in mapper.column_attrs if mapper else ():
            if isinstance(column := attribute.columns[0], Column):
                by_name[attribute.key] = column
        if unknown := [str(name) for name in first if name not in by_name]:
            raise BadRow(f"{table.name} has no {' and no '.join(unknown)}; it has {', '.join(by_name)}", range(1, 2))
        # Sorted, so that the order of a row's keys does not matter.
        names = sorted(first, key=lambda name: by_name[name].name)
        named = {by_name[name]: name for name in names}
        if len(named) < max(len(names), 1):
            raise BadRow("it names a column twice" if names else "it names no column", range(1, 2))
        if made := [column.name for column in named if column.computed or (column.identity and column.identity.always)]:
            raise BadRow(f"the server makes every {made[0]} of {table.name}: leave it out", range(1, 2))
        others = [column for column in table.columns if column not in named]
        defaults = {column: default for column in others if (default := _default_of(column, mapper))}
        needs_insert = any(_is_computed(column) for column in others if column not in defaults)
        types = [StoredForm(column.type) if as_stored else column.type for column in named]
        types += [column.type for column in defaults]
        return cls(table, tuple(names), (*named, *defaults), tuple(types), tuple(defaults.values()), needs_insert)

    def read(self, rows: Iterator[Mapping[str, Any]], first: int, max_rows: int, max_bytes: int) -> list[Values]:
        """Return the given values of up to `max_rows` rows or about `max_bytes` bytes; `first` numbers the next row."""
        names = self.names
        pick: Callable[[Mapping[str, Any]], Values] = itemgetter(*names)
        if len(names) == 1:
            pick = lambda row: (row[names[0]],)  # noqa: E731 - `itemgetter` of one name returns the bare value
        sized = [number for number, _ in enumerate(names) if isinstance(self.columns[number].type, _SIZED)]
        values: list[Values] = []
        size = 0
        for row in rows:
            try:
                # The same number of keys, and all of ours: the same keys. Much cheaper than comparing them.
                if len(row) != len(names):
                    raise KeyError
                picked = pick(row)
            except (KeyError, TypeError):
                found = ", ".join(map(str, row)) or "nothing" if isinstance(row, Mapping) else f"a {type(row).__name__}"
                bad = range(first + len(values), first + len(values) + 1)
                raise BadRow(f"it has {found}; the first row has {', '.join(names)}", bad) from None
            values.append(picked)
            for number in sized:
                value = picked[number]
                size += len(value) if type(value) is str else _size(value)
            if len(values) >= max_rows or size >= max_bytes:
                break
        return values

    def digest(self, values: list[Values]) -> str:
        """Hash the given values. Takes 0.4 to 1.6 µs per row, which a load without a name does not pay."""
        names = [column.name for column in self.columns[: len(self.names)]]
        return blake2b(repr((names, values)).encode(), digest_size=16).hexdigest()

    def complete(self, values: list[Values]) -> list[Values]:
        """Append the defaults. Called once per chunk, so that a chunk that is run again has the same values."""
        if not self.defaults:
            return values
        row = CurrentRow([column.key for column in self.columns])
        completed = []
        for row.values in values:
            completed.append((*row.values, *[default(row) for default in self.defaults]))
        return completed


def _default_of(column: Column[Any], mapper: Mapper[Any] | None) -> Default | None:
    """Return the function that computes the default of a column in Python; None if none does."""
    if mapper and column is mapper.polymorphic_on:
        value = mapper.polymorphic_identity
    elif mapper and column is mapper.version_id_col and callable(mapper.version_id_generator):
        value = mapper.version_id_generator(None)
    elif isinstance(column.default, ScalarElementColumnDefault):
        value = column.default.arg
    else:
        return column.default.arg if isinstance(column.default, CallableColumnDefault) else None
    return lambda _: value


def _is_computed(column: Column[Any]) -> bool:
    """Return True if the default is part of an INSERT; a sequence that the server reads by itself is not."""
    default = column.default
    return default is not None and not (default.is_sequence and column.server_default is not None)


def _size(value: Any) -> int:
    """Return about how many bytes a value has: the characters of text, the length of the `repr` of nested values."""
    if isinstance(value, str | bytes):
        return len(value)
    return 0 if value is None else len(repr(value))


@dataclass(frozen=True)
class Chunk:
    """Rows that one transaction loads."""

    number: int  # from 1
    rows: range  # numbers of its rows within the load, from 1
    shape: Shape
    values: list[Values]
    digest: str | None  # hash of the rows; None for a load without a name


def chunks(
    model: type[Any] | Table,
    rows: Iterable[Mapping[str, Any]],
    *,
    max_rows: int,
    max_bytes: int,
    with_digest: bool,
    as_stored: bool = False,
) -> Iterator[Chunk]:
    """Cut `rows` into chunks of `max_rows` rows or about `max_bytes` bytes; read no further than the yielded chunk."""
    remaining = iter(rows)
    head = list(islice(remaining, 1))
    if not head:
        return
    if not isinstance(head[0], Mapping):
        raise BadRow(f"it is a {type(head[0]).__name__}, not a mapping from names to values", range(1, 2))
    shape = Shape.of(model, head[0], as_stored=as_stored)
    remaining = chain(head, remaining)
    number, first = 1, 1
    while values := shape.read(remaining, first, max_rows, max_bytes):
        digest = shape.digest(values) if with_digest else None
        yield Chunk(number, range(first, first + len(values)), shape, shape.complete(values), digest)
        number, first = number + 1, first + len(values)
