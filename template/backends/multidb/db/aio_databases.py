"""Several databases for asyncio: the code of `Databases`, run in a greenlet that awaits wherever a thread would block.

    databases = AsyncDatabases.from_settings(DATABASES, Settings(), decision_log=DECISION_LOG)

    await databases.run_sync("orders", orders.place, account_id=…)    # a function written for `Session`, as it is
    async with databases.session("orders") as session: ...
    await databases.two_phase("ledger", "orders").run_sync(pay, order=…)
    await databases.call(outbox.relay, "orders", RECEIVERS)     # a function written for `Databases`, as it is
    async for row in databases.stream(orders_with_owners): ...

A unit of work on a SQLite file runs in a thread, because SQLite blocks the thread that calls it. Writers queue in the
event loop, and one is in a thread at a time. Sessions and async functions cannot enter that thread: use `run_sync` and
`read_sync` for files.

A task that is cancelled while a two-phase commit finishes, or while a unit of work on a file runs, ends after that.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Concatenate, NoReturn, ParamSpec, Self, TypeAlias, TypeVar

from sqlalchemy.engine import URL
from sqlalchemy.util import await_only, greenlet_spawn

from ..settings import Settings
from .aio import AsyncDatabase, AsyncPinnedSession, Tasks, awaited
from .databases import Databases, DatabaseSpec, NamedDatabase, Work
from .errors import MisuseError
from .retry import Threads, refuse_nesting
from .session import PinnedSession
from .sqlite import SqliteDatabase
from .twophase import Attempt, TwoPhase

P = ParamSpec("P")
T = TypeVar("T")

AsyncWork: TypeAlias = Callable[Concatenate[AsyncPinnedSession, P], Awaitable[T]]

CHUNK = 1_000
"""Rows that `stream` fetches at once. Arbitrary: enough that a change of greenlets costs little."""


class _Server(NamedDatabase):
    """A `Database` on asynchronous engines, for synchronous code in a greenlet."""

    concurrency: ClassVar[Threads] = Tasks()


class _File(SqliteDatabase):
    """A SQLite database for synchronous code in a greenlet: each unit of work runs in a thread."""

    def __init__(self, name: str, file: Path) -> None:
        super().__init__(name, file)
        self._turn = asyncio.Lock()

    def session(self, **_: Any) -> NoReturn:
        """Refuse: the statements of a session would block the event loop."""
        raise _in_a_thread(self.name)

    def dispose(self) -> None:
        """Close every connection."""
        await_only(asyncio.to_thread(super().dispose))

    def _run(self, work: Callable[[PinnedSession], T], *, readonly: bool) -> T:
        refuse_nesting()
        if readonly:
            return await_only(_to_its_end(asyncio.to_thread(super()._run, work, readonly=True)))
        started = time.monotonic()
        if not Tasks().acquire(self._turn, self.busy_timeout):
            raise self.busy("another task", started)
        try:
            return await_only(_to_its_end(asyncio.to_thread(super()._run, work, readonly=False)))
        finally:
            self._turn.release()


class _Attempt(Attempt):
    def finish(self) -> None:
        """Finish also when the task is cancelled: what is prepared would keep its locks until the next recovery."""
        await_only(_to_its_end(greenlet_spawn(super().finish)))


class _Databases(Databases):
    server_class = _Server
    file_class = _File
    attempt_class = _Attempt


class AsyncDatabases:
    """The databases of an application by name, for one event loop."""

    def __init__(self, databases: Sequence[DatabaseSpec], nodes: Mapping[str, URL], **options: Any) -> None:
        """Prepare the databases; the arguments are those of `Databases`."""
        self._databases = _Databases(databases, nodes, **options)

    @classmethod
    def from_settings(
        cls, databases: Sequence[DatabaseSpec], settings: Settings, *, decision_log: str | None = None
    ) -> Self:
        """Prepare the databases as the settings describe them; see `Databases.from_settings`."""
        self = cls.__new__(cls)
        self._databases = _Databases.from_settings(databases, settings, decision_log=decision_log)
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.dispose()

    def server(self, name: str) -> AsyncDatabase:
        """Return the PostgreSQL database of that name.

        Raises:
            MisuseError: it is a file.
        """
        found = self._databases[name]
        if isinstance(found, SqliteDatabase):
            raise _in_a_thread(name)
        # Shares engines, router, route and counters, as the result of `using` does.
        database = AsyncDatabase.__new__(AsyncDatabase)
        vars(database).update(vars(found))
        return database

    def session(self, name: str, *, readonly: bool = False) -> AbstractAsyncContextManager[AsyncPinnedSession]:
        """Open one transaction on one PostgreSQL database, as `AsyncDatabase.session`."""
        return self.server(name).session(readonly=readonly)

    def snapshot(self, name: str) -> AbstractAsyncContextManager[AsyncPinnedSession]:
        """Open a read-only session that sees one moment of one PostgreSQL database."""
        return self.server(name).session(readonly=True, isolation_level="REPEATABLE READ")

    async def run(self, name: str, work: AsyncWork[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `await work(session, …)` as one transaction on one PostgreSQL database, as `AsyncDatabase.run`."""
        return await self.server(name).run(work, *args, **kwargs)

    async def read(self, name: str, work: AsyncWork[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `await work(session, …)` in a session that cannot write, as `AsyncDatabase.read`."""
        return await self.server(name).read(work, *args, **kwargs)

    async def run_sync(self, name: str, work: Work[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that is written for a `Session`, as one transaction on a database or a file."""
        return await greenlet_spawn(lambda: self._databases[name].run(work, *args, **kwargs))

    async def read_sync(self, name: str, work: Work[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that is written for a `Session`, in a session that cannot write, on a database or a file."""
        return await greenlet_spawn(lambda: self._databases[name].read(work, *args, **kwargs))

    async def call(self, function: Callable[Concatenate[Databases, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that is written for `Databases`, such as `relay`, `sync_table` and `recover`."""
        return await greenlet_spawn(lambda: function(self._databases, *args, **kwargs))

    async def stream(
        self, function: Callable[Concatenate[Databases, P], Iterator[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[T, None]:
        """Yield the rows of a generator that is written for `Databases`, such as one with `merge_join`."""
        rows: Any = function(self._databases, *args, **kwargs)
        try:
            while chunk := await greenlet_spawn(lambda: list(islice(rows, CHUNK))):
                for row in chunk:
                    yield row
        finally:
            await asyncio.shield(greenlet_spawn(rows.close))

    def two_phase(self, *names: str) -> "AsyncTwoPhase":
        """Return units of work on several PostgreSQL databases that commit together or not at all.

        Raises:
            MisuseError: one of the databases is a file, or there are not at least two.
        """
        return AsyncTwoPhase(self._databases.two_phase(*names))

    async def dispose(self) -> None:
        """Close every pooled connection, before the event loop ends."""
        await greenlet_spawn(self._databases.dispose)


class AsyncTwoPhase:
    """Units of work on several databases that commit together; made by `AsyncDatabases.two_phase`."""

    def __init__(self, plan: TwoPhase) -> None:
        """Wrap a plan on asynchronous engines."""
        self._plan = plan

    async def run(self, work: Callable[..., Awaitable[T]], /, **arguments: Any) -> T:
        """Run `await work(session, session, …)`, as `TwoPhase.run`."""

        def run(*sessions: PinnedSession) -> T:
            return awaited(work(*map(AsyncPinnedSession, sessions), **arguments))

        return await greenlet_spawn(self._plan.run, run)

    async def run_sync(self, work: Callable[..., T], /, **arguments: Any) -> T:
        """Run a function that is written for sessions of the type `Session`, as `TwoPhase.run`."""
        return await greenlet_spawn(self._plan.run, work, **arguments)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[tuple[AsyncPinnedSession, ...]]:
        """Open a session for each database, as `TwoPhase.session`."""
        attempt = self._plan.attempt()
        try:
            yield tuple(map(AsyncPinnedSession, await greenlet_spawn(attempt.open)))
            await greenlet_spawn(attempt.finish)
        except Exception as error:
            attempt.translate_error(error)
            raise
        finally:
            await asyncio.shield(greenlet_spawn(attempt.release))


def _in_a_thread(name: str) -> MisuseError:
    return MisuseError(
        f"{name} is a SQLite file, and a unit of work on it runs in a thread: use run_sync(…) or read_sync(…) with a "
        "function that is written for `Session`",
        node=name,
    )


async def _to_its_end(work: Awaitable[T]) -> T:
    """Await something in a task of its own; when this task is cancelled, it ends after the other one."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from task.exception()
    return task.result()
