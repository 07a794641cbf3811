"""Read the rows of a table from a CSV or JSON Lines file; errors name the file and the line."""

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
    """The file does not hold rows of the table; the message names the line."""


class FileReader:
    """Rows of a CSV file with a header, or of a file with one JSON object per line; UTF-8.

    Text becomes the Python type of its column. In CSV an empty field is None, or empty text if the column is text that
    cannot be NULL; arrays and JSON are written as JSON.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column[Any]], *, window: int) -> None:
        """Open nothing yet.

        Args:
            path: the file; its suffix tells the format.
            columns: columns of the table by name.
            window: number of rows, up to the last one read, whose lines `line_of` can tell.

        Raises:
            InputError: the file does not exist, or its suffix is none of .csv, .jsonl, .ndjson.
        """
        parsers = {".csv": self._csv, ".jsonl": self._jsonl, ".ndjson": self._jsonl}
        if path.suffix.lower() not in parsers:
            raise InputError(f"{path}: the name ends in {path.suffix or 'nothing'}, not in {', '.join(parsers)}")
        self._parse = parsers[path.suffix.lower()]
        self._path = path
        self._columns = columns
        self._line = 0
        self._count = 0
        self._lines: deque[int] = deque(maxlen=window)
        self.position = 0
        """Bytes read."""
        try:
            self.size = path.stat().st_size
            """Size of the file in bytes."""
        except OSError as error:
            raise self._unreadable(error) from error

    def __iter__(self) -> Generator[dict[str, Any], None, None]:
        """Read the rows, once; the file is closed at its end, or with the generator.

        Raises:
            InputError: a line is not a row of the table.
        """
        with closing(self._text()) as lines:
            for line, row in self._parse(lines):
                self._count += 1
                self._lines.append(line)
                yield row

    def line_of(self, row: int) -> int:
        """Return the line of a row, both counted from 1; the row must be within the window."""
        return self._lines[row - 1 - (self._count - len(self._lines))]

    def error(self, line: int, problem: object) -> InputError:
        """Create the error for a problem in a line."""
        return InputError(f"{self._path}:{line}: {problem}")

    def _unreadable(self, error: OSError) -> InputError:
        return InputError(f"{self._path} cannot be read: {error.strerror}")

    def _text(self) -> Generator[str, None, None]:
        try:
            with self._path.open("rb") as file:
                for raw in file:
                    self._line += 1
                    self.position += len(raw)
                    # Without the byte order mark.
                    yield raw.decode("utf-8-sig" if self._line == 1 else "utf-8")
        except OSError as error:
            raise self._unreadable(error) from error
        except UnicodeDecodeError as error:
            raise self.error(self._line, f"not UTF-8: {error.reason}") from error

    def _csv(self, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = csv.reader(lines, strict=True)
        columns: dict[str, _Converter] = {}
        start = 1
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise self.error(start, error) from error
            if fields is None:
                return
            if fields and not columns:
                columns = {name: self._converter(name, start) for name in fields}
                if len(columns) < len(fields):
                    raise self.error(start, "a column is named twice")
            elif fields:
                if len(fields) != len(columns):
                    raise self.error(start, f"{len(fields)} fields, and {len(columns)} in the header")
                named = zip(columns.items(), fields, strict=True)
                yield start, {name: self._converted(to.from_field, field, name, start) for (name, to), field in named}
            # A field may hold line breaks, so a row can begin before the line that was read last.
            start = self._line + 1

    def _jsonl(self, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        columns: dict[str, _Converter] | None = None
        for text in lines:
            line = self._line
            if not text.strip():
                continue
            try:
                # Decimal keeps the digits that a float would lose.
                row = json.loads(text, parse_float=Decimal)
            except ValueError as error:
                raise self.error(line, f"not JSON: {error}") from error
            if not isinstance(row, dict):
                raise self.error(line, "not a JSON object")
            if columns is None:
                columns = {name: self._converter(name, line) for name in row}
            if row.keys() != columns.keys():
                raise self.error(line, f"it has {', '.join(row)}; the first row has {', '.join(columns)}")
            yield line, {name: self._converted(to.from_json, row[name], name, line) for name, to in columns.items()}

    def _converter(self, name: str, line: int) -> "_Converter":
        if name not in self._columns:
            raise self.error(line, f"there is no column {name!r}; there are {', '.join(self._columns)}")
        return _Converter(self._columns[name])

    def _converted(self, convert: Callable[[Any], Any], value: Any, name: str, line: int) -> Any:
        try:
            return convert(value)
        except (ArithmeticError, ValueError, KeyError, TypeError) as error:
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
            raise self.error(line, f"{name}: {shown} is not {self._converter(name, line).title}") from error


class _Converter:
    """Conversion of text to the Python type of a column."""

    def __init__(self, column: Column[Any]) -> None:
        self._is_json = isinstance(column.type, JSON)
        self._nullable = bool(column.nullable)
        self._aware = bool(getattr(column.type, "timezone", False))
        try:
            self._type: type[Any] = column.type.python_type
        except NotImplementedError:
            # The server converts the text.
            self._type = str

    @property
    def title(self) -> str:
        """Name of the type, for errors."""
        if issubclass(self._type, Enum):
            return f"one of {', '.join(self._type.__members__)}"
        name = "JSON" if self._is_json else self._type.__name__
        article = "an" if name[0] in "aeiou" else "a"
        return f"{article} {name}{' with a time zone' if self._aware else ''}"

    def from_field(self, field: str) -> Any:
        """Convert a CSV field."""
        if self._is_json:
            return json.loads(field) if field else None
        if field:
            return self._parsed(field)
        return "" if self._type is str and not self._nullable else None

    def from_json(self, value: Any) -> Any:
        """Convert a JSON value, whose fractions are Decimals."""
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


_PARSERS: Mapping[type[Any], Callable[[str], Any]] = {
    bool: lambda text: {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}[text.lower()],
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
