"""The databases of all tenants, behind one object.

    db = Tenants.from_settings(TenantSettings())

    db.using(tenant="acme").run(bank.open_account, owner="Ada")   # as `Database.run`, in the database of acme
    with db.session(tenant="acme") as session: ...                  # one transaction, not retried
    with use_tenant("acme"):                                        # around a web request:
        db.run(bank.open_account, owner="Ada")                      # whoever the current tenant is
    for tenant, row in db.query(select(Account)): ...               # all tenants, streamed
    bulk_load(db.of("acme"), Account, rows)                         # what takes a `Database` takes one tenant's

A tenant's database is an ordinary `Database` of one node, made on first use. What is added here: which server that is, asked of
the registry and remembered; a bound on how many databases are kept open, and on the connections to each server; and that a
tenant is followed when it moves.

How a move is noticed: a database that leaves a server first refuses logins there, and ends its sessions. Whoever is refused asks
the registry again. So what is remembered may be old, but it can do no harm: no two places ever take writes.
"""

import functools
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from queue import Empty, Full, Queue
from threading import Event, Lock, Thread
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, Protocol, Self, TypeVar
from weakref import WeakValueDictionary

from pydantic import PositiveInt, SecretStr
from sqlalchemy import Engine, Executable
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from ..settings import Settings
from . import backend
from .backend import IsolationLevel
from .budget import BudgetedPool, ServerBudget
from .database import Database, Options, database_arguments
from .engines import Engines, PoolLimits, Timeouts
from .errors import DistributedSQLError, MisuseError, NodeUnavailable
from .registry import Placement, Registry, State, TenantSuspended, UnknownTenant, registry_url, shown
from .retry import Counters, RetryPolicy, first_line, sqlstate_of
from .routing import Route
from .session import PinnedSession

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D", bound="_HasEngines")

SWITCH_PATIENCE = 5.0
"""Seconds that work waits, before it has begun, for a tenant whose move is in its last step; measured, that takes 0.1."""

FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.05
"""Seconds between two looks at the registry meanwhile, doubled each time."""

CHUNK_ROWS = 500
"""How many rows of a tenant a query over all of them reads at once. Arbitrary."""

_current: ContextVar[str | None] = ContextVar("current_tenant", default=None)


class SomeTenantsFailed(DistributedSQLError):
    """What was asked of all tenants failed for some; the answers of the others came before this."""

    def __init__(self, failures: Mapping[str, Exception], asked: int) -> None:
        first = "; ".join(f"{name}: {first_line(error)}" for name, error in list(failures.items())[:3])
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        super().__init__(
            f"{len(failures)} of {asked} tenants did not answer: {first}{more}", failures=list(failures.values())
        )
        self.by_tenant = dict(failures)
        """The error of each tenant that failed."""


def current_tenant() -> str | None:
    """The tenant of this thread or task, as `use_tenant` has it."""
    return _current.get()


@contextmanager
def use_tenant(name: str) -> Iterator[None]:
    """Let work that names no tenant be for this one, in this thread or task, until the block ends."""
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def chosen(tenant: str | None) -> str:
    """The tenant that is named, or the current one.

    Raises:
        MisuseError: there is neither.
    """
    name = tenant if tenant is not None else current_tenant()
    if name is None:
        raise MisuseError(
            "whose database? Name the tenant, with db.using(tenant=…) or db.session(tenant=…), or put `with use_tenant(…):` "
            "around the request"
        )
    return name


class TenantSettings(Settings):
    """The settings of an application with tenants."""

    registry: SecretStr | None = None
    """The URL of the registry; if absent `…_registry` on the first server by name."""
    admin_registry: SecretStr | None = None
    """The same for the role that may change it."""
    server_connections: PositiveInt = 20
    """How many connections this process may have to each server, however many tenants are there."""
    open_tenants: PositiveInt = 500
    """Of how many tenants the engines are kept; a thousand take about 20 MB."""

    def registry_url(self) -> URL:
        """Where the registry is, for the application's role."""
        return make_url(self.registry.get_secret_value()) if self.registry else registry_url(self.urls())

    def admin_registry_url(self) -> URL:
        """Where the registry is, for the role that may change it."""
        given = self.admin_registry or self.registry
        return make_url(given.get_secret_value()) if given else registry_url(self.admin_urls())


