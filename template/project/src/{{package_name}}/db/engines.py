"""One SQLAlchemy engine per node and access mode, created on first use.

A pool is a budget: its size times the number of processes, against the server's limit. Connections are replaced before
they grow old, at different moments, and pinged only after they have been idle.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

from sqlalchemy import Engine, NullPool, QueuePool, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from ..limits import PoolLimits, Timeouts
from .backend import Backend

sql_logger = logging.getLogger(f"{__package__}.sql")
"""Logger of statements, at INFO, when `PoolLimits.log_sql` asks for it: node, duration, statement; never parameters."""


class Engines:
    """Engines of all nodes. Thread-safe; nothing connects before it is used."""

    def __init__(
        self,
        urls: Mapping[str, URL],
        *,
        backend: Backend,
        pool: PoolLimits,
        timeouts: Timeouts,
        application_name: str,
        transaction_pooler: bool,
        password: Callable[[str], str] | None,
        create_engine: Callable[..., Engine],
    ) -> None:
        """Store the options of every engine, which are those of `Database`."""
        self._urls = dict(urls)
        self._backend = backend
        self._pool = pool
        self._timeouts = timeouts
        self._application_name = application_name
        self._transaction_pooler = transaction_pooler
        self._password = password
        self._create_engine = create_engine
        self._engines: dict[tuple[str, str], Engine] = {}
        self._lock = Lock()

    def __repr__(self) -> str:
        nodes = ", ".join(f"{name}={url.render_as_string(hide_password=True)}" for name, url in self._urls.items())
        return f"{type(self).__name__}({nodes})"

    def get(self, node: str, mode: str = "write") -> Engine:
        """Return the engine of `node` for an access mode (`Route.mode`)."""
        engine = self._engines.get((node, mode))
        if engine is None:
            with self._lock:
                engine = self._engines.get((node, mode)) or self._create(node, mode)
                self._engines[node, mode] = engine
        return engine

    def created(self) -> list[Engine]:
        """Return the engines that are in use so far."""
        with self._lock:
            return list(self._engines.values())

    def _create(self, node: str, mode: str) -> Engine:
        # A reader has nothing to commit: outside a transaction a query costs one round trip instead of three. Behind a
        # pooler the transaction is what keeps it from writing.
        autocommit = mode != "write" and not self._transaction_pooler
        engine = self._create_engine(
            self._urls[node],
            **self._pool_options(),
            isolation_level="AUTOCOMMIT" if autocommit else self._backend.isolation_level,
            connect_args=self._login(mode),
        )
        _spread_recycling(engine, self._pool.lifetime)
        _ping_when_idle(engine, self._pool.ping_after)
        self._backend.check_pool(engine, node, self._pool, nodes=len(self._urls))
        if mode != "write" and self._transaction_pooler:
            _begin_read_only(engine)
        if self._password is not None:
            _ask_for_password(engine, node, self._password)
        if self._pool.log_sql:
            _log_statements(engine, node)
        self._backend.configure_engine(engine, node, statement_timeout=self._timeouts.statement)
        return engine

    def _pool_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"poolclass": self._pool.poolclass}
        if issubclass(self._pool.poolclass, QueuePool):
            options |= {
                "pool_size": self._pool.size,
                "max_overflow": self._pool.max_overflow,
                "pool_timeout": self._pool.timeout,
                # The most recently used connection first: the rest grow idle, and the server may close them.
                "pool_use_lifo": True,
            }
        if not issubclass(self._pool.poolclass, NullPool):
            options["pool_recycle"] = round(self._pool.lifetime)
        return options

    def _login(self, mode: str) -> dict[str, Any]:
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
            # Nothing may depend on a session that the next transaction does not get: neither prepared statements nor
            # settings. The role carries the timeouts then (ALTER ROLE … SET statement_timeout).
            return login | {"prepare_threshold": None}
        settings = self._backend.session_settings(mode, self._timeouts)
        return login | {"options": " ".join(f"-c {name}={value}" for name, value in settings.items())}


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
            # The pool answers this error with a fresh connection.
            raise DisconnectionError("the connection was closed while it was idle")


def _ask_for_password(engine: Engine, node: str, password: Callable[[str], str]) -> None:
    @event.listens_for(engine, "do_connect")
    def fill_in(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
        parameters["password"] = password(node)


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
