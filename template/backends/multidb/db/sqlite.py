"""A database in a file beside the servers: SQLite, set up so that it can be trusted, and used for what it is.

It takes one writer at a time, of all processes together; nothing here pretends otherwise. A writer takes its lock when it begins
(BEGIN IMMEDIATE), for a transaction that reads first and writes later can fail in the middle, and no waiting would help it. Within
a process writers queue for a pool of one connection, between processes they wait for the busy timeout. Readers wait for nobody
and nobody waits for them: they see what was committed before they began (WAL).

    catalog = SqliteDatabase("catalog", Path("catalog.sqlite3"))
    catalog.run(add_product, sku="A-1")        # one transaction; waits for its turn, then cannot lose a race
    catalog.read(price_of, "A-1")              # one snapshot, on a connection that cannot write
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from .database import inside_work, refuse_nesting
from .errors import DistributedSQLError, MisuseError
from .retry import first_line
from .session import PinnedSession

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT = 5.0
"""Seconds that a writer waits for its turn, in this process and then again for other processes. As long as `lock_timeout`."""

READERS = 5
"""Connections of readers that are kept; more are opened as they are needed. SQLAlchemy's own default."""


class Busy(DistributedSQLError):
    """Another writer had the file for longer than this one may wait. Nothing happened; it can be tried again."""


class FileSession(PinnedSession):
    """A unit of work on a file. SQLite forgets no failed statement's transaction, so there is nothing to ask before COMMIT."""

    def finish(self) -> None:
        """Send what is pending, then COMMIT. For the database that began it."""
        self.flush()
        self.committing = True
        Session.commit(self)


class SqliteDatabase:
    """Sessions and transactions on one file. Thread-safe; after a fork make another."""

    def __init__(self, name: str, file: Path, *, busy_timeout: float = BUSY_TIMEOUT, readers: int = READERS) -> None:
        self.name = name
        self.file = file
        self._busy_timeout = busy_timeout
        self._readers = readers
        self._engines: dict[bool, Engine] = {}
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}={self.file})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()

    def engine_for(self, *, readonly: bool = False) -> Engine:
        """The engine of the one writer, or that of the readers."""
        with self._lock:
            if readonly not in self._engines:
                self._engines[readonly] = self._make(readonly=readonly)
            return self._engines[readonly]

    def dispose(self) -> None:
        """Close every connection; the last one to go folds the log into the file."""
        with self._lock:
            for engine in self._engines.values():
                engine.dispose()

    @contextmanager
    def session(self, *, readonly: bool = False) -> Iterator[PinnedSession]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Raises:
            Busy: the writer's turn did not come within the busy timeout.
            MisuseError: the unit of work wrote although it is read-only.
        """
        unit = self._begin(readonly=readonly)
        try:
            yield unit
            unit.finish()
        except OperationalError as error:
            if readonly and "readonly database" in str(error.orig):
                raise MisuseError(
                    f"{self.name} refused the write: this unit of work is read-only. Write through run(…) or session()",
                    node=self.name,
                ) from error
            raise
        finally:
            unit.end()

    def run(self, work: Callable[Concatenate[PinnedSession, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(session, …)` as one transaction. Its turn comes once, and then nobody can come in between.

        Raises:
            Busy: its turn did not come within the busy timeout.
        """
        return self._run(False, work, *args, **kwargs)

    def read(self, work: Callable[Concatenate[PinnedSession, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, on a connection that cannot write, and without waiting for anybody."""
        return self._run(True, work, *args, **kwargs)

    def _run(
        self, readonly: bool, work: Callable[Concatenate[PinnedSession, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        refuse_nesting()
        with self.session(readonly=readonly) as unit:
            token = inside_work.set(True)
            try:
                return work(unit, *args, **kwargs)
            finally:
                inside_work.reset(token)

    def _begin(self, *, readonly: bool) -> FileSession:
        started = time.monotonic()
        try:
            connection = self.engine_for(readonly=readonly).connect()
        except PoolTimeout as error:
            raise self._busy("another thread", started) from error
        except DBAPIError as error:
            if "locked" in str(error.orig):
                raise self._busy("another process", started) from error
            raise DistributedSQLError(f"{self.name} cannot be opened: {first_line(error)} ({self.file})") from error
        unit = FileSession(connection, node=self.name, readonly=readonly)
        try:
            # Begins now: who waits for a turn has not read anything yet that could be old by then.
            unit.connection()
        except DBAPIError as error:
            unit.end()
            if "locked" in str(error.orig):
                raise self._busy("another process", started) from error
            raise
        return unit

    def _busy(self, who: str, started: float) -> Busy:
        waited = time.monotonic() - started
        return Busy(
            f"{self.name} takes one writer at a time, and {who} was it for the {waited:.1f} s that this one waits. "
            "Nothing happened: try again, and keep units of work on it short",
            node=self.name,
        )

    def _make(self, *, readonly: bool) -> Engine:
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What a person's own file may be read by is decided when it is made; its log gets the same mode from SQLite.
        self.file.touch(mode=0o600, exist_ok=True)
        engine = create_engine(
            URL.create("sqlite", database=str(self.file)),
            poolclass=QueuePool,
            pool_size=self._readers if readonly else 1,
            max_overflow=-1 if readonly else 0,
            pool_timeout=self._busy_timeout,
            connect_args={"timeout": self._busy_timeout, "check_same_thread": False},
        )
        _set_up(engine, readonly=readonly)
        return engine


def _set_up(engine: Engine, *, readonly: bool) -> None:
    @event.listens_for(engine, "connect")
    def configure(dbapi_connection: Any, _entry: object) -> None:
        # The driver begins transactions where it sees fit, and never immediately. From here on only what is below does.
        dbapi_connection.isolation_level = None
        dbapi_connection.execute("PRAGMA journal_mode = WAL")
        # SQLite checks no foreign key unless each connection asks for it.
        dbapi_connection.execute("PRAGMA foreign_keys = ON")
        # NORMAL may lose the last commits in a power cut. A message that was received has been deleted where it came from.
        dbapi_connection.execute("PRAGMA synchronous = FULL")
        if readonly:
            dbapi_connection.execute("PRAGMA query_only = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")
