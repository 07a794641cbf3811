"""One budget of connections for each server, however many databases are on it.

A connection belongs to one database for life, so databases can only share the right to have one. When the budget is
spent, the least recently used idle connection is closed to make room; a connection in use is never closed.
"""

import select
from collections import OrderedDict
from threading import Lock
from typing import Any, ClassVar

from sqlalchemy import Pool
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util.queue import Empty

from ..engines import left_to_parent
from ..errors import NodeUnavailable
from .workers import Workers


class ServerBudget:
    """Limit of the connections of this process to one server, idle ones included. Thread-safe."""

    def __init__(self, server: str, size: int, *, timeout: float, workers: Workers) -> None:
        """Open nothing yet.

        Args:
            server: name of the server, for messages.
            size: number of connections.
            timeout: longest wait for a connection, in seconds.
            workers: threads or tasks, which wait differently.
        """
        self._server = server
        self._size = size
        self._timeout = timeout
        self._workers = workers
        self.leave_to_parent()
        left_to_parent.add(self)

        class PoolOfServer(BudgetedPool):
            budget = self
            _is_asyncio = workers.is_asyncio

        self.pool_class: type[BudgetedPool] = PoolOfServer
        """Pool class for the engines of databases on this server: a pool for each engine, one budget for all."""

    def leave_to_parent(self) -> None:
        """Begin with no connection; those of the parent stay open after a fork."""
        self.open = 0
        """Number of open connections, idle ones included."""
        # Held while connections are closed, too: psycopg closes without waiting.
        self._lock = Lock()
        # Least recently used first.
        self._idle: OrderedDict[ConnectionPoolEntry, BudgetedPool] = OrderedDict()
        # One for each connection that may be in use. Its holder finds an idle connection or room for a new one.
        self._permits = self._workers.queue(self._size)
        for _ in range(self._size):
            self._permits.put_nowait(None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._server}: {self.open} of {self._size} open, {len(self._idle)} idle)"

    def acquire(self, pool: "BudgetedPool") -> ConnectionPoolEntry:
        """Return an idle connection of `pool`, or a new one; raise `NodeUnavailable` if none is released in time."""
        try:
            self._permits.get(timeout=self._timeout)
        except Empty:
            raise NodeUnavailable(
                f"{self._server}: all {self._size} connections that this process may have are in use, and none came "
                f"free within {self._timeout:g} s. End units of work sooner, or raise SERVER_CONNECTIONS",
                node=self._server,
            ) from None
        with self._lock:
            pool.in_use += 1
            if pool.idle:
                entry = pool.idle.pop()
                del self._idle[entry]
                if _has_input(entry):
                    # Pinged at checkout, as after a long idle time.
                    entry.info["idle_since"] = float("-inf")
                return entry
            if self.open < self._size:
                self.open += 1
            else:
                oldest, owner = self._idle.popitem(last=False)
                owner.idle.remove(oldest)
                oldest.close()
        try:
            return pool._create_connection()
        except BaseException:
            self.release(pool, None)
            raise

    def release(self, pool: "BudgetedPool", entry: ConnectionPoolEntry | None) -> None:
        """Take a connection back; None: it could not be opened."""
        with self._lock:
            pool.in_use -= 1
            if entry is not None and not pool.disposed:
                pool.idle.append(entry)
                self._idle[entry] = pool
            else:
                self.open -= 1
                if entry is not None:
                    entry.close()
        self._permits.put_nowait(None)

    def empty(self, pool: "BudgetedPool") -> None:
        """Close the idle connections of a pool now, and the others when they are released."""
        with self._lock:
            pool.disposed = True
            for entry in pool.idle:
                del self._idle[entry]
                entry.close()
            self.open -= len(pool.idle)
            pool.idle = []


def _has_input(entry: ConnectionPoolEntry) -> bool:
    """Return True if the server sent something on an idle connection, mostly that it ended; costs no round trip.

    A database that moves or is suspended ends its sessions; the next unit of work must not get one of them.
    """
    driver = entry.driver_connection
    if driver is None or driver.closed:
        return False
    poll = select.poll()
    poll.register(driver.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class BudgetedPool(Pool):
    """Connections of one engine, within the budget of its server."""

    budget: ClassVar[ServerBudget]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Guarded by the lock of the budget.
        self.idle: list[ConnectionPoolEntry] = []
        self.in_use = 0
        self.disposed = False

    def dispose(self) -> None:
        """Close the idle connections now, and the others when they come back."""
        self.budget.empty(self)

    def recreate(self) -> "BudgetedPool":
        """Return this pool: once disposed of, it still serves work that is about to begin, and keeps no connection."""
        if not self.disposed:
            # Asked for in a forked child, which has none of the connections.
            self.idle, self.in_use = [], 0
        return self

    def _do_get(self) -> ConnectionPoolEntry:
        return self.budget.acquire(self)

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        self.budget.release(self, record)
