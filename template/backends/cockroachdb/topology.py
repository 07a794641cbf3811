"""The cluster as the operations see it: one database that every node serves whole.

A schema change that was answered holds on all nodes, and a committed row is visible on all: there are no links, and
there is nothing to wait for. A revision runs once, on any node: each statement of a schema revision in a transaction of
its own (see revisions.py), the rows of a data revision in one, which is run again if it loses a race.
"""

import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError
from typer import Typer

from ..db import RetryPolicy
from ..db.backend import Backend, Route
from ..db.connection import software as reported_software
from ..db.retry import Attempts, sqlstate_of
from .base import BaseTopology, Changes, Lock

OPERATIONS = "operations"
"""Schema of the tables that belong to no revision."""

_NOTHING_LIKE_IT = "CockroachDB has nothing like it"
_NO_ROWS = 'is no transaction, so it must not change rows; put this into a revision of its own with changes = "data"'
_NO_SCHEMA = "is one transaction, so it must not change the schema; put this into a revision of its own"


class Topology(BaseTopology):
    """One database on several nodes."""

    system_schemas = frozenset({"pg_extension", OPERATIONS})
    followers = "the same database is served by {}"
    can_rehearse = False
    refused = (
        (r"ALTER SYSTEM\b", "it changes one server; the cluster has SET CLUSTER SETTING"),
        (r"CREATE UNLOGGED |ALTER TABLE .*SET UNLOGGED\b", "CockroachDB accepts UNLOGGED and ignores it"),
        (r"CREATE (GLOBAL |LOCAL )?TEMP(ORARY)? |SELECT .* INTO TEMP\b", "temporary tables are experimental there"),
        (r"CREATE (EXTENSION|DOMAIN|RULE|PUBLICATION|SUBSCRIPTION|FOREIGN|SERVER)\b", _NOTHING_LIKE_IT),
        (r"CREATE TABLE .*\b(INHERITS|PARTITION OF|EXCLUDE)\b", _NOTHING_LIKE_IT),
        (r"(LOCK|LISTEN|NOTIFY|VACUUM|CLUSTER|REINDEX)\b", _NOTHING_LIKE_IT),
        (r"(PREPARE TRANSACTION|COMMIT PREPARED|ROLLBACK PREPARED)\b", "it has no two-phase commit to rely on"),
        (r"(BEGIN|START TRANSACTION|COMMIT|END|ROLLBACK|SAVEPOINT)\b", "the runner begins and ends transactions"),
    )
    refused_in = {
        "schema": ((r"(WITH .*)?\b(INSERT|UPDATE|DELETE|MERGE|COPY|TRUNCATE)\b", f"a schema revision {_NO_ROWS}"),),
        "data": ((r"(CREATE|ALTER|DROP|GRANT|REVOKE|COMMENT)\b", f"a data revision {_NO_SCHEMA}"),),
    }

    def ddl_nodes(self) -> list[str]:
        """Return one node; any would do."""
        return self.writers()[:1]

    def receivers(self, node: str) -> list[str]:
        """Return every node."""
        return list(self.connections)

    def unreplicable_tables(self, connection: Connection) -> list[tuple[str, str]]:
        """Return no table: every node has all of them."""
        return []

    def try_lock(self, held: ExitStack, lock: Lock = "migration") -> str | None:
        """Take a lock until `held` is closed, and return None; otherwise return the process that has it.

        A row written by an open transaction serves as the advisory lock that CockroachDB lacks: another writer is told
        at once. The cluster ends the transaction within five seconds after its connection is lost.
        """
        connection = self.connections[self.ddl_nodes()[0]]
        table, holders = f"{OPERATIONS}.{lock}_lock", f"{OPERATIONS}.{lock}_holder"
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {OPERATIONS}"))
        connection.execute(text(f"CREATE TABLE IF NOT EXISTS {table} (id int PRIMARY KEY, taken int NOT NULL)"))
        connection.execute(text(f"CREATE TABLE IF NOT EXISTS {holders} (id int PRIMARY KEY, holder text NOT NULL)"))
        locked = text(f"SELECT id FROM {table} WHERE id = 1 FOR UPDATE NOWAIT")  # noqa: S608 - a constant
        transaction = connection.engine.connect().execution_options(isolation_level=Backend.isolation_level)
        holder = held.enter_context(transaction)
        try:
            if holder.scalar(locked) is None:
                holder.execute(text(f"INSERT INTO {table} VALUES (1, 0) ON CONFLICT (id) DO NOTHING"))  # noqa: S608
                holder.commit()
                holder.execute(locked)
            # A lock without a write can be lost with the node that keeps it; a write is on a majority.
            holder.execute(text(f"UPDATE {table} SET taken = taken + 1 WHERE id = 1"))  # noqa: S608
        except DBAPIError as error:
            if sqlstate_of(error) not in ("55P03", *Backend.retryable):
                raise
            found = connection.scalar(text(f"SELECT holder FROM {holders} WHERE id = 1"))  # noqa: S608
            return str(found or "an unknown process")
        since = datetime.now(UTC).isoformat(" ", "seconds")
        values = {"holder": f"operations, process {os.getpid()} on {socket.gethostname()}, since {since}"}
        update = "ON CONFLICT (id) DO UPDATE SET holder = excluded.holder"
        connection.execute(text(f"INSERT INTO {holders} VALUES (1, :holder) {update}"), values)  # noqa: S608
        return None

    def check_revision(self, revision: ModuleType, *, back: bool) -> None:
        """Refuse a revision that could be neither rolled back nor run again if it were interrupted."""
        # Imported here, because only migrations need Alembic.
        from .revisions import refuse_unique_constraints, refuse_unrepeatable

        refuse_unrepeatable(revision, back=back)
        refuse_unique_constraints(revision, self.connections[self.ddl_nodes()[0]], back=back)

    def configure_revision(self, connection: Connection, changes: Changes) -> None:
        """Run each statement of a schema revision in a transaction of its own, and a data revision in one."""
        connection.execution_options(isolation_level="AUTOCOMMIT" if changes == "schema" else Backend.isolation_level)
        # CockroachDB 26 locks the schema of new tables, and some later changes then need it unlocked by hand.
        if connection.scalar(text("SELECT count(*) FROM pg_settings WHERE name = 'create_table_with_schema_locked'")):
            connection.execute(text("SET create_table_with_schema_locked = off"))
        if is_stand_in(connection):
            event.listen(connection, "before_cursor_execute", _translate, retval=True)

    def run_revision(self, run: Callable[[], None], node: str, changes: Changes) -> None:
        """Call `run` until it loses no race: its statements may run twice, and a transaction was rolled back."""
        attempts = Attempts(RetryPolicy(deadline=60), Route(node=node), time.monotonic())
        while True:
            try:
                return run()
            except DBAPIError as error:
                time.sleep(attempts.after(error, node=node, committing=changes == "data", now=time.monotonic()))

    @staticmethod
    def load_comparison() -> None:
        """Import the comparison of CockroachDB's types and expressions."""
        from . import revisions  # noqa: F401

    @staticmethod
    def register_commands(app: Typer) -> None:
        """Add the walk through the vendor's tutorial."""
        from .commands import walk

        app.command()(walk)