def tenant_options(settings: TenantSettings) -> dict[str, Any]:
    """The arguments of `Tenants`, as the settings describe it."""
    options = database_arguments(settings)
    return {
        "servers": options["nodes"],
        "registry": settings.registry_url(),
        "connections": settings.server_connections,
        "keep_open": settings.open_tenants,
        **{name: options[name] for name in ("pool", "timeouts", "retry", "application_name")},
    }


class _HasEngines(Protocol):
    @property
    def _engines(self) -> Engines: ...


@dataclass
class Open(Generic[D]):
    """A tenant's database that is kept open."""

    placement: Placement
    database: D
    leases: int = 0
    """How many are about to take a connection from it."""
    is_doubtful: bool = False
    """Whether its server did not answer, so that the registry is to be asked whether it is still that."""

    @property
    def is_in_use(self) -> bool:
        """Whether somebody has a connection of it, or is about to."""
        return self.leases > 0 or any(_in_use(engine) for engine in self.database._engines.made())


class OpenDatabases(Generic[D]):
    """The databases that are kept open: so many, and one that is in use for as long as it is. Thread-safe; it opens and closes none."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        # The one that was used last at the end.
        self._entries: OrderedDict[str, Open[D]] = OrderedDict()

    def names(self) -> list[str]:
        """Whose databases they are, the one that was used last at the end."""
        with self._lock:
            return list(self._entries)

    def in_use(self) -> list[str]:
        """Whose are in use."""
        with self._lock:
            return [name for name, entry in self._entries.items() if entry.is_in_use]

    def lease(self, name: str, *, even_doubtful: bool = False) -> tuple[Open[D] | None, list[Open[D]]]:
        """The database of a tenant, kept until `release`, or None if the registry is to be asked first; and those to be closed now."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or (entry.is_doubtful and not even_doubtful):
                return None, []
            self._entries.move_to_end(name)
            entry.leases += 1
            return entry, self._surplus()

    def admit(self, placement: Placement, make: Callable[[Placement], D]) -> tuple[Open[D], list[Open[D]]]:
        """The same for what the registry has just said."""
        retired = []
        with self._lock:
            entry = self._entries.get(placement.name)
            if entry is not None:
                entry.is_doubtful = False
            if entry is None or entry.placement.epoch < placement.epoch:
                if entry is not None:
                    retired.append(entry)
                entry = self._entries[placement.name] = Open(placement, make(placement))
            self._entries.move_to_end(placement.name)
            entry.leases += 1
            return entry, retired + self._surplus()

    def release(self, entry: Open[D]) -> None:
        """The lease has ended."""
        with self._lock:
            entry.leases -= 1

    def forget(self, entry: Open[D]) -> None:
        """Let the next one ask the registry."""
        with self._lock:
            if self._entries.get(entry.placement.name) is entry:
                del self._entries[entry.placement.name]

    def _surplus(self) -> list[Open[D]]:
        """Take out those that were not used for longest, as many as are too many and in use by nobody."""
        retired: list[Open[D]] = []
        if len(self._entries) > self._most:
            for name, entry in list(self._entries.items()):
                if len(self._entries) <= self._most:
                    break
                if not entry.is_in_use:
                    retired.append(self._entries.pop(name))
        return retired

    def clear(self) -> list[Open[D]]:
        """Keep none any longer; those that are to be closed."""
        with self._lock:
            entries = list(self._entries.values())
            self._entries.clear()
            return entries


def _in_use(engine: Engine) -> int:
    return engine.pool.in_use if isinstance(engine.pool, BudgetedPool) else 0


def served(placement: Placement) -> Placement:
    """The placement, if its tenant is served.

    Raises:
        TenantSuspended: it is not.
        UnknownTenant: it is about to be dropped.
    """
    if placement.state is State.ACTIVE:
        return placement
    if placement.state is State.SUSPENDED:
        raise TenantSuspended(f"{placement.name} is suspended: `tenants resume {placement.name}` ends that")
    if placement.state is State.ADDING:
        raise TenantSuspended(f"{placement.name} is being added; it is served as soon as that is done")
    raise UnknownTenant(f"there is no tenant {placement.name} any more: it is being dropped")


