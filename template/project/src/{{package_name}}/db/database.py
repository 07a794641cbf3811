"""The one object an application holds: sessions and transactions on a cluster.

    db = Database.from_settings(Settings())

    with db.session() as session: ...                  # one transaction, committed at the end, not retried
    db.run(bank.open_account, owner="Ada")             # one transaction, retried as a whole while that is safe
    db.read(bank.balance, account_id)                  # the same, on a session that the server keeps from writing
    db.options(key=account_id).run(bank.transfer, …)   # on the home node of that account

Objects returned from a unit of work are detached: what was loaded stays readable, nothing more is fetched.
"""

import functools
import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeAlias, TypeVar

from sqlalchemy import Engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ..settings import Settings
from .engines import Engines, PoolLimits, Timeouts
from .errors import MisuseError, NodeUnavailable
from .retry import Attempts, Counters, RetryPolicy, Verdict, classify, explained, first_line
from .routing import Route, Router
from .unit import UnitOfWork, connection_options

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

Isolation: TypeAlias = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

inside_work: ContextVar[bool] = ContextVar("inside_work", default=False)
"""Whether this context is inside the function of a retried unit of work."""


def refuse_nesting() -> None:
    """Raise if a retried unit of work is running here.

    Raises:
        MisuseError: one is.
    """
    if inside_work.get():
        raise MisuseError(
            "a unit of work is already running here: pass its session on instead of starting another inside it, "
            "which would stay committed when the outer one is rolled back"
        )


