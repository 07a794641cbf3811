"""Fixtures of the checks: a schema to write to, which no model of the application is in, and clients that write."""

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import uuid4

from sqlalchemy import URL, Connection, MetaData, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateSchema, DropSchema

from ...db import AmbiguousCommit, Database, Key, PinnedSession, PrimaryKeyMixin, RetryPolicy, keys
from ...db.errors import DistributedSQLError
from ...db.retry import first_line
from ..migrate import SCRATCH_PREFIX
from ..privileges import quoted
from ..topology import Topology

DDL_WAIT = 3.0
"""Seconds to wait for a migration to end, before the scratch schema is created. Arbitrary."""


STEP = 0.1
"""Width of a step of a timeline, in seconds."""


class Base(DeclarativeBase):
    """Base of the scratch tables."""


class Entry(PrimaryKeyMixin, Base):
    """One side of a transfer, or with no amount, a row to be found on other nodes."""

    __tablename__ = "entry"

    owner: Mapped[str] = mapped_column(index=True)
    amount: Mapped[int] = mapped_column(default=0)


class Scratch:
    """The scratch schema, which exists on every node, and a Database that writes to it."""

    def __init__(
        self, topology: Topology, urls: Mapping[str, URL], users: set[str], *, transaction_pooler: bool
    ) -> None:
        """Create the schema for the application, and for the owner of functions that keys call; links have to work."""
        self.users = users
        self.schema = f"{SCRATCH_PREFIX}{int(time.time())}_{secrets.token_hex(3)}"
        self.options = {"schema_translate_map": {None: self.schema}}
        """Execution options that put the tables without a schema into this one."""
        options: dict[str, Any] = {"application_name": "verify", "execution_options": self.options}
        retry = RetryPolicy(attempts=50, deadline=10.0)
        self.database = Database(urls, retry=retry, transaction_pooler=transaction_pooler, **options)
        # While a table is on some nodes only, a migration or a second schema cannot be made.
        with topology.migration_lock(wait=DDL_WAIT):
            topology.check_peers(len(topology.connections))
            nodes = topology.ddl_nodes()
            try:
                for node in nodes:
                    topology.connections[node].execute(CreateSchema(self.schema))
                    self.create_tables(topology.connections[node], Base.metadata)
                topology.wait_for_ddl()
                for node in topology.writers():
                    keys.set_sequence_node(topology.connections[node], topology.node_number(node), self.schema)
            except BaseException:
                # No row was written, so none can still be on its way to a table that is gone.
                for node in nodes:
                    topology.connections[node].execute(DropSchema(self.schema, cascade=True, if_exists=True))
                raise

    def drop(self, topology: Topology) -> None:
        """Drop the schema."""
        self.database.dispose()
        with topology.migration_lock(wait=10 * DDL_WAIT):
            topology.drop_schemas(self.schema)

    def create_tables(self, connection: Connection, *models: MetaData) -> None:
        """Create tables in the schema, for those who use it."""
        for metadata in models:
            metadata.create_all(connection.execution_options(**self.options))
        users = ", ".join(map(quoted, sorted(self.users)))
        for privileges in (
            "USAGE ON SCHEMA",
            "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA",
            "SELECT, USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA",
        ):
            connection.exec_driver_sql(f"GRANT {privileges} {self.schema} TO {users}")


def add_entries(session: PinnedSession, owner: str, count: int = 1) -> list[Key]:
    """Add `count` entries at once and return their keys."""
    return list(session.scalars(insert(Entry).returning(Entry.id), [{"owner": owner}] * count))


def add_once(session: PinnedSession, owner: str) -> None:
    """Add an entry unless `owner` has one."""
    if session.scalar(select(Entry.id).where(Entry.owner == owner)) is None:
        add_entries(session, owner)


class Load:
    """Context manager in which a thread for each of `clients` calls it again and again, with a unique text to write."""

    def __init__(self, clients: Iterable[Callable[[str], object]]) -> None:
        self.acknowledged: dict[str, float] = {}
        """Texts that were written, each with the time on the monotonic clock at which that was known."""
        self.doubtful: list[str] = []
        """Texts that may have been written."""
        self.failed: list[str] = []
        """Errors of the writes that failed, each in a line; one that no database raised begins with its class."""
        self.events: list[tuple[float, str]] = []
        """Events that happened to the nodes meanwhile, each with its time on the monotonic clock."""
        self._failed_at: list[float] = []
        self._finished = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(write,), daemon=True) for write in clients]

    def mark(self, event: str, moment: float | None = None) -> None:
        """Record an event that happened to the nodes, by default at this moment."""
        self.events.append((time.monotonic() if moment is None else moment, event))

    def timeline(self) -> dict[str, object]:
        """Return the events, and the numbers of writes that were acknowledged and that failed in each step."""
        end = max([*self.acknowledged.values(), *self._failed_at], default=self._began)

        def by_step(moments: Iterable[float]) -> list[int]:
            counts = Counter(int((moment - self._began) / STEP) for moment in list(moments))
            return [counts[number] for number in range(int((end - self._began) / STEP) + 1)]

        events = [{"s": round(moment - self._began, 2), "event": event} for moment, event in self.events]
        writes = {"acknowledged": by_step(self.acknowledged.values()), "failed": by_step(self._failed_at)}
        return {"step_s": STEP, **writes, "events": events}

    def __enter__(self) -> "Load":
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        for thread in self._threads:
            thread.join()

    def _write(self, write: Callable[[str], object]) -> None:
        while not self._finished.is_set():
            name = str(uuid4())
            try:
                write(name)
                self.acknowledged[name] = time.monotonic()
            except AmbiguousCommit:
                self.doubtful.append(name)
            except Exception as error:
                bug = "" if isinstance(error, DistributedSQLError | SQLAlchemyError) else f"{type(error).__name__}: "
                self.failed.append(bug + first_line(error))
                self._failed_at.append(time.monotonic())
            time.sleep(0.001)
