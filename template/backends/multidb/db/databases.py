"""Several unrelated databases side by side, each found by its name.

    databases = open_databases()                                      # places.py says which there are

    databases.run("orders", orders.place, account_id=…)               # one transaction on one database
    with databases.session("orders") as session: ...
    databases.two_phase("ledger", "orders").run(sales.pay, order=…)   # both or neither, said out loud

Each PostgreSQL database is a `Database` of one node, made on first use, with all its rules: routing, retries, ambiguous commits, bulk
loads. A file is a `SqliteDatabase`. A model belongs to one database; a unit of work refuses the models of another, for there its
table is missing, or is another table of the same name.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from uuid import UUID
from weakref import WeakSet

from sqlalchemy import Connection, Engine, MetaData, Table, event
from sqlalchemy.engine import URL
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.compiler import Compiled
from sqlalchemy.sql.visitors import iterate

from ..settings import Settings
from .backend import IsolationLevel
from .binds import PerModelSession
from .database import Database, Options, database_arguments
from .errors import MisuseError, NoNodes, WrongNode
from .retry import RetryPolicy
from .sqlite import SqliteDatabase
from .twophase import OnStep, TwoPhase, ignore
from .session import PinnedSession

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Place:
    """One database: its name, whose models it holds, and where it is."""

    name: str
    models: type[DeclarativeBase]
    node: str | None = None
    """The node of the settings that it lives on; None: a SQLite file."""


class FileSettings(Settings):
    """The settings, and where the files are that lie beside the servers."""

    sqlite_folder: Path = Path(".cluster")
    """Of every SQLite database, each in a file NAME.sqlite3."""


class Databases:
    """The databases of an application by name, each made on first use. Thread-safe; make one per process."""

    def __init__(
        self,
        places: Sequence[Place],
        nodes: Mapping[str, URL],
        *,
        folder: Path = Path(".cluster"),
        log: str | None = None,
        on_step: OnStep = ignore,
        **options: Any,
    ) -> None:
        """Remember where everything is; nothing connects before it is used.

        Args:
            places: the databases.
            nodes: the URL of every node.
            folder: of the SQLite files.
            log: the PostgreSQL database that keeps the decisions of two-phase commits; the first one if absent.
            on_step: is told of each step of a two-phase commit.
            options: of every PostgreSQL database, as `Database` takes them.
        """
        self.places = {place.name: place for place in places}
        servers = [place.name for place in places if place.node is not None]
        self.log = log or servers[0]
        if self.log not in servers:
            raise MisuseError(
                f"decisions are kept in a PostgreSQL database, one of {', '.join(servers)}: not {self.log!r}"
            )
        self._nodes = dict(nodes)
        self._folder = folder
        self._options = options
        self._on_step = on_step
        self._owners = {place.models.metadata: place.name for place in places}
        self._opened: dict[str, NamedDatabase | SqliteDatabase] = {}
        self._finished: set[UUID] = set()
        self._lock = Lock()

    @classmethod
    def from_settings(cls, places: Sequence[Place], settings: FileSettings, *, log: str | None = None) -> Self:
        """The databases as the settings describe them."""
        options = database_arguments(settings)
        for decided_here in ("nodes", "home"):
            del options[decided_here]
        return cls(places, settings.urls(), folder=settings.sqlite_folder, log=log, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.places)})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()

    def __getitem__(self, name: str) -> "NamedDatabase | SqliteDatabase":
        """The database of that name.

        Raises:
            WrongNode: there is none.
            NoNodes: the settings do not say where it is.
        """
        with self._lock:
            if name not in self._opened:
                self._opened[name] = self._open(self._find(name))
            return self._opened[name]

    def server(self, name: str) -> "NamedDatabase":
        """The PostgreSQL database of that name.

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
        """The SQLite database of that name.

        Raises:
            MisuseError: it is on a server.
        """
        found = self[name]
        if isinstance(found, Database):
            raise MisuseError(f"{name} is a PostgreSQL database, not a file", node=name)
        return found

    @property
    def servers(self) -> dict[str, "NamedDatabase"]:
        """Every PostgreSQL database, by name."""
        return {name: self.server(name) for name, place in self.places.items() if place.node is not None}

    def nodes_of(self, name: str) -> dict[str, URL]:
        """Where a PostgreSQL database is, as `Database` and its kind take it."""
        self.server(name)
        return {name: self._nodes[self.places[name].node or ""]}

    def session(self, name: str, *, readonly: bool = False) -> AbstractContextManager[PinnedSession]:
        """One transaction on one database: committed when the block ends, rolled back when it raises, never retried."""
        return self[name].session(readonly=readonly)

    def snapshot(self, name: str) -> AbstractContextManager[PinnedSession]:
        """A session that sees one moment of one database, however long it reads, and cannot write: for `ordered` and the like."""
        found = self[name]
        if isinstance(found, SqliteDatabase):
            return found.session(readonly=True)
        return found.using(isolation_level="REPEATABLE READ").session(readonly=True)

    def run(self, name: str, work: Callable[Concatenate[PinnedSession, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(session, …)` as one transaction on one database, again while that is safe and useful."""
        return self[name].run(work, *args, **kwargs)

    def read(self, name: str, work: Callable[Concatenate[PinnedSession, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, on a session that the database keeps from writing."""
        return self[name].read(work, *args, **kwargs)

    def two_phase(self, *names: str) -> TwoPhase:
        """Units of work on several PostgreSQL databases, committed together or not at all.

        Raises:
            MisuseError: one of them is a file, or there are not at least two.
        """
        if len(set(names)) < 2 or len(set(names)) != len(names):
            raise MisuseError(
                f"a two-phase commit is for two or more different databases, not for {', '.join(names) or 'none'}: "
                "one has run(…) and session()"
            )
        return TwoPhase(
            {name: self.server(name) for name in names},
            log=self.server(self.log),
            log_name=self.log,
            finished=self._finished,
            on_step=self._on_step,
        )

    def per_model(self, *, readonly: bool = False) -> PerModelSession:
        """A session that sends each statement to the database of its model: see `PerModelSession` for what that costs."""
        engines = {name: self[name].engine_for(readonly=readonly) for name in self.places}
        return PerModelSession(
            {place.models: engines[name] for name, place in self.places.items()},
            names={engine: name for name, engine in engines.items()},
            readonly=readonly,
        )

    def dispose(self) -> None:
        """Close every pooled connection."""
        with self._lock:
            for database in self._opened.values():
                database.dispose()

    def _find(self, name: str) -> Place:
        if name not in self.places:
            raise WrongNode(f"there is no database {name!r}: there are {', '.join(self.places)}")
        return self.places[name]

    def _open(self, place: Place) -> "NamedDatabase | SqliteDatabase":
        opened: NamedDatabase | SqliteDatabase
        if place.node is None:
            opened = SqliteDatabase(place.name, self._folder / f"{place.name}.sqlite3")
        elif place.node in self._nodes:
            opened = NamedDatabase({place.name: self._nodes[place.node]}, **self._options)
        else:
            raise NoNodes(
                f"{place.name} lives on {place.node}, and no URL of that node is known: start a local cluster with `up`, "
                "or set the nodes' URLs"
            )
        for readonly in (False, True):
            event.listen(
                opened.engine_for(readonly=readonly), "before_cursor_execute", _refuse_others(place.name, self._owners)
            )
        return opened


class NamedDatabase(Database):
    """A `Database` of one node, which has the name of the database on it."""

    def engine_for(self, *, readonly: bool = False) -> Engine:
        """The engine of its node; with `readonly` the one whose server refuses to write."""
        return self._engines.get(self.nodes[0], readonly=readonly)

    def using(
        self,
        *,
        node: str | None = None,
        key: Hashable | None = None,
        idempotent: bool = False,
        isolation_level: IsolationLevel | None = None,
        retry: RetryPolicy | None = None,
    ) -> Options:
        """As `Database.using`; it goes to the only node there is, which an error then names."""
        return super().using(
            node=node or self.nodes[0], key=key, idempotent=idempotent, isolation_level=isolation_level, retry=retry
        )


def _refuse_others(name: str, owners: Mapping[MetaData, str]) -> Callable[..., None]:
    """Refuse a statement on tables of another database, before it is sent.

    SQLAlchemy compiles a statement once and remembers it. So it is looked at once, and costs a set's lookup after that.
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
                    f"{part.name} is a table of {other}, and this unit of work is on {name}: one transaction cannot span "
                    f"two databases. Begin another with session({other!r}), or say that both belong together with "
                    f"two_phase({name!r}, {other!r})",
                    node=name,
                )
        accepted.add(compiled)

    return check
