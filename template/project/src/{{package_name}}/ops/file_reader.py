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

from .base import OperationError


class InputError(OperationError):
    """The file does not hold rows of the table; the message names the line."""


class FileReader:
    """Rows of a CSV file with a header, or of a file with one JSON object per line; UTF-8.

    Text becomes the Python type of its column. In CSV an empty field is None, or empty text if the column is text that
    cannot be NULL; arrays and JSON are written as JSON.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column[Any]], *, window: int) -> None:
        """Check the suffix and the file, but open nothing yet; `line_of` covers the last `window` rows."""
        parsers = {".csv": self._csv, ".jsonl": self._jsonl, ".ndjson": self._jsonl}
        if path.suffix.lower() not in parsers:
            raise InputError(f"{path}: the name ends in {path.suffix or 'nothing'}, not in {', '.join(parsers)}")
        self._parse = parsers[path.suffix.lower()]
        self._path = path
        self._columns = columns
        self._convert: dict[str, Callable[[Any], Any]] = {}
        # Line that was read last; line in which the current row begins; number of rows.
        self._line, self._start, self._count = 0, 1, 0
        self._starts: deque[int] = deque(maxlen=window)
        self.position = 0  # bytes read
        try:
            self.size = path.stat().st_size  # bytes
        except OSError as error:
            raise self._unreadable(error) from error

    def __iter__(self) -> Generator[dict[str, Any], None, None]:
        """Read the rows, once; the file is closed at its end, or with the generator."""
        with closing(self._text()) as lines:
            for row in self._parse(lines):
                self._count += 1
                self._starts.append(self._start)
                yield {name: self._converted(name, value) for name, value in row.items()}

    def line_of(self, row: int) -> int:
        """Return the line of a row, both counted from 1; the row must be within the window."""
        return self._starts[row - 1 - self._count]

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

    def _csv(self, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
        try:
            for fields in csv.reader(lines, strict=True):
                if fields and not self._convert:
                    self._convert = {name: self._converter(name).from_field for name in fields}
                    if len(self._convert) < len(fields):
                        raise self.error(self._start, "a column is named twice")
                elif fields:
                    if len(fields) != len(self._convert):
                        raise self.error(self._start, f"{len(fields)} fields, and {len(self._convert)} in the header")
                    yield dict(zip(self._convert, fields, strict=True))
                # A field may hold line breaks, so a row can begin before the line that was read last.
                self._start = self._line + 1
        except csv.Error as error:
            raise self.error(self._start, error) from error

    def _jsonl(self, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
        for text in lines:
            self._start = self._line
            if not text.strip():
                continue
            try:
                # Decimal keeps the digits that a float would lose.
                row = json.loads(text, parse_float=Decimal)
            except ValueError as error:
                raise self.error(self._start, f"not JSON: {error}") from error
            if not isinstance(row, dict):
                raise self.error(self._start, "not a JSON object")
            self._convert = self._convert or {name: self._converter(name).from_json for name in row}
            if row.keys() != self._convert.keys():
                found = ", ".join(row) or "nothing"
                raise self.error(self._start, f"it has {found}; the first row has {', '.join(self._convert)}")
            yield row

    def _converter(self, name: str) -> "_Converter":
        if name not in self._columns:
            raise self.error(self._start, f"there is no column {name!r}; there are {', '.join(self._columns)}")
        return _Converter(self._columns[name])

    def _converted(self, name: str, value: Any) -> Any:
        try:
            return self._convert[name](value)
        except (ArithmeticError, ValueError, KeyError, TypeError) as error:
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
            raise self.error(self._start, f"{name}: {shown} is not {self._converter(name).title}") from error


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
        self._name, self._parse = _TYPES.get(self._type, ("text", str))
        if issubclass(self._type, Enum):
            self._name, self._parse = f"one of {', '.join(self._type.__members__)}", self._type.__getitem__

    @property
    def title(self) -> str:
        name = "JSON" if self._is_json else self._name
        return f"{name} with a time zone" if self._aware else name

    def from_field(self, field: str) -> Any:
        if self._is_json:
            return json.loads(field) if field else None
        if field:
            return self._parsed(field)
        return "" if self._type is str and not self._nullable else None

    def from_json(self, value: Any) -> Any:
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
        value = self._parse(text)
        if self._aware and isinstance(value, datetime | time) and value.tzinfo is None:
            raise ValueError
        return value


_BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_TYPES: Mapping[type[Any], tuple[str, Callable[[str], Any]]] = {
    bool: ("true or false", lambda text: _BOOLS[text.lower()]),
    bytes: ("bytes in hexadecimal", lambda text: bytes.fromhex(text.removeprefix("\\x"))),
    date: ("a date", date.fromisoformat),
    datetime: ("a date and time", datetime.fromisoformat),
    Decimal: ("a decimal number", Decimal),
    float: ("a number", float),
    int: ("an integer", int),
    list: ("a JSON array", json.loads),
    time: ("a time", time.fromisoformat),
    UUID: ("a UUID", UUID),
}
