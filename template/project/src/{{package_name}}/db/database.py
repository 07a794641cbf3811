"""The one object that an application holds: sessions and transactions on a cluster.

    db = Database.from_settings(Settings())

    with db.session() as session: ...               # one transaction, committed at the end, not retried
    db.run(open_account, owner="Ada")               # one transaction, retried as a whole while that is safe
    db.read(balance, account_id)                    # the same in a read-only session, which the server enforces
    db.using(key=account_id, idempotent=True).run(transfer, …)     # with other options: see `RouteOptions`

Objects returned from a unit of work are detached: loaded attributes stay readable, nothing more is fetched.
"""

import copy
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar, Unpack

from sqlalchemy import Engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ..limits import PoolLimits, RetryPolicy, Timeouts
from ..settings import Settings
from . import reading
from .backend import Backend, Route, RouteOptions
from .engines import Engines
from .errors import NodeUnavailable, WrongNode
from .retry import (
    Attempts,
    Counters,
    Threads,
    Verdict,
    classify,
    first_line,
    raise_translated,
    refuses_writes,
    run_with_retries,
)
from .session import PinnedSession

logger = logging.getLogger(__name__)

P = ParamSpec("P")
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
        self.backend = backend or Backend()
        self.route: Route = self.backend.default_route  # options in force; `using` changes them
        self.retry = retry or RetryPolicy()
        self.counters = Counters()
        self._router = self.backend.router(self.nodes, preferred_node=preferred_node, cooldown=cooldown)
        self._engines = Engines(
            urls=dict(nodes),
            backend=self.backend,
            pool=pool or PoolLimits(),
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
        """Create a database as the settings describe it; `password`: as above, where passwords are short-lived."""
        return cls(**database_arguments(settings), password=password)

    def __repr__(self) -> str:
        nodes = ", ".join(f"{name}={url.set(query={})!r}" for name, url in self._engines.urls.items())
        return f"{type(self).__name__}({nodes})"

    def using(self, **options: Unpack[RouteOptions]) -> Self:
        """Return this database with other options (`RouteOptions`); it shares engines, pools, routing and counters."""
        database = copy.copy(self)
        database.route = replace(self.route, **options)
        return database

    def open_session(self, route: Route) -> PinnedSession:
        """Connect to the best node that answers and return a session pinned to it.

        The caller calls `finish()` to commit and always `release()`. `session()` and `run()` do both.

        Raises:
            NodeUnavailable: no node takes the connection, or every pool is full.
            WrongNode: the named node cannot do this work.
        """
        failures: list[Exception] = []
        has_waited = False
        for node in self._router.candidates(route):
            started = time.monotonic()
            try:
                connection = self._engines.connect(node, route.mode, wait=not has_waited)
            except NodeUnavailable as error:
                # Its pool is full. Nothing was sent, so another node is safe, if it has a connection at once.
                failures.append(error)
                if has_waited:
                    continue
                has_waited = True
                if not self._engines.returned_since(started, node, route.mode):
                    # Nothing came back during the whole wait: the node is silent, as far as this process can see.
                    self._mark_down(node, str(error))
                elif not route.readonly and not self.backend.commits_are_shared:
                    # The node is merely busy, hence not marked down: that would send the work of every key elsewhere.
                    # Other nodes must not change the same rows meanwhile if each node has a history of its own.
                    break
                continue
            except DBAPIError as error:
                if classify(error, connecting=True) is Verdict.FATAL:
                    raise
                failures.append(error)
                self._mark_down(node, f"{node} does not take connections: {first_line(error)}")
                continue
            self._router.mark_up(node)
            try:
                refusal = self.backend.refusal(connection, node, route)
            except BaseException as error:
                connection.close()
                if classify(error) is Verdict.FATAL:
                    raise
                refusal = NodeUnavailable(f"{node}: {first_line(error)}", node=node)
            if refusal:
                connection.close()
                if node == route.node and isinstance(refusal, WrongNode):
                    raise refusal
                failures.append(refusal)
                continue
            options = self._execution_options
            if route.isolation_level:
                options = options | {"isolation_level": route.isolation_level}
            elif route.readonly:
                options = options | {reading.OPTION: reading.Reading()}
            if options:
                connection = connection.execution_options(**options)
            return PinnedSession(connection, node=node, readonly=route.readonly, backend=self.backend)
        reasons = "; ".join(dict.fromkeys(map(first_line, failures)))
        message = f"no connection to {route.node or 'any node'}: {reasons}"
        raise NodeUnavailable(message, node=route.node, failures=failures) from failures[-1]

    def translate_error(self, error: Exception, session: PinnedSession) -> None:
        """Raise what an error means to the caller of `session()`, if it means more; see `raise_translated`."""
        if not session.readonly and refuses_writes(error):
            self._router.mark_down(session.node)
        raise_translated(error, node=session.node, readonly=session.readonly, committing=session.committing)

    def _mark_down(self, node: str, message: str) -> None:
        if self._router.mark_down(node):
            logger.warning(message)

    def _run(self, work: Callable[[PinnedSession], T], *, readonly: bool) -> T:
        route = self.route.for_reads if readonly else self.route
        policy = route.retry or self.retry
        attempts = Attempts(policy, route, time.monotonic(), self.counters, self._router.mark_down)
        return run_with_retries(attempts, self.open_session, work, concurrency=self.concurrency, lock=self._retry_lock)


class Database(DatabaseCore):
    """Sessions and transactions on the nodes of one cluster. Thread-safe; make one per process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()

    def engine(self, node: str) -> Engine:
        """Return the engine of one node, for SQLAlchemy without routing and retries."""
        return self._engines.get(self._router.candidates(replace(self.route, node=node))[0])

    def dispose(self) -> None:
        """Close every pooled connection, at the end of the process; a forked child has new ones anyway."""
        for engine in self._engines.created():
            engine.dispose()

    @contextmanager
    def session(self, *, readonly: bool = False, **options: Unpack[RouteOptions]) -> Iterator[PinnedSession]:
        """Open one transaction: committed when the block ends, rolled back when it raises, never retried.

        If `readonly`, the server refuses writes, and other nodes may take the work. Options: see `RouteOptions`.

        Raises:
            AmbiguousCommit: the answer to COMMIT was lost.
            NodeUnavailable: no node answered or had a free connection, or the node was lost in the block.
            RetriesExhausted: the transaction lost a race (serialization failure, deadlock); `run` runs it again.
            WrongNode: the session is read-only and wrote, or the named node cannot do this work.
        """
        route = self.route.for_reads if readonly else self.route
        session = self.open_session(replace(route, **options) if options else route)
        try:
            yield session
            session.finish()
        except Exception as error:
            self.translate_error(error, session)
            raise
        finally:
            session.release()

    def run(self, work: Callable[Concatenate[PinnedSession, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(session, …)` as one transaction, again while that is safe and useful.

        `work` may be called several times, each time with a new session: keep to effects that a rollback undoes.

        Raises:
            AmbiguousCommit: the answer to COMMIT was lost.
            RetriesExhausted: each attempt failed for a reason that may pass.
            NodeUnavailable: no node answered or had a free connection.
        """
        return self._run(lambda session: work(session, *args, **kwargs), readonly=False)

    def read(self, work: Callable[Concatenate[PinnedSession, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(session, …)` as `run` does, in a read-only session, which the server enforces."""
        return self._run(lambda session: work(session, *args, **kwargs), readonly=True)

    def transactional(self, work: Callable[Concatenate[PinnedSession, P], T]) -> Callable[P, T]:
        """Decorate a function so that it is called without a session and runs through `run`."""

        @functools.wraps(work)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.run(work, *args, **kwargs)

        return run


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
