"""The databases of all tenants for asyncio, with the names and rules of `tenants`.

    db = AsyncTenants.from_settings(TenantSettings())

    await db.using(tenant="acme").run(open_account, owner="Ada")   # as `AsyncDatabase.run`, in the database of acme
    async with db.session(tenant="acme") as session: ...             # one transaction, not retried
    with use_tenant("acme"):                                         # around a web request:
        await db.run(open_account, owner="Ada")                      # whoever the current tenant is
    async with db.query(select(Account)) as rows: ...                # all tenants, streamed

For one event loop. What is decided, and when, is the same.
"""

import asyncio
import functools
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, Concatenate, NoReturn, ParamSpec, Self, TypeVar
from weakref import WeakValueDictionary

from sqlalchemy import Executable, Row
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from .aio import AsyncDatabase, AsyncOptions, AsyncPinnedSession
from .backend import IsolationLevel
from .budget import BudgetedPool, ServerBudget
from .engines import PoolLimits, Timeouts
from .errors import MisuseError, NodeUnavailable
from .registry import ACTIVE, REGISTRY_POOL, Placement, answer, question, shown, silent
from .retry import Counters, RetryPolicy
from .routing import Route
from .tenants import (
    CHUNK_ROWS,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    SWITCH_PATIENCE,
    Ended,
    Open,
    OpenDatabases,
    SomeTenantsFailed,
    TenantSettings,
    address_of,
    away,
    chosen,
    is_login_refused,
    no_engine,
    on_its_way,
    served,
    tenant_options,
)
from .session import PinnedSession

P = ParamSpec("P")
T = TypeVar("T")


class AsyncServerBudget(ServerBudget):
    """The same for one event loop, which nobody who waits holds up."""

    def __init__(self, server: str, size: int, *, timeout: float) -> None:
        super().__init__(server, size, timeout=timeout)
        self._waiting: list[asyncio.Future[None]] = []

    def pool_class(self) -> type[BudgetedPool]:
        """As for threads, and known to SQLAlchemy as one for asyncio."""

        class PoolOfServer(BudgetedPool):
            _is_asyncio = True
            budget = self

        return PoolOfServer

    def _wait(self, seconds: float) -> bool:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._changed.release()
        try:
            await_only(asyncio.wait_for(future, max(0.0, seconds)))
        except TimeoutError:
            return False
        except BaseException:
            if future.done() and not future.cancelled():
                # Told, and cancelled before it could look: somebody else should.
                self._tell(1)
            raise
        else:
            return True
        finally:
            self._changed.acquire()
            if future in self._waiting:
                self._waiting.remove(future)

    def _tell(self, count: int) -> None:
        for future in self._waiting[:count]:
            self._waiting.remove(future)
            if not future.done():
                future.set_result(None)


class AsyncRegistry:
    """The registry, asked from an event loop."""

    def __init__(self, url: URL, *, timeouts: Timeouts | None = None, application_name: str = "") -> None:
        self._database = AsyncDatabase(
            {"registry": url}, pool=REGISTRY_POOL, timeouts=timeouts, application_name=application_name
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._database!r})"

    async def find(self, name: str) -> Placement:
        """As `Registry.find`."""
        return answer(name, await self._ask(question(name)))

    async def active(self) -> list[str]:
        """As `Registry.active`."""
        return [row.name for row in await self._ask(ACTIVE)]

    async def dispose(self) -> None:
        """Close every pooled connection."""
        await self._database.dispose()

    async def _ask(self, statement: Executable) -> Sequence[Row[Any]]:
        for is_last in (False, True):
            try:
                async with self._database.session(readonly=True) as session:
                    found: Sequence[Row[Any]] = (await session.execute(statement)).all()
                    return found
            except NodeUnavailable as error:
                raise silent(error) from error
            except DBAPIError as error:
                if is_last or not error.connection_invalidated:
                    raise
        raise AssertionError


