"""The seam between the runtime and its database: everything that the runtime asks of a backend.

`Backend` in `backend.py` derives from `BaseBackend` and overrides what differs. The defaults here are those of one
PostgreSQL server; SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from ..limits import PoolLimits, Timeouts
from ..settings import Settings
from .errors import DistributedSQLError
from .routing import Route, Router

if TYPE_CHECKING:
    from .database import Database

logger = logging.getLogger(__name__)

D = TypeVar("D", bound="Database")
R = TypeVar("R", bound=Route)


class BaseBackend(Generic[R]):
    """Facts and hooks of a backend; one instance per `Database`."""

    default_route: R
    """Options of a unit of work that names none."""
    isolation_level: ClassVar[str] = "READ COMMITTED"
    """Isolation level of a unit of work that names none."""
    retryable: ClassVar[frozenset[str]] = frozenset({"40001", "40P01"})
    """SQLSTATEs after which the rolled-back transaction may run again: serialization_failure, deadlock_detected."""
    ambiguous: ClassVar[frozenset[str]] = frozenset({"40003", "08007"})
    """SQLSTATEs of an unknown outcome: statement_completion_unknown, transaction_resolution_unknown."""
    unavailable: ClassVar[frozenset[str]] = frozenset(
        {"08000", "08001", "08003", "08004", "08006", "53300", "57P01", "57P02", "57P03", "25P03"}
    )
    """SQLSTATEs of a lost connection, a shutdown, or a server without a free connection."""
    read_only: ClassVar[frozenset[str]] = frozenset({"25006"})
    """SQLSTATEs of a refused write: read_only_sql_transaction."""
    timed_out: ClassVar[frozenset[str]] = frozenset({"57014", "55P03"})
    """SQLSTATEs of a statement that took too long: query_canceled, lock_not_available."""
    stands_for: ClassVar[Mapping[tuple[str, str], str]] = {}
    """SQLSTATE that an error stands for, by its own SQLSTATE, which many faults share, and a part of its message."""
    login_refused: ClassVar[re.Pattern[str]] = re.compile(
        "authentication failed|does not exist|no pg_hba.conf entry|permission denied|not permitted|no password supplied"
        "|no such (database|user)"
    )
    """Messages (in English) of a login that would fail again; libpq reports no SQLSTATE for a refused login."""
    commits_are_shared: ClassVar[bool] = True
    """Any node can tell the outcome of a lost COMMIT, and stand in for a busy node; if False, only the node that
    received the COMMIT can tell, and a write does not leave a node that is merely busy."""
    binary_copy: ClassVar[bool] = True
    """COPY uses the binary format where every column type allows it."""
    chunk_rows: ClassVar[int] = 10_000
    """Default size limit of one chunk of a bulk load, in rows."""
    chunk_bytes: ClassVar[int] = 64_000_000
    """Approximate default size limit of one chunk in bytes; bounds memory use."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Create the backend as the settings describe it."""
        return cls()

    def router(self, nodes: Sequence[str], *, preferred_node: str | None, cooldown: float) -> Router:
        """Create the router of a database; see `Router`."""
        return Router(nodes, preferred_node=preferred_node, cooldown=cooldown)

    def session_settings(self, mode: str, timeouts: Timeouts) -> dict[str, str]:
        """Return the server settings of a connection in an access mode; they are sent with its login."""
        durations = {
            "statement_timeout": timeouts.statement,
            "lock_timeout": timeouts.lock,
            "idle_in_transaction_session_timeout": timeouts.idle_in_transaction,
        }
        settings = {name: str(round(1000 * seconds)) for name, seconds in durations.items()}
        return settings if mode == "write" else settings | {"default_transaction_read_only": "on"}

    def configure_engine(self, engine: Engine, node: str, *, statement_timeout: float) -> None:
        """Prepare an engine before its first connection; PostgreSQL needs nothing. The timeout is in seconds."""

    def check_pool(self, engine: Engine, node: str, pool: PoolLimits, *, nodes: int) -> None:
        """Warn, at the first connection, of pools that together are too large; `nodes` is the number of nodes."""

        @event.listens_for(engine, "first_connect")
        def compare(dbapi_connection: Any, _entry: ConnectionPoolEntry) -> None:
            # The asynchronous cursor of SQLAlchemy 2.0 is not a context manager.
            with closing(dbapi_connection.cursor()) as cursor:
                cursor.execute(
                    "SELECT current_setting('max_connections')::int"
                    " - current_setting('superuser_reserved_connections')::int"
                    " - coalesce(current_setting('reserved_connections', true)::int, 0)"
                )
                room = int(cursor.fetchone()[0])
            dbapi_connection.rollback()
            if pool.max_connections > room:
                logger.warning(
                    "%s has room for %d connections, but %d process(es) may open %d: lower POOL_SIZE",
                    *(node, room, pool.processes, pool.max_connections),
                )

    def refusal(self, connection: Connection, node: str, route: R) -> DistributedSQLError | None:
        """Return the reason why an open connection cannot do this work, or None; every PostgreSQL node can."""
        return None

    def committing(self, connection: Connection, *, readonly: bool, in_doubt: bool) -> AbstractContextManager[None]:
        """Return the context in which COMMIT is sent; PostgreSQL needs none. Arguments: see `PinnedSession`."""
        return nullcontext()

    def is_aborted(self, connection: Connection) -> bool:
        """Return True if a statement failed in the current transaction, so that COMMIT would roll it back."""
        if connection.invalidated:
            return True
        driver_connection = connection.connection.driver_connection
        return driver_connection is not None and driver_connection.info.transaction_status.name == "INERROR"

    def route_load(self, db: D, load: str | None, node: str | None) -> D:
        """Return `db` with the route of a load's next transaction; `node` had the one before. Any writer will do."""
        return db

    def sequence_nodes(self, db: D) -> list[D]:
        """Return `db` with the route to each node that counts by itself; the writers share one server's sequences."""
        return [db]
