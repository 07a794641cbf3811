"""One SQLAlchemy engine per node and access mode, made on first use.

A pool is a budget: size times processes against the server's limit. Connections are replaced before they grow old, not all
at once, and pinged only after they have been idle.
"""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """The pool of one node in one process. Durations in seconds."""

    size: int = 5
    overflow: int = 5
    timeout: float = 5.0
    lifetime: float = 900.0
    ping_after: float = 5.0


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


class Engines:
    """The engines of all nodes. Thread-safe; nothing connects before it is used."""

    def __init__(self, urls: Mapping[str, URL], *, pool: PoolLimits, timeouts: Timeouts, application_name: str) -> None:
        self._urls = dict(urls)
        self._pool = pool
        self._timeouts = timeouts
        self._application_name = application_name
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

    def dispose(self) -> None:
        """Close every pooled connection."""
        with self._lock:
            for engine in self._engines.values():
                engine.dispose()

    def _make(self, node: str, *, readonly: bool) -> Engine:
        options = self._timeouts.as_options()
        if readonly:
            options += " -c default_transaction_read_only=on"
        engine = create_engine(
            self._urls[node],
            pool_size=self._pool.size,
            max_overflow=self._pool.overflow,
            pool_timeout=self._pool.timeout,
            pool_recycle=round(self._pool.lifetime),
            # The most recently used connection first: the rest grow idle, and the server may forget them.
            pool_use_lifo=True,
            # A reader has nothing to commit: outside a transaction a query costs one round trip instead of three.
            isolation_level="AUTOCOMMIT" if readonly else "READ COMMITTED",
            connect_args={
                "connect_timeout": self._timeouts.connect,
                "application_name": self._application_name,
                "options": options,
                # A peer that vanished is noticed after about 11 s instead of the kernel's two hours.
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": 11_000,
            },
        )
        _spread_recycling(engine, self._pool.lifetime)
        _ping_when_idle(engine, self._pool.ping_after)
        return engine


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