def _translate(_connection: Connection, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> tuple[str, Any]:
    """Replace the statement that drops a unique constraint, which the stand-in does not know."""
    return _DROP_UNIQUE.sub(r"ALTER TABLE \g<table> DROP CONSTRAINT IF EXISTS \g<name>", statement), parameters


_NAME = r'(?:"(?:[^"]|"")+"|\w+)'
_DROP_UNIQUE = re.compile(rf"^DROP INDEX IF EXISTS (?P<table>{_NAME}(?:\.{_NAME})?)@(?P<name>{_NAME}) CASCADE$")


def software(connection: Connection) -> str:
    """Return the name and version that a server reports; a stand-in reports that it is one."""
    reported = reported_software(connection.connection.driver_connection)
    return reported or str(connection.scalar(text("SELECT version()")))


def is_stand_in(connection: Connection) -> bool:
    """Return whether one PostgreSQL stands in for the cluster."""
    return software(connection).startswith("stand-in")


def internals(connection: Connection) -> str:
    """Return the schema in which the cluster reports its state, opened for this session.

    Its content may change from version to version, so CockroachDB 26 requires a setting that acknowledges this.
    """
    known = "SELECT count(*) FROM pg_settings WHERE name = 'allow_unsafe_internals'"
    if connection.scalar(text(known)):
        connection.execute(text("SET allow_unsafe_internals = true"))
    # Servers of the same line may have another name for it.
    found = "SELECT nspname FROM pg_namespace WHERE right(nspname::text, 9) = '_internal'"
    return str(connection.scalar(text(found)) or "crdb_internal")
