"""The databases of all tenants for asyncio: the code of `Tenants`, run as that of `AsyncDatabase` is.

    await db.using(tenant="acme").run(open_account, owner="Ada")   # as `AsyncDatabase.run`, in the database of acme
    async with db.query(select(Account)) as rows:                  # all tenants, streamed
        async for tenant, row in rows: ...

All of it belongs to one event loop.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar, Unpack

from sqlalchemy import Executable
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.queue import AsyncAdaptedQueue

from ..aio import AsyncDatabase, AsyncPinnedSession, awaited
from ..backend import RouteOptions
from .core import TenantsCore
from .workers import Answers, Workers

T = TypeVar("T")


class TaskWorkers(Workers):
    """Tasks of one event loop."""

    is_asyncio = True
    queue = AsyncAdaptedQueue

    def start(self, work: Callable[[], None]) -> Callable[[], object]:
        """Start a task, and return a function that waits until it ends."""
        task = asyncio.create_task(greenlet_spawn(work))
        return lambda: await_only(asyncio.wait([task]))


class AsyncTenants(TenantsCore, AsyncDatabase):
    """Sessions and transactions in the databases of all tenants, for one event loop. Arguments as for `Tenants`."""

    _database_class = AsyncDatabase
    _workers = TaskWorkers()

    async def dispose(self) -> None:
        """Close every pooled connection, before the event loop ends."""
        await greenlet_spawn(self._close)

    @asynccontextmanager
    async def session(
        self, *, tenant: str | None = None, readonly: bool = False, **options: Unpack[RouteOptions]
    ) -> AsyncIterator[AsyncPinnedSession]:
        """Open one transaction in the database of `tenant`, as `AsyncDatabase.session`."""
        async with AsyncDatabase.session(self.using(tenant=tenant), readonly=readonly, **options) as session:
            yield session

    async def names(self) -> list[str]:
        """Return the tenants that are served, in order."""
        return await greenlet_spawn(self._registry.active)

    def each(
        self,
        work: Callable[[AsyncPinnedSession], Awaitable[T]],
        *,
        tenants: Iterable[str] | None = None,
        at_once: int = 8,
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, T]]]:
        """Iterate over each tenant's name and the result of `await work(session)`, as `Tenants.each`.

            async with db.each(count) as answers:
                async for tenant, number in answers: ...

        A block that is left early waits for the tenants that are being asked, and asks no others.
        """
        return _iterating(self._each(lambda session: awaited(work(AsyncPinnedSession(session))), tenants, at_once))

    def query(
        self, statement: Executable, *, tenants: Iterable[str] | None = None, at_once: int = 8
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, Any]]]:
        """Iterate over the rows of a query over all tenants, each with its tenant's name, as `Tenants.query`."""
        return _iterating(self._query(statement, tenants, at_once))


@asynccontextmanager
async def _iterating(chunks: Answers[T]) -> AsyncIterator[AsyncIterator[tuple[str, T]]]:
    async def answers() -> AsyncIterator[tuple[str, T]]:
        while chunk := await greenlet_spawn(next, chunks, None):
            for answer in chunk[1]:
                yield chunk[0], answer

    try:
        yield answers()
    finally:
        await greenlet_spawn(chunks.close)
