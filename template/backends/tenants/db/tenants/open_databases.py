"""The databases that a process keeps open: a pool of databases, each with its engines."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from threading import Lock

from ..database import DatabaseCore
from .budget import BudgetedPool
from .placement import Placement


@dataclass
class OpenDatabase:
    """A tenant's database that is kept open."""

    placement: Placement
    database: DatabaseCore
    leases: int = 0
    """Number of units of work that are about to connect."""
    is_doubtful: bool = False
    """True if its server did not answer, so that the registry has to be asked again."""

    @property
    def is_in_use(self) -> bool:
        """True while a unit of work has a connection, or is about to get one."""
        pools = [engine.pool for engine in self.database._engines.created()]
        return self.leases > 0 or any(pool.in_use for pool in pools if isinstance(pool, BudgetedPool))


class OpenDatabases:
    """The most recently used databases up to a limit, and all that are in use. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self.entries: OrderedDict[str, OpenDatabase] = OrderedDict()
        """The databases by tenant, the least recently used first."""

    def lease(self, name: str, *, even_doubtful: bool = False) -> OpenDatabase | None:
        """Return a tenant's database and keep it open until `release`; None if the registry has to be asked."""
        with self._lock:
            entry = self.entries.get(name)
            if entry is None or (entry.is_doubtful and not even_doubtful):
                return None
            surplus = self._use(entry)
        close_pools(surplus)
        return entry

    def admit(self, placement: Placement, make: Callable[[Placement], DatabaseCore]) -> OpenDatabase:
        """Return the database at a place that the registry has just reported, and keep it open until `release`.

        A database of an older epoch is closed. `make` creates one without connecting to it.
        """
        with self._lock:
            entry = old = self.entries.get(placement.name)
            if entry is None or entry.placement.epoch < placement.epoch:
                entry = self.entries[placement.name] = OpenDatabase(placement, make(placement))
            entry.is_doubtful = False
            surplus = self._use(entry)
            if old is not None and old is not entry:
                surplus.append(old.database)
        close_pools(surplus)
        return entry

    def release(self, entry: OpenDatabase) -> None:
        """End a lease."""
        with self._lock:
            entry.leases -= 1

    def forget(self, entry: OpenDatabase) -> None:
        """Close a database, so that the registry is asked for the tenant's place again."""
        with self._lock:
            if self.entries.get(entry.placement.name) is entry:
                del self.entries[entry.placement.name]
        close_pools([entry.database])

    def clear(self) -> None:
        """Close all databases."""
        with self._lock:
            databases = [entry.database for entry in self.entries.values()]
            self.entries.clear()
        close_pools(databases)

    def _use(self, entry: OpenDatabase) -> list[DatabaseCore]:
        """Count a lease; take out the databases that are too many and not in use, to be closed without the lock."""
        entry.leases += 1
        self.entries.move_to_end(entry.placement.name)
        idle = (name for name, other in self.entries.items() if not other.is_in_use)
        surplus = list(islice(idle, max(0, len(self.entries) - self._limit)))
        return [self.entries.pop(name).database for name in surplus]


def close_pools(databases: Iterable[DatabaseCore]) -> None:
    """Close the idle connections of databases now, and the others when they come back."""
    for database in databases:
        for engine in database._engines.created():
            engine.dispose()
