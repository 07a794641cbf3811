"""The transactions of the probes as a history in EDN, in the form that elle-cli reads for its model `list-append`.

Each transaction is written twice, when it begins and when it has ended: https://github.com/ligurio/elle-cli
"""

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["invoke", "ok", "fail", "info"]
"""Begun; committed; certainly rolled back; of unknown outcome."""


@dataclass
class Step:
    """One step of a transaction: a read of a list, or an append to it."""

    key: int
    value: int | None = None
    """Number to append; None: the step is a read."""
    read: list[int] | None = None
    """Result of a read that was done."""
    lock: bool = False
    """The read locks the row."""

    def __str__(self) -> str:
        if self.value is not None:
            return f"[:append {self.key} {self.value}]"
        return f"[:r {self.key} {'nil' if self.read is None else '[' + ' '.join(map(str, self.read)) + ']'}]"


class History:
    """Transactions in the order in which they began and ended. Thread-safe."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._began = time.monotonic_ns()
        self.keys = itertools.count(1)
        """Keys of lists that no probe has used."""
        self.processes = itertools.count()
        """Numbers of processes; one has one transaction at a time, and none after one of unknown outcome."""

    def record(self, kind: Kind, process: int, probe: str, steps: Sequence[Step]) -> None:
        """Write what became of a transaction; the probe is named in a key of its own, which elle-cli ignores."""
        value = " ".join(map(str, steps))
        with self._lock:
            self._lines.append(
                f"{{:index {len(self._lines)}, :time {time.monotonic_ns() - self._began}, :type :{kind}, "
                f':process {process}, :f :txn, :value [{value}], :probe "{probe}"}}\n'
            )

    def __str__(self) -> str:
        return "".join(self._lines)
