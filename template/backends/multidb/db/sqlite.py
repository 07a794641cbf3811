"""A SQLite file beside the servers, set up for one writer at a time and for durable commits.

SQLite takes one writer at a time, of all processes together. A writer takes its lock at the start (BEGIN IMMEDIATE),
because a transaction that reads first and writes later can fail in the middle, and no wait would help it. Writers of
one process queue for a pool of one connection; writers of several processes wait for the busy timeout. Readers neither
wait nor block (WAL): each sees what was committed before it began.

    catalog = SqliteDatabase("catalog", Path("catalog.sqlite3"))
    catalog.run(add_product, sku="A-1")        # one transaction; waits for the write lock, then loses no race
    catalog.read(price_of, "A-1")              # one snapshot, on a connection that cannot write
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from .backend import Backend, Route
from .database import Database
from .errors import DistributedSQLError, MisuseError
from .retry import first_line
from .session import PinnedSession

BUSY_TIMEOUT = 5.0
"""Seconds that a writer waits in this process, and then again for other processes; as long as `lock_timeout`."""

READERS = 5
"""Connections of readers that stay open; more are opened under load. SQLAlchemy's own default."""

PRAGMAS = (
    "journal_mode = WAL",
    # SQLite enforces foreign keys only on connections that ask for it.
    "foreign_keys = ON",
    # NORMAL may lose the last commits in a power cut, and a received message no longer exists in its source.
    "synchronous = FULL",
)
"""Settings of every connection."""


class Busy(DistributedSQLError):
    """Another writer held the file for longer than the busy timeout. Nothing happened; try again."""


class _FileBackend(Backend):
    def is_aborted(self, connection: Connection) -> bool:
        """Return True if SQLite rolled the transaction back by itself, as it does when the disk is full."""
        driver_connection: Any = connection.connection.driver_connection
        return not driver_connection.in_transaction

    def route_load(self, db: Any, load: str | None, node: str | None) -> NoReturn:
        """Refuse a bulk load."""
        raise MisuseError("a SQLite file has no COPY: insert the rows with session.execute(insert(Model), rows)")


class SqliteDatabase(Database):
    """Sessions and transactions on one file, with the methods of `Database`. Thread-safe; make another after a fork.

    Options of `using` change nothing here: each transaction is serializable and runs once, after its wait for the lock.
    """

    def __init__(self, name: str, file: Path, *, busy_timeout: float = BUSY_TIMEOUT, readers: int = READERS) -> None:
        """Prepare a database; its first connection makes the file.

        Args:
            name: name for errors.
            file: path of the file.
            busy_timeout: longest wait of a writer, in seconds.
            readers: connections of readers that stay open.
        """
        self._url = URL.create("sqlite", database=str(file))
        super().__init__({name: self._url}, backend=_FileBackend())
        self.route = replace(self.route, node=name)
        self.name = name
        self.file = file
        self.busy_timeout = busy_timeout
        self._writer = self._create_engine("BEGIN IMMEDIATE", PRAGMAS, pool_size=1, max_overflow=0)
        self._reader = self._create_engine("BEGIN", (*PRAGMAS, "query_only = ON"), pool_size=readers, max_overflow=-1)

    def engine(self, node: str) -> Engine:
        """Return the engine of the writer."""
        return self._writer

    def engine_for(self, *, readonly: bool = False) -> Engine:
        """Return the engine of the writer, or that of the readers."""
        return self._reader if readonly else self._writer

    def dispose(self) -> None:
        """Close every connection; the last one to close checkpoints the WAL into the file."""
        self._writer.dispose()
        self._reader.dispose()

    def open_session(self, route: Route) -> PinnedSession:
        """Begin a transaction; a writer waits for the write lock.

        Raises:
            Busy: another writer held the lock for longer than the busy timeout.
            DistributedSQLError: the file cannot be opened.
        """
        started = time.monotonic()
        connection = None
        try:
            connection = self.engine_for(readonly=route.readonly).connect()
            session = PinnedSession(connection, node=self.name, readonly=route.readonly, backend=self.backend)
            # Begins at once: what a writer reads before it has the lock could be old when it has it.
            session.connection()
        except PoolTimeout as error:
            raise self.busy("another thread", started) from error
        except DBAPIError as error:
            if connection is not None:
                connection.close()
            if "locked" in str(error.orig):
                raise self.busy("another process", started) from error
            raise DistributedSQLError(f"{self.name} cannot be opened: {first_line(error)} ({self.file})") from error
        return session

    def busy(self, holder: str, started: float) -> Busy:
        """Return the error of a writer that has waited since `started` (on the monotonic clock)."""
        return Busy(
            f"{self.name} takes one writer at a time, and {holder} held it for the {time.monotonic() - started:.1f} s "
            "that this one waited. Nothing happened: try again, and keep units of work on it short",
            node=self.name,
        )

    def _create_engine(self, begin: str, pragmas: Sequence[str], **pool: int) -> Engine:
        waiting = {"timeout": self.busy_timeout, "check_same_thread": False}
        engine = create_engine(self._url, pool_timeout=self.busy_timeout, connect_args=waiting, **pool)

        @event.listens_for(engine, "do_connect")
        def make_file(*_: object) -> None:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Only its owner may read the file; SQLite gives the WAL the same mode.
            self.file.touch(mode=0o600, exist_ok=True)

        @event.listens_for(engine, "connect")
        def configure(dbapi_connection: Any, _entry: object) -> None:
            # The driver would begin transactions on its own, and never with IMMEDIATE.
            dbapi_connection.isolation_level = None
            for pragma in pragmas:
                dbapi_connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def send_begin(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        @event.listens_for(engine, "handle_error")
        def explain(context: ExceptionContext) -> None:
            if "readonly database" in str(context.original_exception):
                raise MisuseError(
                    f"{self.name} refused the write: this unit of work is read-only. Use run(…) or session()",
                    node=self.name,
                )

        return engine
