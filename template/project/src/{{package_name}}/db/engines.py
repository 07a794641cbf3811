"""One SQLAlchemy engine per node and access mode, created on first use.

A pool is a budget: its size times the number of processes, against the server's limit. Connections are replaced before
they grow old, at different moments, and pinged only after they have been idle.
"""

import logging
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol
from weakref import WeakSet

from sqlalchemy import Connection, Engine, QueuePool, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from ..limits import PoolLimits, Timeouts
from ..settings import PREFIX
from ..urls import required_authentication, url_parameters, warn_of_unverified
from .backend import Backend
from .errors import MisuseError, NodeUnavailable
from .reading import begin_when_needed
from .retry import first_line

sql_logger = logging.getLogger(f"{__package__}.sql")
"""Logger of statements, at INFO, when `PoolLimits.log_sql` asks for it: node, duration, statement; never parameters."""

_STALE_PLAN = "cached plan must not change result type"


class ConnectionHolder(Protocol):
    """A holder of connections that stay open between two units of work."""

    def leave_to_parent(self) -> None:
        """Drop the connections without closing them: this process is a fork, and they are its parent's."""


left_to_parent: WeakSet[ConnectionHolder] = WeakSet()
"""Everything in this process that keeps connections."""


def _leave_all_to_parent() -> None:
    for holder in list(left_to_parent):
        holder.leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)


