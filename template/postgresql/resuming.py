"""Progress of a comparison in a file, so that one that was interrupted goes on where it was."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .cluster import write_private
from .rows import Comparison, ComparisonError, Key, Table

SAVE_EVERY = 1.0
"""Seconds between two writes of the file. Arbitrary: what a crash may cost."""


class Progress:
    """Tables, and beginnings of tables, that were the same on all nodes, each with the time of the last look.

    A range in which a row differed, or was left out, is compared again, and so are the ranges after it.
    """

    def __init__(self, file: Path | None, nodes: Sequence[str]) -> None:
        """Read the file if there is one; None: nothing is kept.

        Raises:
            ComparisonError: it is no such file, or one of a comparison of other nodes.
        """
        self.file = file
        self.nodes = list(nodes)
        self.tables: dict[str, dict[str, Any]] = {}
        self._current: dict[str, Any] = {}
        self._saved = time.monotonic()
        if file is not None and file.exists():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                nodes, self.tables = found["nodes"], found["tables"]
            except (ValueError, KeyError, TypeError):
                raise ComparisonError(f"{file} has no progress of a comparison: name another file") from None
            if nodes != self.nodes:
                others = ", ".join(map(str, nodes))
                raise ComparisonError(f"{file} is of a comparison of {others}: delete it to begin anew")

    def compare(self, table: Table, compare: Callable[[Table, Key | None], Comparison]) -> Comparison:
        """Compare what is left of a table.

        Args:
            table: the table.
            compare: compares the rows of a table after a key; it calls `note` after each range.
        """
        key = [column.name for column in table.key]
        known = self.tables.get(str(table), {})
        if known.get("key") != key:
            known = {}
        self._current = {"key": key, "rows": known.get("rows", 0)}
        if known and known["until"] is None:
            result = Comparison(str(table))
        else:
            result = compare(table, tuple(known["until"]) if known else None)
        if known:
            result.rows += known["rows"]
            result.earlier = f"{known['rows']} rows were the same before, looked at until {known['at']}"
        return result

    def note(self, result: Comparison, until: Key | None) -> None:
        """Keep that the rows of the table up to a key, None for all, were compared, if all of them are the same."""
        if self.file is None or not result.agrees or result.busy:
            return
        rows = self._current["rows"] + result.rows
        at = datetime.now(UTC).isoformat(" ", "seconds")
        self.tables[result.table] = {**self._current, "rows": rows, "until": until, "at": at}
        if time.monotonic() - self._saved > SAVE_EVERY:
            self._save()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write the file if the block is interrupted, and delete it if everything was compared."""
        if self.file is None:
            yield
            return
        try:
            yield
        except BaseException:
            self._save()
            raise
        self.file.unlink(missing_ok=True)

    def _save(self) -> None:
        if self.file is not None:
            write_private(self.file, json.dumps({"nodes": self.nodes, "tables": self.tables}, indent=2))
            self._saved = time.monotonic()
