"""One SQLAlchemy engine per node and access mode, made on first use.

A pool is a budget: size times processes against the server's limit. Connections are replaced before they grow old, not all
at once, and pinged only after they have been idle.
"""

import logging
import random
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

from sqlalchemy import Engine, NullPool, Pool, QueuePool, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from . import backend

logger = logging.getLogger(__name__)
sql_logger = logging.getLogger(f"{__package__}.sql")
"""One line per statement with its node and duration, at INFO, when `PoolLimits.log_sql` asks for it. Never parameters."""


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """The pool of one node in one process. Durations in seconds."""

    size: int = 5
    overflow: int = 5
    timeout: float = 5.0
    lifetime: float = 900.0
    ping_after: float = 5.0
    processes: int = 1
    """How many processes have such a pool: what the server must have room for is the product."""
    poolclass: type[Pool] = QueuePool
    """`NullPool` behind an external pooler; `StaticPool` for one connection shared by everyone, as some tests want."""
    log_sql: bool = False

    @property
    def most(self) -> int:
        """The most connections that all processes together open to one node."""
        return self.processes * (self.size + self.overflow)


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Where the server, or the driver, gives up. Durations in seconds; 0 means never, as in PostgreSQL."""

    connect: int = 3
    statement: float = 30.0
    lock: float = 5.0
    idle_in_transaction: float = 30.0

    def as_options(self) -> str:
        """The startup options of libpq: set with the connection, at no round trip."""
        values = {
            "statement_timeout": self.statement,
            "lock_timeout": self.lock,
            "idle_in_transaction_session_timeout": self.idle_in_transaction,
        }
        return " ".join(f"-c {name}={round(seconds * 1000)}" for name, seconds in values.items())


class MakeEngine(Protocol):
    """`create_engine`, or its asynchronous twin with the synchronous engine taken out."""

    def __call__(self, url: URL, **options: Any) -> Engine:
        """Make an engine."""


class Engines:
    """The engines of all nodes. Thread-safe; nothing connects before it is used."""

    def __init__(
        self,
        urls: Mapping[str, URL],
        *,
        pool: PoolLimits,
        timeouts: Timeouts,
        application_name: str,
        transaction_pooler: bool = False,
        make: MakeEngine = create_engine,
    ) -> None:
        self._urls = dict(urls)
        self._pool = pool
        self._timeouts = timeouts
        self._application_name = application_name
        self._transaction_pooler = transaction_pooler
        self._make_engine = make
        self._engines: dict[tuple[str, bool], Engine] = {}
        self._lock = Lock()

    def __repr__(self) -> str:
        nodes = ", ".join(f"{name}={url.render_as_string(hide_password=True)}" for name, url in self._urls.items())
        return f"{type(self).__name__}({nodes})"

    def get(self, node: str, *, readonly: bool = False) -> Engine:
        """The engine of `node`; with `readonly` one whose server refuses to write."""
        engine = self._engines.get((node, readonly))
        if engine is None:
            with self._lock:
                engine = self._engines.get((node, readonly)) or self._make(node, readonly=readonly)
                self._engines[node, readonly] = engine
        return engine

    def made(self) -> list[Engine]:
        """The engines in use so far."""
        with self._lock:
            return list(self._engines.values())

    def _make(self, node: str, *, readonly: bool) -> Engine:
        engine = self._make_engine(
            self._urls[node],
            **self._pool_options(),
            **self._access(readonly=readonly),
            connect_args=self._login(readonly),
        )
        _spread_recycling(engine, self._pool.lifetime)
        _ping_when_idle(engine, self._pool.ping_after)
        _check_budget(engine, node, self._pool)
        if readonly and self._transaction_pooler:
            _begin_read_only(engine)
        if self._pool.log_sql:
            _log_statements(engine, node)
        return engine

    def _pool_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"poolclass": self._pool.poolclass}
        if issubclass(self._pool.poolclass, QueuePool):
            options |= {
                "pool_size": self._pool.size,
                "max_overflow": self._pool.overflow,
                "pool_timeout": self._pool.timeout,
                # The most recently used connection first: the rest grow idle, and the server may forget them.
                "pool_use_lifo": True,
            }
        if not issubclass(self._pool.poolclass, NullPool):
            options["pool_recycle"] = round(self._pool.lifetime)
        return options

    def _access(self, *, readonly: bool) -> dict[str, Any]:
        # A reader has nothing to commit: outside a transaction a query costs one round trip instead of three. Behind a
        # pooler the transaction is what keeps it from writing.
        autocommit = readonly and not self._transaction_pooler
        return {"isolation_level": "AUTOCOMMIT" if autocommit else backend.ISOLATION}

    def _login(self, readonly: bool) -> dict[str, Any]:
        login: dict[str, Any] = {
            "connect_timeout": self._timeouts.connect,
            "application_name": self._application_name,
            # A peer that vanished is noticed after about 11 s instead of the kernel's two hours.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 11_000,
        }
        if self._transaction_pooler:
            # Nothing may live in a session that the next transaction does not get: neither prepared statements nor
            # settings. The role carries the timeouts then (ALTER ROLE … SET statement_timeout).
            return login | {"prepare_threshold": None}
        options = self._timeouts.as_options()
        return login | {"options": f"{options} -c default_transaction_read_only=on" if readonly else options}


def _spread_recycling(engine: Engine, lifetime: float) -> None:
    """Make each connection look up to a fifth of its lifetime older, so that they are not replaced together."""

    @event.listens_for(engine, "connect")
    def age(_dbapi_connection: Any, entry: ConnectionPoolEntry) -> None:
        record: Any = entry
        record.starttime -= random.uniform(0, lifetime / 5)  # noqa: S311


def _ping_when_idle(engine: Engine, after: float) -> None:
    @event.listens_for(engine, "checkin")
    def remember(_dbapi_connection: Any, entry: ConnectionPoolEntry) -> None:
        entry.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ping(dbapi_connection: Any, entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
        idle_since = entry.info.get("idle_since")
        if idle_since is None or time.monotonic() - idle_since < after:
            return
        try:
            alive = engine.dialect.do_ping(dbapi_connection)
        except engine.dialect.loaded_dbapi.Error:
            alive = False
        if not alive:
            # The pool answers this by trying again with a fresh connection.
            raise DisconnectionError("the connection was closed while it lay idle")


def _check_budget(engine: Engine, node: str, pool: PoolLimits) -> None:
    """Warn, at the first connection, of pools that together are larger than the server."""

    @event.listens_for(engine, "first_connect")
    def compare(dbapi_connection: Any, _entry: ConnectionPoolEntry) -> None:
        # The asynchronous cursor of SQLAlchemy 2.0 is no context manager.
        with closing(dbapi_connection.cursor()) as cursor:
            cursor.execute(backend.ROOM_FOR_CONNECTIONS)
            room = int(cursor.fetchone()[0])
        dbapi_connection.rollback()
        if pool.most > room:
            logger.warning(
                "%s has room for %d connections, but %d process(es) may open %d: lower pool_size or pool_overflow",
                *(node, room, pool.processes, pool.most),
            )


def _begin_read_only(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def read_only(dbapi_connection: Any, _entry: ConnectionPoolEntry) -> None:
        dbapi_connection.read_only = True


def _log_statements(engine: Engine, node: str) -> None:
    @event.listens_for(engine, "before_cursor_execute")
    def start(*arguments: Any) -> None:
        arguments[4]._started = time.perf_counter()

    @event.listens_for(engine, "after_cursor_execute")
    def stop(*arguments: Any) -> None:
        statement, context = arguments[2], arguments[4]
        duration = 1000 * (time.perf_counter() - context._started)
        sql_logger.info("%s %.1f ms %s", node, duration, " ".join(statement.split()))