@dataclass(kw_only=True, eq=False, repr=False)
class Engines:
    """Engines of all nodes. Thread-safe; nothing connects before it is used. Options: see `DatabaseCore`."""

    urls: Mapping[str, URL]
    backend: Backend
    pool: PoolLimits
    timeouts: Timeouts
    application_name: str
    transaction_pooler: bool
    password: Callable[[str], str] | None
    create_engine: Callable[..., Engine]
    _engines: dict[tuple[str, str], Engine] = field(default_factory=dict, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)
    _returned: dict[Engine, float] = field(default_factory=dict, init=False)

    def get(self, node: str, mode: str = "write") -> Engine:
        """Return the engine of `node` for an access mode (`Route.mode`)."""
        with self._lock:
            if (node, mode) not in self._engines:
                self._engines[node, mode] = self._create(node, mode)
            return self._engines[node, mode]

    def __post_init__(self) -> None:
        """Leave the connections to the parent after a fork."""
        left_to_parent.add(self)

    def leave_to_parent(self) -> None:
        """Drop the connections without closing them, as `ConnectionHolder` asks."""
        self._lock = Lock()
        for engine in self._engines.values():
            engine.dispose(close=False)

    def connect(self, node: str, mode: str, *, wait: bool) -> Connection:
        """Return a connection of the pool of `node`.

        Args:
            node: name of the node.
            mode: access mode (`Route.mode`).
            wait: wait for one to come free, as long as the pool's timeout.

        Raises:
            NodeUnavailable: every connection that the pool may have is in use. Nothing was sent.
        """
        engine = self.get(node, mode)
        most = self.pool.size + self.pool.max_overflow
        if not wait and isinstance(engine.pool, QueuePool) and engine.pool.checkedout() >= most:
            raise NodeUnavailable(f"{node}: all {most} connections of its pool are in use", node=node)
        try:
            return engine.connect()
        except PoolTimeout as error:
            raise NodeUnavailable(
                f"{node}: all {most} connections of its pool are in use, and none came free within "
                f"{self.pool.timeout:g} s. End units of work sooner, or raise POOL_SIZE",
                node=node,
            ) from error

    def returned_since(self, moment: float, node: str, mode: str) -> bool:
        """Return True if a sound connection came back to a pool after `moment`, on the monotonic clock."""
        return self._returned.get(self.get(node, mode), 0.0) >= moment

    def created(self) -> list[Engine]:
        """Return the engines that are in use so far."""
        return list(self._engines.values())

    def _create(self, node: str, mode: str) -> Engine:
        options = self._pool_options() | {"isolation_level": self.backend.isolation_level}
        begins_late = mode != "write" and not self.transaction_pooler and options["isolation_level"] == "READ COMMITTED"
        if begins_late:
            options["isolation_level"] = "AUTOCOMMIT"
        elif mode != "write" and self.transaction_pooler:
            # The transaction is what keeps a reader from writing.
            options["execution_options"] = {"postgresql_readonly": True}
        engine = self.create_engine(self.urls[node], **options, connect_args=self._login(node, mode))
        if begins_late:
            begin_when_needed(engine)
        self._discard_stale_plans(engine)
        self._refuse_wrong_urls(engine, node)
        self._spread_recycling(engine)
        self._ping_when_idle(engine)
        if self.password is not None:
            self._ask_for_password(engine, node, self.password)
        if self.pool.log_sql:
            self._log_statements(engine, node)
        self.backend.check_pool(engine, node, self.pool, nodes=len(self.urls))
        self.backend.configure_engine(engine, node, statement_timeout=self.timeouts.statement)
        return engine

    def _pool_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"poolclass": self.pool.poolclass, "pool_recycle": round(self.pool.lifetime)}
        if not issubclass(self.pool.poolclass or QueuePool, QueuePool):
            return options
        return options | {
            "pool_size": self.pool.size,
            "max_overflow": self.pool.max_overflow,
            "pool_timeout": self.pool.timeout,
            # The most recently used connection first: the rest grow idle, and the server may close them.
            "pool_use_lifo": True,
        }

    def _login(self, node: str, mode: str) -> dict[str, Any]:
        """Return the parameters of a connection: those of the URL win over the program's own."""
        theirs = url_parameters(self.urls[node])
        warn_of_unverified(self.urls[node])
        login: dict[str, Any] = {
            **required_authentication(self.urls[node], has_callback=self.password is not None),
            "connect_timeout": self.timeouts.connect,
            "application_name": self.application_name,
            # A peer that vanished is noticed after about 11 s instead of the kernel's two hours.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 11_000,
        }
        if self.transaction_pooler:
            # Nothing may depend on a session that the next transaction does not get: neither prepared statements nor
            # settings. The role carries the timeouts then (ALTER ROLE … SET statement_timeout).
            return login | {"prepare_threshold": None} | theirs
        writers = self.backend.session_settings("write", self.timeouts)
        settings = self.backend.session_settings(mode, self.timeouts)
        ours, readers = (
            [f"-c {name}={value}" for name, value in settings.items() if (name in writers) is of_writers]
            for of_writers in (True, False)
        )
        # The last setting of a name holds: reads rely on those that only readers have.
        options = " ".join([*ours, theirs.get("options") or os.environ.get("PGOPTIONS", ""), *readers])
        return login | theirs | {"options": options}

    def _refuse_wrong_urls(self, engine: Engine, node: str) -> None:
        @event.listens_for(engine, "handle_error")
        def refuse(context: ExceptionContext) -> None:
            reason = first_line(context.original_exception)
            if context.connection is None and _WRONG_URL.search(reason):
                advice = "Correct the parameters of its URL"
                if "startup parameter" in reason:
                    advice += f", or set {PREFIX}TRANSACTION_POOLER=true and let {PREFIX}ADMIN_NODES bypass the pooler"
                if "method requirement" in reason:
                    advice += ": add require_auth=password or md5 only if no other program can listen at that address"
                raise MisuseError(f"{node}: {reason}. {advice}", node=node)

    def _spread_recycling(self, engine: Engine) -> None:
        """Make each connection look up to a fifth of its lifetime older, so that they are not replaced together."""

        @event.listens_for(engine, "connect")
        def age(_dbapi_connection: Any, entry: Any) -> None:
            entry.starttime -= random.uniform(0, self.pool.lifetime / 5)  # noqa: S311

    def _ping_when_idle(self, engine: Engine) -> None:
        @event.listens_for(engine, "checkin")
        def remember(dbapi_connection: Any, entry: ConnectionPoolEntry) -> None:
            entry.info["idle_since"] = time.monotonic()
            if dbapi_connection is not None:
                self._returned[engine] = entry.info["idle_since"]

        @event.listens_for(engine, "checkout")
        def ping(dbapi_connection: Any, entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
            idle_since = entry.info.get("idle_since")
            if idle_since is None or time.monotonic() - idle_since < self.pool.ping_after:
                return
            try:
                alive = engine.dialect.do_ping(dbapi_connection)
            except engine.dialect.loaded_dbapi.Error:
                alive = False
            if not alive:
                # The pool answers this error with a fresh connection.
                raise DisconnectionError("the connection was closed while it was idle")

    def _discard_stale_plans(self, engine: Engine) -> None:
        """Let a connection go whose prepared statements are older than a migration: it would fail for good."""

        @event.listens_for(engine, "handle_error")
        def discard(context: ExceptionContext) -> None:
            # Its SQLSTATE, 0A000, has many meanings. A message may be translated; not all servers name the function.
            source = getattr(getattr(context.original_exception, "diag", None), "source_function", None)
            if source == "RevalidateCachedQuery" or _STALE_PLAN in str(context.original_exception):
                context.is_disconnect = True

    def _ask_for_password(self, engine: Engine, node: str, password: Callable[[str], str]) -> None:
        @event.listens_for(engine, "do_connect")
        def fill_in(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
            parameters["password"] = password(node)

    def _log_statements(self, engine: Engine, node: str) -> None:
        @event.listens_for(engine, "before_cursor_execute")
        def start(*arguments: Any) -> None:
            arguments[4]._started = time.perf_counter()

        @event.listens_for(engine, "after_cursor_execute")
        def stop(*arguments: Any) -> None:
            statement, context = arguments[2], arguments[4]
            duration = 1000 * (time.perf_counter() - context._started)
            sql_logger.info("%s %.1f ms %s", node, duration, " ".join(statement.split()))


# Messages (in English) about a parameter of the URL, which libpq and the server report without a SQLSTATE at login.
_WRONG_URL = re.compile(
    "unsupported startup parameter|unrecognized configuration parameter|invalid (.*value|port number|command-line)"
    "|bad value for|requires a value|definition of service|required, but|but SSL was required|method requirement"
)