class Database:
    """Sessions and transactions on the nodes of one cluster. Thread-safe; make one per process."""

    def __init__(
        self,
        nodes: Mapping[str, URL],
        *,
        home: str | None = None,
        pool: PoolLimits | None = None,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        cooldown: float = 2.0,
        application_name: str = "",
        transaction_pooler: bool = False,
        execution_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.nodes = tuple(nodes)
        self.retry = retry or RetryPolicy()
        self.counters = Counters()
        self._router = Router(self.nodes, home=home, cooldown=cooldown)
        self._engines = Engines(
            nodes,
            pool=pool or PoolLimits(),
            timeouts=timeouts or Timeouts(),
            application_name=application_name,
            transaction_pooler=transaction_pooler,
        )
        self._execution_options = dict(execution_options or {})
        self._gate = Lock()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """A database as the settings describe it."""
        return cls(**options_from(settings))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._engines!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()

    def engine(self, node: str) -> Engine:
        """The engine of one node, for those who need SQLAlchemy without the rules above."""
        return self._engines.get(self._router.candidates(Route(node=node))[0])

    def dispose(self) -> None:
        """Close every pooled connection, at the end of the process or after a fork."""
        for engine in self._engines.made():
            engine.dispose()

    def options(
        self,
        *,
        node: str | None = None,
        key: Hashable | None = None,
        idempotent: bool = False,
        isolation: Isolation | None = None,
        retry: RetryPolicy | None = None,
    ) -> "Options":
        """Say how the next unit of work is to be run.

        Args:
            node: on this node and no other.
            key: on the home node of this key, or the next one while that is down.
            idempotent: running it twice has the effect of once, so an ambiguous commit is settled by running it again.
            isolation: another level than READ COMMITTED; REPEATABLE READ gives a read one snapshot.
            retry: another policy than the database's.
        """
        return Options(self, Route(node=node, key=key), idempotent, isolation, retry or self.retry)

    def session(
        self,
        *,
        readonly: bool = False,
        node: str | None = None,
        key: Hashable | None = None,
        isolation: Isolation | None = None,
    ) -> AbstractContextManager[UnitOfWork]:
        """One transaction: committed when the block ends, rolled back when it raises, never retried."""
        return self.options(node=node, key=key, isolation=isolation).session(readonly=readonly)

    def run(self, work: Callable[Concatenate[UnitOfWork, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(session, …)` as one transaction, again while that is safe and useful.

        `work` may be called several times, each time with a new session, so it does only what a rollback undoes.

        Raises:
            AmbiguousCommit: the answer to COMMIT was lost.
            RetriesExhausted: each attempt failed for a reason that may pass.
            NodeUnavailable: no node answered.
        """
        return self.options().run(work, *args, **kwargs)

    def read(self, work: Callable[Concatenate[UnitOfWork, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, on a session that the server keeps from writing."""
        return self.options().read(work, *args, **kwargs)

    def transactional(self, work: Callable[Concatenate[UnitOfWork, P], T]) -> Callable[P, T]:
        """As a decorator: the function is called without the session, and runs as `run` has it."""
        return self.options().transactional(work)

    def _begin(self, route: Route, isolation: Isolation | None) -> UnitOfWork:
        """Connect to the best node that answers and pin a session to it."""
        failures: list[Exception] = []
        for node in self._router.candidates(route):
            try:
                connection = self._engines.get(node, readonly=route.readonly).connect()
            except DBAPIError as error:
                if classify(error, connecting=True) is Verdict.FATAL:
                    raise
                self._router.rest(node)
                failures.append(error)
                logger.warning("%s does not take connections: %s", node, first_line(error))
                continue
            self._router.recovered(node)
            options = connection_options(self._execution_options, isolation)
            return UnitOfWork(connection.execution_options(**options), node=node, readonly=route.readonly)
        raise unreachable(failures, route)

    @contextmanager
    def _turn(self, patience: float) -> Iterator[None]:
        """Keep out others that wait for their turn, without waiting for it longer than `patience` seconds."""
        mine = patience > 0 and self._gate.acquire(timeout=patience)
        try:
            yield
        finally:
            if mine:
                self._gate.release()


@dataclass(frozen=True)
class Options:
    """How a unit of work is to be run; made by `Database.options`."""

    database: Database
    route: Route
    idempotent: bool
    isolation: Isolation | None
    retry: RetryPolicy

    @contextmanager
    def session(self, *, readonly: bool = False) -> Iterator[UnitOfWork]:
        """As `Database.session`, with these options."""
        unit = self.database._begin(replace(self.route, readonly=readonly), self.isolation)
        try:
            yield unit
            unit.finish()
        except Exception as error:
            final = explained(error, node=unit.node, readonly=readonly, committing=unit.committing)
            if final is error:
                raise
            raise final from error
        finally:
            unit.end()

    def run(self, work: Callable[Concatenate[UnitOfWork, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `Database.run`, with these options."""
        return self._until_done(lambda unit: work(unit, *args, **kwargs), self.route)

    def read(self, work: Callable[Concatenate[UnitOfWork, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `Database.read`, with these options."""
        return self._until_done(lambda unit: work(unit, *args, **kwargs), replace(self.route, readonly=True))

    def transactional(self, work: Callable[Concatenate[UnitOfWork, P], T]) -> Callable[P, T]:
        """As `Database.transactional`, with these options."""

        @functools.wraps(work)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.run(work, *args, **kwargs)

        return run

    def _until_done(self, work: Callable[[UnitOfWork], T], route: Route) -> T:
        refuse_nesting()
        attempts = Attempts(self.retry, route, time.monotonic(), self.idempotent, self.database.counters)
        while True:
            unit = None
            with self.database._turn(attempts.patience):
                try:
                    unit = self.database._begin(attempts.route, self.isolation)
                    return self._attempt(work, unit)
                except (DBAPIError, NodeUnavailable) as error:
                    delay = attempts.after(
                        error,
                        node=unit.node if unit else attempts.route.node,
                        committing=unit is not None and unit.committing,
                        now=time.monotonic(),
                    )
            time.sleep(delay)

    def _attempt(self, work: Callable[[UnitOfWork], T], unit: UnitOfWork) -> T:
        token = inside_work.set(True)
        try:
            result = work(unit)
            unit.finish()
        finally:
            inside_work.reset(token)
            unit.end()
        return result


def unreachable(failures: list[Exception], route: Route) -> NodeUnavailable:
    """The error that says that no node took the connection."""
    error = NodeUnavailable(
        f"no connection to {route.node or 'any node'}: {first_line(failures[-1])}", node=route.node, failures=failures
    )
    error.__cause__ = failures[-1]
    return error


def options_from(settings: Settings) -> dict[str, Any]:
    """The arguments of a database, as the settings describe it."""
    return {
        "nodes": settings.urls(),
        "home": settings.home_node,
        "pool": PoolLimits(
            size=settings.pool_size,
            overflow=settings.pool_overflow,
            timeout=settings.pool_timeout,
            lifetime=settings.pool_lifetime,
            ping_after=settings.pool_ping_after,
            processes=settings.processes,
            log_sql=settings.log_sql,
        ),
        "timeouts": Timeouts(
            connect=settings.connect_timeout,
            statement=settings.statement_timeout,
            lock=settings.lock_timeout,
            idle_in_transaction=settings.idle_in_transaction_timeout,
        ),
        "retry": RetryPolicy(attempts=settings.retry_attempts, deadline=settings.retry_deadline),
        "cooldown": settings.node_cooldown,
        "application_name": settings.application_name,
        "transaction_pooler": settings.transaction_pooler,
    }
