"""The one object an application holds: sessions and transactions on a cluster.

    db = Database.from_settings(Settings())

    with db.session() as session: ...                  # one transaction, committed at the end, not retried
    db.run(bank.open_account, owner="Ada")             # one transaction, retried as a whole while that is safe
    db.read(bank.balance, account_id)                  # the same, on a session that the server keeps from writing
    db.options(key=account_id).run(bank.transfer, …)   # on the home node of that account

Objects returned from a unit of work are detached: what was loaded stays readable, nothing more is fetched.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Concatenate, Literal, NoReturn, ParamSpec, Self, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..settings import Settings
from . import backend
from .engines import Engines, PoolLimits, Timeouts
from .errors import AmbiguousCommit, MisuseError, NodeUnavailable, RetriesExhausted, WrongNode
from .retry import Attempts, RetryPolicy, Verdict, classify, first_line, sqlstate_of
from .routing import Route, Router

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

Isolation: TypeAlias = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

_running: ContextVar[bool] = ContextVar("_running", default=False)
"""Whether this context is inside the function of a retried unit of work."""


class UnitOfWork(Session):
    """A session whose transaction is ended by the `Database` that began it, on the node it began on."""

    def __init__(self, connection: Connection, *, node: str, readonly: bool) -> None:
        super().__init__(connection, expire_on_commit=False)
        self.node = node
        self.readonly = readonly
        self.committing = False
        self._connection = connection

    def commit(self) -> NoReturn:
        """Refused: only the whole unit of work can be committed, and only by who may have to run it again."""
        raise MisuseError(
            "a unit of work is committed when its function returns; to commit earlier, make it two units of work",
            node=self.node,
        )

    def rollback(self) -> NoReturn:
        """Refused, as `commit`."""
        raise MisuseError(
            "a unit of work is rolled back when its function raises; to undo a part, use session.begin_nested()",
            node=self.node,
        )

    def _finish(self) -> None:
        """Send what is pending, then COMMIT."""
        self.flush()
        if backend.is_aborted(self._connection):
            # PostgreSQL answers COMMIT in an aborted transaction with a rollback and no error.
            raise MisuseError(
                "a statement failed and the unit of work went on: its changes would be lost without a word. "
                "Let the error out, or contain the statement in session.begin_nested()",
                node=self.node,
            )
        self.committing = True
        super().commit()

    def _end(self) -> None:
        """Roll back what was not committed and return the connection; a broken one is thrown away."""
        try:
            self.close()
        except DBAPIError:
            self._connection.invalidate()
        self._connection.close()


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
        execution_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.nodes = tuple(nodes)
        self.retry = retry or RetryPolicy()
        self._router = Router(self.nodes, home=home, cooldown=cooldown)
        self._engines = Engines(
            nodes, pool=pool or PoolLimits(), timeouts=timeouts or Timeouts(), application_name=application_name
        )
        self._execution_options = dict(execution_options or {})

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """A database as the settings describe it."""
        return cls(
            settings.urls(),
            home=settings.home_node,
            pool=PoolLimits(
                size=settings.pool_size,
                overflow=settings.pool_overflow,
                timeout=settings.pool_timeout,
                lifetime=settings.pool_lifetime,
                ping_after=settings.pool_ping_after,
            ),
            timeouts=Timeouts(
                connect=settings.connect_timeout,
                statement=settings.statement_timeout,
                lock=settings.lock_timeout,
                idle_in_transaction=settings.idle_in_transaction_timeout,
            ),
            retry=RetryPolicy(attempts=settings.retry_attempts, deadline=settings.retry_deadline),
            cooldown=settings.node_cooldown,
            application_name=settings.application_name,
        )

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
        self._engines.dispose()

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

    def _begin(self, route: Route, isolation: Isolation | None) -> UnitOfWork:
        """Connect to the best node that answers and pin a session to it."""
        failures: list[BaseException] = []
        for node in self._router.candidates(route):
            try:
                connection = self._engines.get(node, readonly=route.readonly).connect()
            except DBAPIError as error:
                if classify(error, committing=False, connecting=True) is Verdict.FATAL:
                    raise
                self._router.rest(node)
                failures.append(error)
                logger.warning("%s does not take connections: %s", node, error.orig)
                continue
            self._router.recovered(node)
            options = dict(self._execution_options)
            if isolation:
                options["isolation_level"] = isolation
            return UnitOfWork(connection.execution_options(**options), node=node, readonly=route.readonly)
        raise NodeUnavailable(
            f"no connection to {' or '.join(self._router.candidates(route))}: {first_line(failures[-1])}",
            node=route.node,
            failures=failures,
        ) from failures[-1]


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
            unit._finish()
        except Exception as error:
            if classify(error, committing=unit.committing) is Verdict.AMBIGUOUS:
                raise _ambiguous(unit.node, [error]) from error
            _refuse_stray_write(unit, error)
            raise
        finally:
            unit._end()

    def run(self, work: Callable[Concatenate[UnitOfWork, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `Database.run`, with these options."""
        return self._until_done(lambda unit: work(unit, *args, **kwargs), self.route)

    def read(self, work: Callable[Concatenate[UnitOfWork, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `Database.read`, with these options."""
        return self._until_done(lambda unit: work(unit, *args, **kwargs), replace(self.route, readonly=True))

    def _until_done(self, work: Callable[[UnitOfWork], T], route: Route) -> T:
        if _running.get():
            raise MisuseError(
                "a unit of work is already running here: pass its session on instead of starting another inside it, "
                "which would stay committed when the outer one is rolled back"
            )
        attempts = Attempts(self.retry, started=time.monotonic())
        in_doubt = False
        while True:
            node: str | None = route.node
            failure: Exception
            try:
                unit = self.database._begin(route, self.isolation)
            except NodeUnavailable as error:
                failure = error
            else:
                node = unit.node
                try:
                    return self._attempt(work, unit)
                except DBAPIError as error:
                    verdict = self._judge(unit, error, attempts)
                    if verdict is Verdict.AMBIGUOUS:
                        # Only the node that was asked to commit knows whether it did.
                        in_doubt, route = True, replace(route, node=node)
                    failure = error
            delay = attempts.delay_after(failure, now=time.monotonic())
            if delay is None:
                raise self._given_up(node, attempts, in_doubt=in_doubt) from failure
            logger.info("%s: attempt %d: %s", node, len(attempts.failures), first_line(failure))
            time.sleep(delay)

    def _judge(self, unit: UnitOfWork, error: DBAPIError, attempts: Attempts) -> Verdict:
        """Say what the error means, or raise what it means to the caller."""
        _refuse_stray_write(unit, error)
        verdict = classify(error, committing=unit.committing)
        if verdict is Verdict.FATAL:
            raise error
        if verdict is Verdict.AMBIGUOUS:
            if unit.readonly:
                return Verdict.ELSEWHERE
            if not self.idempotent:
                raise _ambiguous(unit.node, [*attempts.failures, error]) from error
        return verdict

    def _attempt(self, work: Callable[[UnitOfWork], T], unit: UnitOfWork) -> T:
        token = _running.set(True)
        try:
            result = work(unit)
            unit._finish()
        finally:
            _running.reset(token)
            unit._end()
        return result

    def _given_up(self, node: str | None, attempts: Attempts, *, in_doubt: bool) -> Exception:
        last = attempts.failures[-1]
        if in_doubt:
            return _ambiguous(node, attempts.failures)
        if isinstance(last, NodeUnavailable):
            return NodeUnavailable(str(last), node=node, failures=attempts.failures)
        return RetriesExhausted(
            f"{node or 'the cluster'}: given up after {len(attempts.failures)} attempts; the last one: {first_line(last)}",
            node=node,
            sqlstate=sqlstate_of(last),
            failures=attempts.failures,
        )


def _ambiguous(node: str | None, failures: Sequence[BaseException]) -> AmbiguousCommit:
    return AmbiguousCommit(
        f"{node} did not say whether it committed ({first_line(failures[-1])}). Look for the effect before you run it again, "
        "or give the work an idempotency key and run it with db.options(idempotent=True)",
        node=node,
        sqlstate=sqlstate_of(failures[-1]),
        failures=failures,
    )


def _refuse_stray_write(unit: UnitOfWork, error: Exception) -> None:
    state = sqlstate_of(error)
    if unit.readonly and state in backend.READ_ONLY:
        raise WrongNode(
            f"{unit.node} refused the write ({state}): this unit of work is read-only. Write through db.run(…) or db.session()",
            node=unit.node,
            sqlstate=state,
        ) from error
