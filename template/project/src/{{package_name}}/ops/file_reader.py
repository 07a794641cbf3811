"""Read the rows of a table from a CSV or JSON Lines file; errors name the file and the line."""

import csv
import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from datetime import date, datetime, time
from decimal import Decimal
from math import inf
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, JSON, Column, Dialect, Enum
from sqlalchemy.types import TypeEngine

from ..db.bulk import stored_type
from .base import OperationError

_FIELD_LIMIT = 2**30
"""Largest field of a CSV file in characters; the server takes no value of more than 1 GB."""


class InputError(OperationError):
    """The file does not hold rows of the table; the message names the line."""


class FileReader:
    """Rows of a CSV file with a header, or of a file with one JSON object per line; UTF-8.

    The text is what the database stores, so no TypeDecorator sees it. In CSV an empty field is None, or empty text if
    the column is text that cannot be NULL. Arrays are written as JSON or as the database prints them, members of an
    enumeration by their label or their name.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column[Any]], *, window: int, dialect: Dialect) -> None:
        """Check the suffix and the file, but open nothing yet; `line_of` covers the last `window` rows."""
        parsers = {".csv": self._csv, ".jsonl": self._jsonl, ".ndjson": self._jsonl}
        if path.suffix.lower() not in parsers:
            raise InputError(f"{path}: the name ends in {path.suffix or 'nothing'}, not in {', '.join(parsers)}")
        self._parse = parsers[path.suffix.lower()]
        self._path = path
        self._columns = columns
        self._dialect = dialect
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
        # A terminal cannot show half of a surrogate pair.
        shown = str(problem).encode(errors="backslashreplace").decode()
        return InputError(f"{self._path}:{line}: {shown}")

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
        csv.field_size_limit(_FIELD_LIMIT)
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
            except RecursionError:
                raise self.error(self._start, "nested too deeply") from None
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
        column = self._columns[name]
        return _Converter(column.type, self._dialect, nullable=bool(column.nullable))

    def _converted(self, name: str, value: Any) -> Any:
        try:
            return self._convert[name](value)
        except RecursionError:
            raise self.error(self._start, f"{name}: nested too deeply") from None
        except (ArithmeticError, ValueError, LookupError, TypeError) as error:
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
            raise self.error(self._start, f"{name}: {shown} is not {self._converter(name).title}") from error


class _Converter:
    """Conversion of a file's values to those that a type stores: Python's, or text that the server converts."""

    def __init__(self, type_: TypeEngine[Any], dialect: Dialect, *, nullable: bool) -> None:
        stored = stored_type(type_, dialect)
        self._is_json = isinstance(stored, JSON)
        self._nullable = nullable
        self._aware = bool(getattr(stored, "timezone", False))
        self._element = _Converter(stored.item_type, dialect, nullable=True) if isinstance(stored, ARRAY) else None
        try:
            self._type: type[Any] = stored.python_type
        except NotImplementedError:
            # The server converts the text.
            self._type = str
        self._name, self._parse = _TYPES.get(self._type, ("text", str))
        self._is_enum = isinstance(stored, Enum)
        if isinstance(stored, Enum):
            # A label goes by the name of its member and by itself.
            names = [member.name for member in stored.enum_class or ()]
            labels = {**dict(zip(names, stored.enums, strict=False)), **{label: label for label in stored.enums}}
            self._name, self._parse = f"one of {', '.join(labels)}", labels.__getitem__

    @property
    def title(self) -> str:
        name = "JSON" if self._is_json else self._name
        return f"{name} with a time zone" if self._aware else name

    def from_field(self, field: str) -> Any:
        if field:
            return self._parsed(field)
        return "" if self._type is str and not self._nullable and not self._is_enum else None

    def from_json(self, value: Any) -> Any:
        if value is None:
            return None
        if self._is_json:
            return json.dumps(value, default=float)
        if isinstance(value, str):
            return self._parsed(value)
        if isinstance(value, list) and self._element:
            return self._list(value, self._element)
        if isinstance(value, int | Decimal) and not isinstance(value, bool) and self._type in (Decimal, float):
            return self._parsed(str(value))
        if type(value) is self._type:
            return value
        raise TypeError

    def _list(self, values: list[Any], element: "_Converter") -> list[Any]:
        if element._is_json:
            return list(json.loads(json.dumps(values, default=float)))
        return [self._list(value, element) if isinstance(value, list) else element.from_json(value) for value in values]

    def _parsed(self, text: str) -> Any:
        if self._element:
            return text if text.startswith("{") else self.from_json(json.loads(text, parse_float=Decimal))
        if self._is_json:
            json.loads(text)
            return text
        if self._type in (date, datetime) and text in ("infinity", "-infinity"):
            return text
        value = self._parse(text)
        if self._aware and isinstance(value, datetime | time) and value.tzinfo is None:
            raise ValueError
        if value in (inf, -inf) and "inf" not in text.lower():
            raise OverflowError
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
    list: ("an array", json.loads),
    time: ("a time", time.fromisoformat),
    UUID: ("a UUID", UUID),
}
