"""Rows from a file, as the columns of a table take them; an error names the file and the line."""

import csv
import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Column


class InputError(Exception):
    """The file cannot be read as rows of the table; the message says where."""


class RowFile:
    """The rows of a CSV file with a header, or of a file with a JSON object in each line; UTF-8.

    Text becomes what the column has in Python. In CSV an empty field is None, or empty text where the column is text that
    cannot be NULL; arrays and JSON are written as JSON.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column[Any]], *, window: int) -> None:
        """Open nothing yet.

        Args:
            path: of the file; its suffix says what it is.
            columns: those of the table, by the names that the file may use.
            window: of how many rows, counted from the last one read, the lines are remembered.

        Raises:
            InputError: the file does not exist, or is of another kind.
        """
        readers = {".csv": self._csv, ".jsonl": self._jsonl, ".ndjson": self._jsonl}
        if path.suffix.lower() not in readers:
            raise InputError(f"{path}: the name ends in {path.suffix or 'nothing'}, not in {', '.join(readers)}")
        self._read = readers[path.suffix.lower()]
        self._path = path
        self._columns = columns
        self._line = 0
        self._count = 0
        self._lines: deque[int] = deque(maxlen=window)
        self.position = 0
        """Bytes read."""
        try:
            self.size = path.stat().st_size
        except OSError as error:
            raise self._unreadable(error) from error

    def __iter__(self) -> Generator[dict[str, Any], None, None]:
        """The rows, once; the file is open until they end, or until the generator is closed.

        Raises:
            InputError: a line is not a row of the table.
        """
        with closing(self._text()) as lines:
            for line, row in self._read(lines):
                self._count += 1
                self._lines.append(line)
                yield row

    def line_of(self, row: int) -> int:
        """The line of a row, counted from 1, that is among the last ones read."""
        return self._lines[row - 1 - (self._count - len(self._lines))]

    def at(self, line: int, problem: object) -> InputError:
        """The error that says what is wrong in a line."""
        return InputError(f"{self._path}:{line}: {problem}")

    def _unreadable(self, error: OSError) -> InputError:
        return InputError(f"{self._path} cannot be read: {error.strerror}")

    def _text(self) -> Generator[str, None, None]:
        try:
            with self._path.open("rb") as file:
                for raw in file:
                    self._line += 1
                    self.position += len(raw)
                    # A byte order mark is no part of the text.
                    yield raw.decode("utf-8-sig" if self._line == 1 else "utf-8")
        except OSError as error:
            raise self._unreadable(error) from error
        except UnicodeDecodeError as error:
            raise self.at(self._line, f"not UTF-8: {error.reason}") from error

    def _csv(self, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = csv.reader(lines, strict=True)
        columns: list[tuple[str, _Kind]] = []
        start = 1
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise self.at(start, error) from error
            if fields is None:
                return
            if fields and not columns:
                columns = [(name, self._kind(name, start)) for name in fields]
                if len(dict(columns)) < len(columns):
                    raise self.at(start, "a column is named twice")
            elif fields:
                if len(fields) != len(columns):
                    raise self.at(start, f"{len(fields)} fields, and {len(columns)} in the header")
                named = zip(columns, fields, strict=True)
                row = {name: self._converted(kind.from_field, field, name, start) for (name, kind), field in named}
                yield start, row
            # A field may hold line breaks, so a row may begin well before the line that was read last.
            start = self._line + 1

    def _jsonl(self, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        kinds: dict[str, _Kind] | None = None
        for text in lines:
            line = self._line
            if not text.strip():
                continue
            try:
                # As written: a float has lost digits that a Decimal still needs.
                row = json.loads(text, parse_float=Decimal)
            except ValueError as error:
                raise self.at(line, f"not JSON: {error}") from error
            if not isinstance(row, dict):
                raise self.at(line, "not a JSON object")
            if kinds is None:
                kinds = {name: self._kind(name, line) for name in row}
            if row.keys() != kinds.keys():
                raise self.at(line, f"it has {', '.join(row)}; the first row has {', '.join(kinds)}")
            yield line, {name: self._converted(kind.from_json, row[name], name, line) for name, kind in kinds.items()}

    def _kind(self, name: str, line: int) -> "_Kind":
        if name not in self._columns:
            raise self.at(line, f"there is no column {name!r}; there are {', '.join(self._columns)}")
        return _Kind(self._columns[name])

    def _converted(self, convert: Callable[[Any], Any], value: Any, name: str, line: int) -> Any:
        try:
            return convert(value)
        except (ArithmeticError, ValueError, KeyError, TypeError) as error:
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
            raise self.at(line, f"{name}: {shown} is not {self._kind(name, line).title}") from error


class _Kind:
    """What a column takes, and how it is made from text."""

    def __init__(self, column: Column[Any]) -> None:
        self._is_json = isinstance(column.type, JSON)
        self._nullable = bool(column.nullable)
        self._aware = bool(getattr(column.type, "timezone", False))
        try:
            self._type: type[Any] = column.type.python_type
        except NotImplementedError:
            # The server makes of the text what it can.
            self._type = str

    @property
    def title(self) -> str:
        """What an error calls it."""
        if issubclass(self._type, Enum):
            return f"one of {', '.join(self._type.__members__)}"
        name = "JSON" if self._is_json else self._type.__name__
        article = "an" if name[0] in "aeiou" else "a"
        return f"{article} {name}{' with a time zone' if self._aware else ''}"

    def from_field(self, field: str) -> Any:
        """The value of a CSV field."""
        if self._is_json:
            return json.loads(field) if field else None
        if field:
            return self._parsed(field)
        return "" if self._type is str and not self._nullable else None

    def from_json(self, value: Any) -> Any:
        """The value of a JSON value, whose floats are Decimals."""
        if value is None:
            return None
        if self._is_json or self._type is list:
            return json.loads(json.dumps(value, default=float))
        if isinstance(value, str):
            return self._parsed(value)
        if isinstance(value, int | Decimal) and not isinstance(value, bool) and self._type in (Decimal, float):
            return self._type(value)
        if type(value) is self._type:
            return value
        raise TypeError

    def _parsed(self, text: str) -> Any:
        if issubclass(self._type, Enum):
            return self._type[text]
        value = _PARSERS.get(self._type, str)(text)
        if self._aware and isinstance(value, datetime | time) and value.tzinfo is None:
            raise ValueError
        return value


def _bool(text: str) -> bool:
    return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}[text.lower()]


_PARSERS: Mapping[type[Any], Callable[[str], Any]] = {
    bool: _bool,
    bytes: lambda text: bytes.fromhex(text.removeprefix("\\x")),
    date: date.fromisoformat,
    datetime: datetime.fromisoformat,
    Decimal: Decimal,
    float: float,
    int: int,
    list: json.loads,
    time: time.fromisoformat,
    UUID: UUID,
}
