"""One budget of connections for a server, however many databases are on it.

A connection belongs to one database for life, so what databases can share is the right to have one. Where the server has none to
spare, the idle connection that was not used for longest is closed to make room; one that is in use never is.
"""

import select
import threading
import time
from collections import OrderedDict
from typing import Any, ClassVar

from sqlalchemy import Pool
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.pool import ConnectionPoolEntry


class ServerBudget:
    """As many connections as this process may have to one server, idle ones included. Thread-safe."""

    def __init__(self, server: str, size: int, *, timeout: float) -> None:
        """Open nothing yet.

        Args:
            server: its name, for messages.
            size: how many connections.
            timeout: seconds that one who needs a connection waits for it.
        """
        self.server = server
        self.size = size
        self._timeout = timeout
        self._changed = threading.Condition()
        self._open = 0
        # The one that was used last at the end.
        self._idle: OrderedDict[ConnectionPoolEntry, BudgetedPool] = OrderedDict()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.server}: {self._open} of {self.size} open, {len(self._idle)} idle)"

    @property
    def open(self) -> int:
        """How many connections there are at this moment, idle ones included."""
        return self._open

    def pool_class(self) -> type["BudgetedPool"]:
        """The pool for the engines of databases on this server: each has one of its own, and all keep to this budget."""

        class PoolOfServer(BudgetedPool):
            budget = self

        return PoolOfServer

    def take(self, pool: "BudgetedPool") -> ConnectionPoolEntry:
        """An idle connection of `pool`, or a new one.

        Raises:
            NoConnectionFree: all are in use, and none was given back in time.
        """
        deadline = time.monotonic() + self._timeout
        stale = None
        with self._changed:
            while True:
                if pool.idle:
                    entry = pool.idle.pop()
                    del self._idle[entry]
                    pool.in_use += 1
                    if _has_something_to_say(entry):
                        # Looked at before it is used, as one is that was idle for long.
                        entry.info["idle_since"] = float("-inf")
                    return entry
                if self._open < self.size:
                    self._open += 1
                    break
                if self._idle:
                    stale, owner = self._idle.popitem(last=False)
                    owner.idle.remove(stale)
                    break
                if not self._wait(deadline - time.monotonic()):
                    raise NoConnectionFree(
                        f"{self.server}: all {self.size} connections that this process may have are in use, and none came "
                        f"free within {self._timeout:g} s. End units of work sooner, or raise server_connections"
                    )
            pool.in_use += 1
        try:
            if stale is not None:
                stale.close()
            return pool.make()
        except BaseException:
            self._close_one(pool)
            raise

    def give(self, pool: "BudgetedPool", entry: ConnectionPoolEntry) -> None:
        """Take a connection back."""
        with self._changed:
            if not pool.disposed:
                pool.in_use -= 1
                pool.idle.append(entry)
                self._idle[entry] = pool
                self._tell(1)
                return
        entry.close()
        self._close_one(pool)

    def empty(self, pool: "BudgetedPool") -> None:
        """Close the idle connections of a pool, and let it keep no others."""
        with self._changed:
            pool.disposed = True
            entries, pool.idle = pool.idle, []
            for entry in entries:
                del self._idle[entry]
            # Those who want a new one wait until it is closed, so that the server never has one more.
        for entry in entries:
            entry.close()
        with self._changed:
            self._open -= len(entries)
            self._tell(len(entries))

    def _wait(self, seconds: float) -> bool:
        """Let others change something; False if nobody did in time. Under the lock, which is lifted meanwhile."""
        return self._changed.wait(seconds)

    def _tell(self, count: int) -> None:
        """Let so many of those who wait look again. Under the lock."""
        self._changed.notify(count)

    def _close_one(self, pool: "BudgetedPool") -> None:
        with self._changed:
            pool.in_use -= 1
            self._open -= 1
            self._tell(1)


def _has_something_to_say(entry: ConnectionPoolEntry) -> bool:
    """Whether a server has sent something on an idle connection: mostly that it has ended. Asked without a round trip.

    A database that moves or is suspended ends its sessions, and whoever comes next is to be sent on, not to a dead one.
    """
    driver = entry.driver_connection
    if driver is None or driver.closed:
        return False
    poll = select.poll()
    poll.register(driver.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class BudgetedPool(Pool):
    """The connections of one engine, within the budget of its server."""

    budget: ClassVar[ServerBudget]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Under the lock of the budget.
        self.idle: list[ConnectionPoolEntry] = []
        self.in_use = 0
        self.disposed = False

    def make(self) -> ConnectionPoolEntry:
        """A new connection, which the budget has room for."""
        return self._create_connection()

    def status(self) -> str:
        """In the words of SQLAlchemy's own pools."""
        return f"Connections in pool: {len(self.idle)} Current Checked out connections: {self.in_use}"

    def dispose(self) -> None:
        """Close what is idle now, and the rest when it comes back."""
        self.budget.empty(self)

    def recreate(self) -> "BudgetedPool":
        """The pool that takes the place of one that was disposed of."""
        return type(self)(
            self._creator,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def _do_get(self) -> ConnectionPoolEntry:
        return self.budget.take(self)

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        self.budget.give(self, record)
