"""Several unrelated databases side by side, each found by its name.

    databases = open_databases()                                      # the application's databases.py lists them

    databases.run("orders", orders.place, account_id=…)               # one transaction on one database
    with databases.session("orders") as session: ...
    databases.two_phase("ledger", "orders").run(pay, order=…)   # both databases or neither

A PostgreSQL database is a `Database` of one node, created on first use: routing, retries, ambiguous commits and bulk
loads are the same. A file is a `SqliteDatabase`. A model belongs to one database. A unit of work refuses the models of
another database, because their tables are missing there, or are other tables of the same name.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeAlias, TypeVar
from uuid import UUID
from weakref import WeakSet

from sqlalchemy import Connection, Engine, MetaData, Table, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.compiler import Compiled
from sqlalchemy.sql.visitors import iterate

from ..settings import Settings
from .database import Database, database_arguments
from .errors import MisuseError, NoNodes, WrongNode
from .session import PinnedSession
from .sqlite import SqliteDatabase
from .twophase import Attempt, OnStep, TwoPhase, ignore_step

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DatabaseSpec:
    """Name, models and place of one database."""

    name: str
    models: type[DeclarativeBase]
    """Declarative base of its models."""
    node: str | None = None
    """Node of the settings that holds it; None: a SQLite file."""


class NamedDatabase(Database):
    """A `Database` of one node, where the node has the name of the database."""

    def __init__(self, nodes: Mapping[str, URL], **options: Any) -> None:
        """Prepare a database: its URL by its name, and arguments of `Database`."""
        super().__init__(nodes, **options)
        self.route = replace(self.route, node=self.nodes[0])

    def engine_for(self, *, readonly: bool = False) -> Engine:
        """Return the engine that writes, or the one whose server refuses writes."""
        return self._engines.get(self.nodes[0], "read" if readonly else "write")


AnyDatabase: TypeAlias = NamedDatabase | SqliteDatabase
Work: TypeAlias = Callable[Concatenate[PinnedSession, P], T]


class PerModelSession(Session):
    """A session with SQLAlchemy's rule of binds: each statement goes to the database of its model.

    It reads one moment of each database, and not the same one. A statement that names no model (`text`) has no
    database, and a join over two databases is impossible. A commit would be one commit per database, of which the
    second can fail after the first is done: so a session that may write keeps to the database of its first statement,
    and refuses any other before it is sent. `databases.two_phase(…)` writes to several databases.
    """

    def __init__(self, engines: Mapping[DatabaseSpec, Engine], *, readonly: bool) -> None:
        """Bind the models of each database to its engine.

        Args:
            engines: engine of each database.
            readonly: the engines refuse writes, so statements may go to several databases.
        """
        binds: Any = {spec.models: engine for spec, engine in engines.items()}
        super().__init__(binds=binds, expire_on_commit=False)
        self._names = {engine: spec.name for spec, engine in engines.items()}
        self._readonly = readonly
        self._written: str | None = None

    def get_bind(self, mapper: Any = None, **arguments: Any) -> Engine:
        """Return the engine for one statement.

        Raises:
            MisuseError: the statement names no model, or another database than the one this session writes to.
        """
        try:
            engine: Any = super().get_bind(mapper, **arguments)
        except UnboundExecutionError as error:
            raise MisuseError("this statement names no model, thus no database: use databases.session(NAME)") from error
        name = self._names[engine]
        if not self._readonly:
            if self._written not in (None, name):
                raise MisuseError(
                    f"this session writes to {self._written}, and the statement is for {name}: its commit would be two "
                    f"commits, of which one can fail. Use databases.two_phase({self._written!r}, {name!r}), or "
                    "per_model(readonly=True) to read",
                    node=name,
                )
            self._written = name
        bound: Engine = engine
        return bound


class Databases:
    """The databases of an application by name, each created on first use. Thread-safe; make one per process."""

    server_class: ClassVar[type[NamedDatabase]] = NamedDatabase
    file_class: ClassVar[type[SqliteDatabase]] = SqliteDatabase
    attempt_class: ClassVar[type[Attempt]] = Attempt

    def __init__(
        self,
        databases: Sequence[DatabaseSpec],
        nodes: Mapping[str, URL],
        *,
        folder: Path = Path(".cluster"),
        decision_log: str | None = None,
        on_step: OnStep = ignore_step,
        **options: Any,
    ) -> None:
        """Prepare the databases; nothing connects before it is used.

        Args:
            databases: the databases.
            nodes: URL of each node.
            folder: folder of the SQLite files.
            decision_log: PostgreSQL database that keeps the decisions of two-phase commits; None: the first one.
            on_step: callback for each step of a two-phase commit.
            **options: arguments of `Database`, for each PostgreSQL database.

        Raises:
            MisuseError: the decision log is not in a PostgreSQL database.
        """
        self.specs = {spec.name: spec for spec in databases}
        if len(self.specs) < len(databases):
            raise MisuseError(f"of {', '.join(spec.name for spec in databases)}, one name stands for two databases")
        servers = [spec.name for spec in databases if spec.node is not None]
        self.decision_log = decision_log or servers[0]
        """Name of the database with the decision log."""
        if self.decision_log not in servers:
            raise MisuseError(
                f"the decision log is in a PostgreSQL database, one of {', '.join(servers)}: not {self.decision_log!r}"
            )
        self.on_step = on_step
        self.completed: set[UUID] = set()
        """Two-phase commits that every database has completed; the next decision deletes theirs."""
        self.retry_lock = self.server_class.concurrency.make_lock()
        """Retry lock of two-phase commits."""
        self._nodes = dict(nodes)
        self._folder = folder
        self._options = options
        self._owners = {spec.models.metadata: spec.name for spec in databases}
        self._opened: dict[str, AnyDatabase] = {}
        self._lock = Lock()

    @classmethod
    def from_settings(
        cls, databases: Sequence[DatabaseSpec], settings: Settings, *, decision_log: str | None = None
    ) -> Self:
        """Prepare the databases as the settings describe them; see `Databases` for `decision_log`."""
        options = database_arguments(settings)
        del options["preferred_node"]
        return cls(databases, **options, folder=settings.sqlite_folder, decision_log=decision_log)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.specs)})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()

    def __getitem__(self, name: str) -> AnyDatabase:
        """Return the database of that name.

        Raises:
            WrongNode: there is none.
            NoNodes: the URL of its node is not configured.
        """
        with self._lock:
            if name not in self._opened:
                if name not in self.specs:
                    raise WrongNode(f"there is no database {name!r}: there are {', '.join(self.specs)}")
                self._opened[name] = self._open(self.specs[name])
            return self._opened[name]

    def server(self, name: str) -> NamedDatabase:
        """Return the PostgreSQL database of that name.

        Raises:
            MisuseError: it is a file.
        """
        found = self[name]
        if isinstance(found, SqliteDatabase):
            raise MisuseError(
                f"{name} is a SQLite file, which can take no part in a two-phase commit and has no options: "
                "send it a message through the outbox instead",
                node=name,
            )
        return found

    def file(self, name: str) -> SqliteDatabase:
        """Return the SQLite database of that name.

        Raises:
            MisuseError: it is on a server.
        """
        found = self[name]
        if not isinstance(found, SqliteDatabase):
            raise MisuseError(f"{name} is a PostgreSQL database, not a file", node=name)
        return found

    @property
    def log(self) -> NamedDatabase:
        """The database with the decision log."""
        return self.server(self.decision_log)

    @property
    def servers(self) -> dict[str, NamedDatabase]:
        """The PostgreSQL databases by name."""
        return {name: self.server(name) for name, spec in self.specs.items() if spec.node is not None}

    def nodes_of(self, name: str) -> dict[str, URL]:
        """Return the URL of a PostgreSQL database by its name, as `Database` takes it.

        Raises:
            MisuseError: it is a file.
        """
        self.server(name)
        return {name: self._nodes[self.specs[name].node or ""]}

    def session(self, name: str, *, readonly: bool = False) -> AbstractContextManager[PinnedSession]:
        """Open one transaction on one database, as `Database.session`."""
        return self[name].session(readonly=readonly)

    def snapshot(self, name: str) -> AbstractContextManager[PinnedSession]:
        """Open a read-only session that sees one moment of one database; `ordered` reads from it."""
        return self[name].session(readonly=True, isolation_level="REPEATABLE READ")

    def run(self, name: str, work: Work[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(session, …)` as one transaction on one database, as `Database.run`."""
        return self[name].run(work, *args, **kwargs)

    def read(self, name: str, work: Work[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(session, …)` in a session that cannot write, as `Database.read`."""
        return self[name].read(work, *args, **kwargs)

    def two_phase(self, *names: str) -> TwoPhase:
        """Return units of work on several PostgreSQL databases that commit together or not at all.

        Raises:
            MisuseError: one of the databases is a file, or there are not at least two.
        """
        if len(set(names)) < 2 or len(set(names)) != len(names):
            raise MisuseError(
                f"a two-phase commit is for two or more different databases, not for {', '.join(names) or 'none'}: "
                "one has run(…) and session()"
            )
        for name in names:
            self.server(name)
        return TwoPhase(self, names)

    def per_model(self, *, readonly: bool = False) -> PerModelSession:
        """Return a session that sends each statement to the database of its model; see `PerModelSession`."""
        engines = {spec: self[name].engine_for(readonly=readonly) for name, spec in self.specs.items()}
        return PerModelSession(engines, readonly=readonly)

    def dispose(self) -> None:
        """Close every pooled connection."""
        with self._lock:
            opened = list(self._opened.values())
        for database in opened:
            database.dispose()

    def _open(self, spec: DatabaseSpec) -> AnyDatabase:
        opened: AnyDatabase
        if spec.node is None:
            opened = self.file_class(spec.name, self._folder / f"{spec.name}.sqlite3")
        elif spec.node in self._nodes:
            opened = self.server_class({spec.name: self._nodes[spec.node]}, **self._options)
        else:
            raise NoNodes(
                f"{spec.name} is on {spec.node}, and no URL of that node is configured: start a local cluster with "
                "`up`, or set the nodes' URLs"
            )
        check = _refuse_other_models(spec.name, self._owners)
        for readonly in (False, True):
            event.listen(opened.engine_for(readonly=readonly), "before_cursor_execute", check)
        return opened


def _refuse_other_models(name: str, owners: Mapping[MetaData, str]) -> Callable[..., None]:
    """Return a listener that refuses a statement on tables of another database before it is sent.

    SQLAlchemy caches a compiled statement, so each is searched once and costs one set lookup after that.
    """
    accepted: WeakSet[Compiled] = WeakSet()

    def check(
        _connection: Connection, _cursor: object, _sql: str, _parameters: object, context: Any, _many: bool
    ) -> None:
        compiled: Compiled | None = context.compiled
        if compiled is None or compiled in accepted:
            return
        statement: Any = compiled.statement
        for part in iterate(statement):
            if isinstance(part, Table) and owners.get(part.metadata, name) != name:
                other = owners[part.metadata]
                raise MisuseError(
                    f"{part.name} is a table of {other}, and this unit of work is on {name}: one transaction cannot "
                    f"span two databases. Begin another with session({other!r}), or commit both together with "
                    f"two_phase({name!r}, {other!r})",
                    node=name,
                )
        accepted.add(compiled)

    return check
