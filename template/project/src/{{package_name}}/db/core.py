"""What `Database` and its asyncio counterpart share: engines, routing, retries, and the options in force."""

import copy
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self, TypeVar, Unpack

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ..limits import PoolLimits, RetryPolicy, Timeouts
from ..settings import Settings
from .backend import Backend, Route, RouteOptions
from .concurrency import Threads
from .engines import Engines
from .errors import NodeUnavailable, WrongNode
from .retry import Attempts, Counters, Verdict, classify, first_line, run_with_retries
from .session import PinnedSession

logger = logging.getLogger(__name__)

T = TypeVar("T")


class DatabaseCore:
    """Base of `Database`: whatever is the same for threads and for asyncio."""

    concurrency: ClassVar[Threads] = Threads()

    def __init__(
        self,
        nodes: Mapping[str, URL],
        *,
        backend: Backend | None = None,
        preferred_node: str | None = None,
        pool: PoolLimits | None = None,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        cooldown: float = 2.0,
        application_name: str = "",
        transaction_pooler: bool = False,
        password: Callable[[str], str] | None = None,
        execution_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare a database; nothing connects before it is used.

        Args:
            nodes: URL of each node by name, the preferred order first.
            backend: options of the backend; None: its defaults.
            preferred_node: node to try first, usually the nearest one.
            pool: limits of the pool of each node.
            timeouts: time limits of each connection.
            retry: policy for work that names none.
            cooldown: seconds for which a node that refused a connection is tried last.
            application_name: name shown by the server's views.
            transaction_pooler: the URLs lead to a pooler in transaction mode, such as PgBouncer.
            password: callback that returns the password for a node, called for each new connection.
            execution_options: SQLAlchemy's execution options of every connection.
        """
        self.nodes = tuple(nodes)
        """Names of the nodes."""
        self.backend = backend or Backend()
        """Options of the backend."""
        self.route: Route = self.backend.default_route()
        """Options in force; `using` changes them."""
        self.retry = retry or RetryPolicy()
        """Policy of work that names none."""
        self.counters = Counters()
        """Counters of retries and failures."""
        self._router = self.backend.router(self.nodes, preferred_node=preferred_node, cooldown=cooldown)
        self._engines = Engines(
            nodes,
            backend=self.backend,
            pool=self.concurrency.pool(pool or PoolLimits()),
            timeouts=timeouts or Timeouts(),
            application_name=application_name,
            transaction_pooler=transaction_pooler,
            password=password,
            create_engine=self.concurrency.create_engine,
        )
        self._execution_options = dict(execution_options or {})
        self._retry_lock = self.concurrency.make_lock()

    @classmethod
    def from_settings(cls, settings: Settings, *, password: Callable[[str], str] | None = None) -> Self:
        """Create a database as the settings describe it.

        Args:
            settings: usually read from the environment.
            password: callback that returns the password for a node, where passwords are short-lived tokens.
        """
        return cls(**database_arguments(settings), password=password)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._engines!r})"

    def using(self, **options: Unpack[RouteOptions]) -> Self:
        """Return this database with other options; it shares engines, pools, routing and counters.

        Args:
            **options: see `RouteOptions`.
        """
        database = copy.copy(self)
        database.route = replace(self.route, **options)
        return database

    def open_session(self, route: Route) -> PinnedSession:
        """Connect to the best node that answers and return a session pinned to it.

        The caller calls `finish()` to commit and always `release()`. `session()` and `run()` do both.

        Raises:
            NodeUnavailable: no node takes the connection.
            WrongNode: the named node cannot do this work.
        """
        failures: list[Exception] = []
        for node in self._router.candidates(route):
            try:
                connection = self._engines.get(node, route.mode).connect()
            except DBAPIError as error:
                if classify(error, connecting=True) is Verdict.FATAL:
                    raise
                failures.append(error)
                if self._router.mark_down(node):
                    logger.warning("%s does not take connections: %s", node, first_line(error))
                continue
            self._router.mark_up(node)
            try:
                refusal = self.backend.refusal(connection, node, route)
            except BaseException:
                connection.close()
                raise
            if refusal:
                connection.close()
                if node == route.node and isinstance(refusal, WrongNode):
                    raise refusal
                failures.append(refusal)
                continue
            options = self._execution_options
            if route.isolation_level:
                options = options | {"isolation_level": route.isolation_level}
            connection = connection.execution_options(**options)
            return PinnedSession(connection, node=node, readonly=route.readonly, backend=self.backend)
        raise _unreachable(failures, route)

    def _run(self, work: Callable[[PinnedSession], T], *, readonly: bool) -> T:
        route = replace(self.route, readonly=readonly)
        attempts = Attempts(
            route.retry or self.retry, route, time.monotonic(), self.counters, mark_down=self._router.mark_down
        )
        return run_with_retries(attempts, self.open_session, work, concurrency=self.concurrency, lock=self._retry_lock)


def _unreachable(failures: list[Exception], route: Route) -> NodeUnavailable:
    reasons = "; ".join(dict.fromkeys(map(first_line, failures)))
    error = NodeUnavailable(
        f"no connection to {route.node or 'any node'}: {reasons}", node=route.node, failures=failures
    )
    error.__cause__ = failures[-1]
    return error


def database_arguments(settings: Settings) -> dict[str, Any]:
    """Return the arguments of a `Database` that the settings describe."""
    return {
        "nodes": settings.urls(),
        "backend": Backend.from_settings(settings),
        "preferred_node": settings.preferred_node,
        "pool": settings.pool,
        "timeouts": settings.timeout,
        "retry": settings.retry,
        "cooldown": settings.node_cooldown,
        "application_name": settings.application_name,
        "transaction_pooler": settings.transaction_pooler,
    }