class AsyncTenants:
    """`Tenants` for asyncio."""

    def __init__(
        self,
        servers: Mapping[str, URL],
        registry: URL,
        *,
        connections: int = 20,
        keep_open: int = 500,
        pool: PoolLimits | None = None,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        application_name: str = "",
    ) -> None:
        """As `Tenants`."""
        self.retry = retry or RetryPolicy()
        self.counters = Counters()
        self._servers = dict(servers)
        self._registry = AsyncRegistry(registry, timeouts=timeouts, application_name=application_name)
        limits = pool or PoolLimits()
        self._budgets = {server: AsyncServerBudget(server, connections, timeout=limits.timeout) for server in servers}
        self._limits = {
            server: replace(limits, size=connections, max_overflow=0, poolclass=budget.pool_class())
            for server, budget in self._budgets.items()
        }
        self._timeouts = timeouts
        self._application_name = application_name
        self._kept: OpenDatabases[AsyncDatabase] = OpenDatabases(keep_open)
        self._databases: WeakValueDictionary[str, AsyncTenantDatabase] = WeakValueDictionary()
        self._recent: deque[AsyncTenantDatabase] = deque(maxlen=keep_open)

    @classmethod
    def from_settings(cls, settings: TenantSettings) -> Self:
        """As the settings describe it."""
        return cls(**tenant_options(settings))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._budgets.values()))}; {self._registry!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.dispose()

    async def dispose(self) -> None:
        """Close every pooled connection, before the event loop ends."""
        for entry in self._kept.clear():
            await entry.database.dispose()
        await self._registry.dispose()

    def of(self, tenant: str | None = None) -> "AsyncTenantDatabase":
        """As `Tenants.of`."""
        name = chosen(tenant)
        database = self._databases.get(name)
        if database is None:
            database = self._databases[name] = AsyncTenantDatabase(self, name)
            self._recent.append(database)
        return database

    def using(
        self,
        *,
        tenant: str | None = None,
        idempotent: bool = False,
        isolation_level: IsolationLevel | None = None,
        retry: RetryPolicy | None = None,
    ) -> AsyncOptions:
        """As `Tenants.using`."""
        return self.of(tenant).using(idempotent=idempotent, isolation_level=isolation_level, retry=retry)

    def session(
        self, *, tenant: str | None = None, readonly: bool = False, isolation_level: IsolationLevel | None = None
    ) -> AbstractAsyncContextManager[AsyncPinnedSession]:
        """As `Tenants.session`."""
        return self.using(tenant=tenant, isolation_level=isolation_level).session(readonly=readonly)

    async def run(
        self, work: Callable[Concatenate[AsyncPinnedSession, P], Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `Tenants.run`, for an async function."""
        return await self.of().run(work, *args, **kwargs)

    async def read(
        self, work: Callable[Concatenate[AsyncPinnedSession, P], Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `run`, on a session that the server keeps from writing."""
        return await self.of().read(work, *args, **kwargs)

    async def run_sync(self, work: Callable[Concatenate[PinnedSession, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, for a function that was written for a `Session`."""
        return await self.of().run_sync(work, *args, **kwargs)

    async def read_sync(self, work: Callable[Concatenate[PinnedSession, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `read`, for a function that was written for a `Session`."""
        return await self.of().read_sync(work, *args, **kwargs)

    async def names(self) -> list[str]:
        """The tenants that are served, in order."""
        return await self._registry.active()

    def transactional(self, work: Callable[Concatenate[AsyncPinnedSession, P], Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """As a decorator: the function is called without the session, and runs as `run` has it."""

        @functools.wraps(work)
        async def run(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.run(work, *args, **kwargs)

        return run

    def each(
        self,
        work: Callable[[AsyncPinnedSession], Awaitable[T]],
        *,
        tenants: Iterable[str] | None = None,
        at_once: int = 8,
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, T]]]:
        """What `await work(session)` returns for each tenant, on a session that only reads, in the order in which they end.

            async with db.each(count) as answers:
                async for tenant, number in answers: ...

        Whoever leaves the block before the end waits for those that are being asked at that moment, and for no others.

        Raises:
            SomeTenantsFailed: in the end, if some did; the others' answers came before.
        """

        async def ask(name: str) -> AsyncGenerator[list[T], None]:
            yield [await self.of(name).read(work)]

        return self._fan_out(ask, tenants, at_once)

    def query(
        self, statement: Executable, *, tenants: Iterable[str] | None = None, at_once: int = 8
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, Any]]]:
        """The rows of a query over all tenants, as `Tenants.query`.

            async with db.query(select(Account)) as rows:
                async for tenant, row in rows: ...

        Raises:
            SomeTenantsFailed: in the end, if some did; the others' rows came before, and perhaps some of theirs.
        """

        async def ask(name: str) -> AsyncGenerator[list[Any], None]:
            async with self.session(tenant=name, readonly=True, isolation_level="REPEATABLE READ") as session:
                found = await session.stream(statement, execution_options={"yield_per": CHUNK_ROWS})
                try:
                    async for rows in found.partitions():
                        yield list(rows)
                finally:
                    await found.close()

        return self._fan_out(ask, tenants, at_once)

    @asynccontextmanager
    async def _fan_out(
        self, ask: Callable[[str], AsyncGenerator[list[T], None]], tenants: Iterable[str] | None, at_once: int
    ) -> AsyncIterator[AsyncIterator[tuple[str, T]]]:
        if at_once < 1:
            raise MisuseError(f"at least one tenant is asked at a time, not {at_once}")
        names = await self.names() if tenants is None else list(tenants)
        room = asyncio.Semaphore(at_once)
        answers: asyncio.Queue[tuple[str, list[T]] | Ended] = asyncio.Queue(at_once)
        enough = asyncio.Event()

        async def worker(name: str) -> None:
            failure = None
            async with room:
                if enough.is_set():
                    return
                try:
                    async with aclosing(ask(name)) as asked:
                        async for found in asked:
                            await answers.put((name, found))
                            if enough.is_set():
                                return
                except Exception as error:
                    failure = error
                await answers.put(Ended(name, failure))

        async def merged() -> AsyncIterator[tuple[str, T]]:
            failures: dict[str, Exception] = {}
            left = len(names)
            while left:
                answer = await answers.get()
                if isinstance(answer, Ended):
                    left -= 1
                    if answer.failure is not None:
                        failures[answer.name] = answer.failure
                else:
                    for one in answer[1]:
                        yield answer[0], one
            if failures:
                raise SomeTenantsFailed(failures, len(names))

        tasks = [asyncio.create_task(worker(name)) for name in names]
        try:
            yield merged()
        finally:
            # Not cancelled, which would tear their connections: each ends after the chunk that it is at.
            enough.set()
            while any(not task.done() for task in tasks):
                while not answers.empty():
                    answers.get_nowait()
                await asyncio.wait(tasks, timeout=0.005)

    async def _begin(self, name: str, route: Route, isolation_level: IsolationLevel | None) -> AsyncPinnedSession:
        deadline = time.monotonic() + SWITCH_PATIENCE
        pause = FIRST_PAUSE
        was_refused = False
        while True:
            entry = await self._enter(name)
            try:
                return await entry.database._begin(route, isolation_level)
            except NodeUnavailable as error:
                entry.is_doubtful = True
                raise away(entry.placement, error) from error
            except DBAPIError as error:
                if not is_login_refused(error):
                    raise
                self._kept.forget(entry)
                await entry.database.dispose()
                now = served(await self._registry.find(name))
                if now.epoch == entry.placement.epoch:
                    # Once it may have been closed for a move that was taken back meanwhile.
                    if now.target is None and was_refused:
                        raise
                    was_refused = now.target is None
                    if time.monotonic() > deadline:
                        raise on_its_way(now, error) from error
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
            finally:
                self._kept.release(entry)

    async def _enter(self, name: str) -> Open[AsyncDatabase]:
        entry, retired = self._kept.lease(name)
        if entry is None:
            try:
                found = await self._registry.find(name)
            except NodeUnavailable:
                entry, retired = self._kept.lease(name, even_doubtful=True)
                if entry is None:
                    raise
            else:
                entry, retired = self._kept.admit(served(found), self._make)
        for old in retired:
            await old.database.dispose()
        return entry

    def _make(self, placement: Placement) -> AsyncDatabase:
        return AsyncDatabase(
            address_of(placement, self._servers),
            pool=self._limits[placement.server],
            timeouts=self._timeouts,
            application_name=self._application_name,
        )


class AsyncTenantDatabase(AsyncDatabase):
    """The database of one tenant, as `TenantDatabase`."""

    def __init__(self, tenants: AsyncTenants, name: str) -> None:
        super().__init__({}, retry=tenants.retry)
        self.tenant = name
        """Whose it is."""
        self.counters = tenants.counters
        self._tenants = tenants

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown(self.tenant)})"

    def engine(self, node: str) -> NoReturn:
        """Refused, as by `TenantDatabase`."""
        raise no_engine(self.tenant, node)

    async def _begin(self, route: Route, isolation_level: IsolationLevel | None) -> AsyncPinnedSession:
        return await self._tenants._begin(self.tenant, route, isolation_level)
