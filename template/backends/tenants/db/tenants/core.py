"""The part of `Tenants` that its asyncio counterpart shares.

A move is noticed like this: before a database leaves a server, the server refuses its logins and ends its sessions. The
registry is asked again then. So a remembered place may be old, but it does no harm: no two places ever take writes.
"""

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NoReturn, Self, TypeVar, Unpack

from sqlalchemy import Executable
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ...limits import PoolLimits, RetryPolicy, Timeouts
from ...settings import Settings
from ..backend import Backend, Route, RouteOptions
from ..database import DatabaseCore, database_arguments
from ..errors import MisuseError, NodeUnavailable
from ..retry import first_line, sqlstate_of
from ..session import PinnedSession
from .budget import ServerBudget
from .current import chosen
from .open_databases import OpenDatabase, OpenDatabases, close_pools
from .placement import Placement, quoted
from .registry import REGISTRY_POOL, Registry, configured_secret, registry_url
from .workers import Answers, Ask, Workers

T = TypeVar("T")

SWITCH_TIMEOUT = 5.0
"""Longest wait of work that has not begun for the last step of a move, in seconds; that step takes about 0.1 s."""

FIRST_DELAY, MAX_DELAY = 0.002, 0.05
"""Pause between two questions to the registry meanwhile, in seconds: the first, doubled each time, and its limit."""

CHUNK_ROWS = 500
"""Number of rows of one tenant that a query over all tenants reads at once. Arbitrary."""

RETRY_LOCKS = 64
"""Number of retry locks, so that work for one tenant rarely waits for the retries of another's. Arbitrary."""


