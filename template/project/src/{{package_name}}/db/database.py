"""The one object that an application holds: sessions and transactions on a cluster.

    db = Database.from_settings(Settings())

    with db.session() as session: ...               # one transaction, committed at the end, not retried
    db.run(bank.open_account, owner="Ada")          # one transaction, retried as a whole while that is safe
    db.read(bank.balance, account_id)               # the same in a read-only session, which the server enforces
    db.using(key=account_id, idempotent=True).run(bank.transfer, …)     # with other options: see `RouteOptions`

Objects returned from a unit of work are detached: loaded attributes stay readable, nothing more is fetched.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Concatenate, ParamSpec, Self, TypeVar, Unpack

from sqlalchemy import Engine

from .backend import RouteOptions
from .core import DatabaseCore
from .retry import translate_error
from .session import PinnedSession

P = ParamSpec("P")
T = TypeVar("T")


class Database(DatabaseCore):
    """Sessions and transactions on the nodes of one cluster. Thread-safe; make one per process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()

    def engine(self, node: str) -> Engine:
        """Return the engine of one node, for SQLAlchemy without routing and retries.

        Raises:
            WrongNode: there is no such node.
        """
        return self._engines.get(self._router.candidates(replace(self.route, node=node))[0])

    def dispose(self) -> None:
        """Close every pooled connection, at the end of the process or after a fork."""
        for engine in self._engines.created():
            engine.dispose()

    @contextmanager
    def session(self, *, readonly: bool = False, **options: Unpack[RouteOptions]) -> Iterator[PinnedSession]:
        """Open one transaction: committed when the block ends, rolled back when it raises, never retried.

        Args:
            readonly: the server refuses writes; reads may go to other nodes.
            **options: see `RouteOptions`.

        Raises:
            AmbiguousCommit: the answer to COMMIT was lost.
            NodeUnavailable: no node answered.
            WrongNode: the session is read-only and wrote, or the named node cannot do this work.
        """
        session = self.open_session(replace(self.route, readonly=readonly, **options))
        try:
            yield session
            session.finish()
        except Exception as error:
            final = translate_error(error, node=session.node, readonly=readonly, committing=session.committing)
            if final is error:
                raise
            raise final from error
        finally:
            session.release()

    def run(self, work: Callable[Concatenate[PinnedSession, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(session, …)` as one transaction, again while that is safe and useful.

        `work` may be called several times, each time with a new session: keep to effects that a rollback undoes.

        Raises:
            AmbiguousCommit: the answer to COMMIT was lost.
            RetriesExhausted: each attempt failed for a reason that may pass.
            NodeUnavailable: no node answered.
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