def address_of(placement: Placement, servers: Mapping[str, URL]) -> dict[str, URL]:
    """The one node of a tenant's database.

    Raises:
        NodeUnavailable: nobody knows its server.
    """
    if placement.server not in servers:
        raise NodeUnavailable(
            f"{placement.name} is on {placement.server}, which is none of the configured servers: {', '.join(servers)}",
            node=placement.server,
        )
    return {placement.server: placement.url(servers[placement.server])}


def away(placement: Placement, error: NodeUnavailable) -> NodeUnavailable:
    """The error that says whose server does not answer."""
    return NodeUnavailable(
        f"{placement.name} is on {placement.server}, which cannot be reached: {first_line(error.failures[-1])}",
        node=placement.server,
        failures=error.failures,
    )


def on_its_way(placement: Placement, error: DBAPIError) -> NodeUnavailable:
    """The error that says that a move has closed a database and did not end."""
    return NodeUnavailable(
        f"{placement.name} is on its way from {placement.server} to {placement.target}, and neither takes its logins. If no move is "
        "running, `tenants move` it again or take it back with --undo",
        node=placement.server,
        failures=[error],
    )


class Tenants:
    """Sessions and transactions in the databases of all tenants. Thread-safe; make one per process."""

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
        """Connect to nothing yet.

        Args:
            servers: where tenants can be; of each URL everything but the database and the role is used.
            registry: says where each tenant is.
            connections: how many this process may have to each server.
            keep_open: of how many tenants the engines are kept.
            pool: how long a connection lives, and the like; its size is that of `connections`.
            timeouts: of every connection.
            retry: of every unit of work.
            application_name: by which the servers know the connections.
        """
        self.retry = retry or RetryPolicy()
        self.counters = Counters()
        self._servers = dict(servers)
        self._registry = Registry(registry, timeouts=timeouts, application_name=application_name)
        limits = pool or PoolLimits()
        self._budgets = {server: ServerBudget(server, connections, timeout=limits.timeout) for server in servers}
        self._limits = {
            server: replace(limits, size=connections, max_overflow=0, poolclass=budget.pool_class())
            for server, budget in self._budgets.items()
        }
        self._timeouts = timeouts
        self._application_name = application_name
        self._kept: OpenDatabases[Database] = OpenDatabases(keep_open)
        self._lock = Lock()
        self._databases: WeakValueDictionary[str, TenantDatabase] = WeakValueDictionary()
        # Those made last are kept, so that not every unit of work makes one.
        self._recent: deque[TenantDatabase] = deque(maxlen=keep_open)

    @classmethod
    def from_settings(cls, settings: TenantSettings) -> Self:
        """As the settings describe it."""
        return cls(**tenant_options(settings))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._budgets.values()))}; {self._registry!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()

    def dispose(self) -> None:
        """Close every pooled connection, at the end of the process or after a fork."""
        for entry in self._kept.clear():
            entry.database.dispose()
        self._registry.dispose()

    def of(self, tenant: str | None = None) -> "TenantDatabase":
        """The database of a tenant, of the current one if absent; nothing is looked up before it is used.

        Raises:
            MisuseError: no tenant is named, and there is no current one.
        """
        name = chosen(tenant)
        with self._lock:
            database = self._databases.get(name)
            if database is None:
                database = self._databases[name] = TenantDatabase(self, name)
                self._recent.append(database)
            return database

    def using(
        self,
        *,
        tenant: str | None = None,
        idempotent: bool = False,
        isolation_level: IsolationLevel | None = None,
        retry: RetryPolicy | None = None,
    ) -> Options:
        """Say how the next unit of work is to be run, as `Database.using`.

        Args:
            tenant: in whose database; the current tenant's if absent.
            idempotent: running it twice has the effect of once, so an ambiguous commit is settled by running it again.
            isolation_level: another level than READ COMMITTED.
            retry: another policy than the one for all.
        """
        return self.of(tenant).using(idempotent=idempotent, isolation_level=isolation_level, retry=retry)

    def session(
        self, *, tenant: str | None = None, readonly: bool = False, isolation_level: IsolationLevel | None = None
    ) -> AbstractContextManager[PinnedSession]:
        """One transaction: committed when the block ends, rolled back when it raises, never retried.

        Raises:
            UnknownTenant: there is no such tenant.
            TenantSuspended: it is not served.
        """
        return self.using(tenant=tenant, isolation_level=isolation_level).session(readonly=readonly)

    def run(self, work: Callable[Concatenate[PinnedSession, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(session, …)` for the current tenant, as `Database.run`.

        Raises:
            UnknownTenant: there is no such tenant.
            TenantSuspended: it is not served.
        """
        return self.of().run(work, *args, **kwargs)

    def read(self, work: Callable[Concatenate[PinnedSession, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, on a session that the server keeps from writing."""
        return self.of().read(work, *args, **kwargs)

    def transactional(self, work: Callable[Concatenate[PinnedSession, P], T]) -> Callable[P, T]:
        """As a decorator: the function is called without the session, and runs as `run` has it."""

        @functools.wraps(work)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.run(work, *args, **kwargs)

        return run

    def names(self) -> list[str]:
        """The tenants that are served, in order."""
        return self._registry.active()

    def each(
        self, work: Callable[[PinnedSession], T], *, tenants: Iterable[str] | None = None, at_once: int = 8
    ) -> Generator[tuple[str, T], None, None]:
        """What `work(session)` returns for each tenant, on a session that only reads, in the order in which they end.

        Args:
            work: as for `read`.
            tenants: whom to ask; all that are served if absent.
            at_once: how many tenants are asked at the same time.

        Raises:
            SomeTenantsFailed: in the end, if some did; the others' answers came before.
        """
        return self._fan_out(lambda name: self._answer(name, work), tenants, at_once)

    def query(
        self, statement: Executable, *, tenants: Iterable[str] | None = None, at_once: int = 8
    ) -> Generator[tuple[str, Any], None, None]:
        """The rows of a query over all tenants, each a `Row` with the tenant's name before it, as they come.

        In memory there are a few chunks of rows and no more, whatever there is to read. The rows of one tenant are in the order that
        the statement gives them, and of one moment; between tenants there is no order. Keys differ between tenants as well, so rows
        of all of them can lie in one table.

        Args:
            statement: a SELECT.
            tenants: whom to ask; all that are served if absent.
            at_once: how many tenants are asked at the same time.

        Raises:
            SomeTenantsFailed: in the end, if some did; the others' rows came before, and perhaps some of theirs.
        """
        # Typed as `Any`: SQLAlchemy 2.0 and 2.1 write the type of a `Row` in ways that exclude each other.
        with closing(self._fan_out(lambda name: self._chunks(name, statement), tenants, at_once)) as answers:
            for name, rows in answers:
                for row in rows:
                    yield name, row

    def _answer(self, name: str, work: Callable[[PinnedSession], T]) -> Generator[T, None, None]:
        yield self.of(name).read(work)

    def _chunks(self, name: str, statement: Executable) -> Generator[list[Any], None, None]:
        with (
            self.session(tenant=name, readonly=True, isolation_level="REPEATABLE READ") as session,
            session.execute(statement, execution_options={"yield_per": CHUNK_ROWS}) as found,
        ):
            for rows in found.partitions():
                yield list(rows)

    def _fan_out(
        self, ask: Callable[[str], Generator[T, None, None]], tenants: Iterable[str] | None, at_once: int
    ) -> Generator[tuple[str, T], None, None]:
        if at_once < 1:
            raise MisuseError(f"at least one tenant is asked at a time, not {at_once}")
        names = self.names() if tenants is None else list(tenants)
        waiting: Queue[str] = Queue()
        for name in names:
            waiting.put(name)
        answers: Queue[tuple[str, T] | Ended] = Queue(at_once)
        enough = Event()

        def put(answer: "tuple[str, T] | Ended") -> bool:
            while not enough.is_set():
                with suppress(Full):
                    answers.put(answer, timeout=0.1)
                    return True
            return False

        def worker() -> None:
            with suppress(Empty):
                while not enough.is_set():
                    name = waiting.get_nowait()
                    failure = None
                    try:
                        with closing(ask(name)) as asked:
                            for answer in asked:
                                if not put((name, answer)):
                                    return
                    except Exception as error:
                        failure = error
                    put(Ended(name, failure))

        threads = [Thread(target=worker, daemon=True) for _ in range(min(at_once, len(names)))]
        for thread in threads:
            thread.start()
        failures: dict[str, Exception] = {}
        try:
            left = len(names)
            while left:
                answer = answers.get()
                if isinstance(answer, Ended):
                    left -= 1
                    if answer.failure is not None:
                        failures[answer.name] = answer.failure
                else:
                    yield answer
        finally:
            enough.set()
            for thread in threads:
                thread.join()
        if failures:
            raise SomeTenantsFailed(failures, len(names))

    # Which database it is ---------------------------------------------------------------------------------------

    def _begin(self, name: str, route: Route, isolation_level: IsolationLevel | None) -> PinnedSession:
        """Begin a unit of work in the database of a tenant, wherever that is by now."""
        deadline = time.monotonic() + SWITCH_PATIENCE
        pause = FIRST_PAUSE
        was_refused = False
        while True:
            entry = self._enter(name)
            try:
                return entry.database._begin(route, isolation_level)
            except NodeUnavailable as error:
                # Perhaps it is somewhere else by now.
                entry.is_doubtful = True
                raise away(entry.placement, error) from error
            except DBAPIError as error:
                if not is_login_refused(error):
                    raise
                self._kept.forget(entry)
                # Connections that are in use are closed when they come back.
                entry.database.dispose()
                now = served(self._registry.find(name))
                if now.epoch == entry.placement.epoch:
                    # Once it may have been closed for a move that was taken back meanwhile.
                    if now.target is None and was_refused:
                        raise
                    was_refused = now.target is None
                    if time.monotonic() > deadline:
                        raise on_its_way(now, error) from error
                    time.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
            finally:
                self._kept.release(entry)

    def _enter(self, name: str) -> Open[Database]:
        """The database of a tenant, kept open until it is released.

        Raises:
            UnknownTenant: there is no such tenant.
            TenantSuspended: it is not served.
            NodeUnavailable: nobody here knows where it is, and the registry does not answer.
        """
        entry, retired = self._kept.lease(name)
        if entry is None:
            try:
                found = self._registry.find(name)
            except NodeUnavailable:
                # What was known may still be so.
                entry, retired = self._kept.lease(name, even_doubtful=True)
                if entry is None:
                    raise
            else:
                entry, retired = self._kept.admit(served(found), self._make)
        for old in retired:
            old.database.dispose()
        return entry

    def _make(self, placement: Placement) -> Database:
        return Database(
            address_of(placement, self._servers),
            pool=self._limits[placement.server],
            timeouts=self._timeouts,
            application_name=self._application_name,
        )


@dataclass(frozen=True)
class Ended:
    """A tenant has given all its answers."""

    name: str
    failure: Exception | None


class TenantDatabase(Database):
    """The database of one tenant: looked up for every unit of work, hence the same object wherever it moves."""

    def __init__(self, tenants: Tenants, name: str) -> None:
        super().__init__({}, retry=tenants.retry)
        self.tenant = name
        """Whose it is."""
        self.counters = tenants.counters
        self._tenants = tenants

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown(self.tenant)})"

    def engine(self, node: str) -> NoReturn:
        """Refused: an engine is of one server, and is closed when its turn has come."""
        raise no_engine(self.tenant, node)

    def _begin(self, route: Route, isolation_level: IsolationLevel | None) -> PinnedSession:
        return self._tenants._begin(self.tenant, route, isolation_level)


def no_engine(tenant: str, node: str) -> MisuseError:
    """The error that says why a tenant's database has no engine to hand out."""
    return MisuseError(
        f"{tenant} has no engine to keep: where it is can change. Use its sessions, with db.session(tenant=…)",
        node=node,
    )


def is_login_refused(error: DBAPIError) -> bool:
    """Whether a server took the connection and refused the login: a role that is gone or closed, another password."""
    return sqlstate_of(error) is None and backend.LOGIN_REFUSED.search(str(error.orig)) is not None