class TenantsCore(DatabaseCore):
    """Base of `Tenants`: a database whose units of work run in the database of a tenant."""

    _database_class: ClassVar[type[DatabaseCore]]
    _workers: ClassVar[Workers]

    def __init__(
        self,
        servers: Mapping[str, URL],
        registry: URL,
        *,
        secret: str,
        connections: int = 20,
        keep_open: int = 500,
        pool: PoolLimits | None = None,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        application_name: str = "",
        transaction_pooler: bool = False,
    ) -> None:
        """Prepare the databases of all tenants; nothing connects before it is used.

        Args:
            servers: URL of each server by name; database, role and password of the URLs are not used.
            registry: URL of the registry.
            secret: secret from which the passwords of the tenants' roles are derived.
            connections: connections of this process to each server.
            keep_open: number of tenants whose engines are kept.
            pool: limits of the connections; `connections` replaces its size and overflow.
            timeouts: time limits of each connection.
            retry: policy for work that names none.
            application_name: name shown by the server's views.
            transaction_pooler: the URLs lead to a pooler in transaction mode, such as PgBouncer.
        """
        super().__init__(servers, retry=retry)
        pool = pool or PoolLimits()
        self._options: dict[str, Any] = {"timeouts": timeouts, "application_name": application_name}
        self._options["transaction_pooler"] = transaction_pooler
        self._servers = dict(servers)
        self._secret = secret
        self._budgets = {
            server: ServerBudget(server, connections, timeout=pool.timeout, workers=self._workers) for server in servers
        }
        self._limits = replace(pool, size=connections, max_overflow=0)
        self._registry = Registry(self._database_class({"registry": registry}, pool=REGISTRY_POOL, **self._options))
        self._open = OpenDatabases(keep_open)
        self._retry_locks = [self.concurrency.make_lock() for _ in range(RETRY_LOCKS)]
        self._tenant: str | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:  # type: ignore[override]  # passwords are derived
        """Create the databases of all tenants as the settings describe them."""
        arguments = database_arguments(settings)
        names = ("pool", "timeouts", "retry", "application_name", "transaction_pooler")
        return cls(
            arguments["nodes"],
            registry_url(arguments["nodes"], settings.registry),
            secret=configured_secret(settings),
            connections=settings.server_connections,
            keep_open=settings.open_tenants,
            **{name: arguments[name] for name in names},
        )

    def __repr__(self) -> str:
        tenant = f"{quoted(self._tenant)}; " if self._tenant is not None else ""
        budgets = ", ".join(map(repr, self._budgets.values()))
        return f"{type(self).__name__}({tenant}{budgets}; {self._registry.database!r})"

    def of(self, tenant: str | None = None) -> Self:
        """Return the database of one tenant, the current one if None; its place is looked up when it is used."""
        return self.using(tenant=chosen(self._tenant if tenant is None else tenant))

    def using(self, *, tenant: str | None = None, **options: Unpack[RouteOptions]) -> Self:
        """Return these databases with other options; they share engines, pools and counters.

        Args:
            tenant: tenant of the work; None: the one that was given before, or else the current one at that time.
            **options: see `RouteOptions`.
        """
        tenants = super().using(**options)
        if tenant is not None:
            tenants._tenant = tenant
            tenants._retry_lock = self._retry_locks[hash(tenant) % RETRY_LOCKS]
        return tenants

    def engine(self, node: str) -> NoReturn:
        """Refuse: a tenant can move, and its engine is closed when others need the room."""
        raise MisuseError("a tenant has no engine to keep, because it can move: use db.session(tenant=…)", node=node)

    def open_session(self, route: Route) -> PinnedSession:
        """Return a session pinned to the server that the tenant is on, as `Database.open_session`."""
        name = chosen(self._tenant)
        deadline = time.monotonic() + SWITCH_TIMEOUT
        delay = FIRST_DELAY
        was_refused = False
        while True:
            entry = self._lease(name)
            place = entry.placement
            try:
                return entry.database.open_session(route)
            except NodeUnavailable as error:
                if isinstance(full := error.failures[-1], NodeUnavailable):
                    # Every connection to the server is in use: the tenant is there.
                    raise full from error
                entry.is_doubtful = True
                raise NodeUnavailable(
                    f"{name} is on {place.server}, which cannot be reached: {first_line(error.failures[-1])}",
                    node=place.server,
                    failures=error.failures,
                ) from error
            except DBAPIError as error:
                if not is_login_refused(error):
                    raise
                self._open.forget(entry)
                now = self._registry.find(name)
                now.check_served()
                if now.epoch == place.epoch:
                    # The first refusal may come from a move that was taken back meanwhile.
                    if now.target is None and was_refused:
                        raise
                    was_refused = now.target is None
                    if time.monotonic() > deadline:
                        raise NodeUnavailable(
                            f"{name} is on its way from {now.server} to {now.target}, and neither takes its logins. "
                            "If no move is running, `tenants move` it again or take the move back with --undo",
                            node=now.server,
                            failures=[error],
                        ) from error
                    self.concurrency.sleep(delay)
                    delay = min(2 * delay, MAX_DELAY)
            finally:
                self._open.release(entry)

    def _run(self, work: Callable[[PinnedSession], T], *, readonly: bool) -> T:
        return DatabaseCore._run(self.of(), work, readonly=readonly)

    def _lease(self, name: str) -> OpenDatabase:
        if (entry := self._open.lease(name)) is not None:
            return entry
        try:
            found = self._registry.find(name)
        except NodeUnavailable:
            # The remembered place may still be right.
            if (entry := self._open.lease(name, even_doubtful=True)) is not None:
                return entry
            raise
        found.check_served()
        return self._open.admit(found, self._database_at)

    def _database_at(self, place: Placement) -> DatabaseCore:
        if place.server not in self._servers:
            raise NodeUnavailable(
                f"{place.name} is on {place.server}, which is not one of the servers {', '.join(self._servers)}",
                node=place.server,
            )
        pool = replace(self._limits, poolclass=self._budgets[place.server].pool_class)
        return self._database_class(
            {place.server: place.url(self._servers[place.server], self._secret)}, pool=pool, **self._options
        )

    def _close(self) -> None:
        self._open.clear()
        close_pools([self._registry.database])

    def _each(self, work: Callable[[PinnedSession], T], tenants: Iterable[str] | None, at_once: int) -> Answers[T]:
        def ask(name: str) -> Generator[list[T], None, None]:
            yield [self.using(tenant=name)._run(work, readonly=True)]

        return self._fan_out(ask, tenants, at_once)

    def _query(self, statement: Executable, tenants: Iterable[str] | None, at_once: int) -> Answers[Any]:
        def ask(name: str) -> Generator[list[Any], None, None]:
            route = replace(self.route, readonly=True, isolation_level="REPEATABLE READ")
            session = self.using(tenant=name).open_session(route)
            try:
                with session.execute(statement, execution_options={"yield_per": CHUNK_ROWS}) as result:
                    yield from map(list, result.partitions())
            except DBAPIError as error:
                self.translate_error(error, session)
                raise
            finally:
                self.concurrency.call(session.release)

        return self._fan_out(ask, tenants, at_once)

    def _fan_out(self, ask: Ask[T], tenants: Iterable[str] | None, at_once: int) -> Answers[T]:
        if at_once < 1:
            raise MisuseError(f"at least one tenant is asked at a time, not {at_once}")
        names = self._registry.active if tenants is None else lambda: list(tenants)
        return self._workers.fan_out(names, ask, at_once)


def is_login_refused(error: DBAPIError) -> bool:
    """Return True if a server took the connection and refused the login."""
    return sqlstate_of(error) is None and Backend.login_refused.search(str(error.orig)) is not None
