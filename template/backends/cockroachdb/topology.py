"""The cluster, as operations see it: one database that every node serves whole, whichever is asked.

So there is nothing to link, to fence or to repeat on another node: a change of the schema that was answered holds for all nodes,
and a row that was committed is seen by all.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DropSchema

from ..db import backend
from ..db.retry import sqlstate_of

OPERATIONS = "operations"
"""The schema of what belongs to no revision."""

SYSTEM_SCHEMAS = frozenset({"pg_extension", OPERATIONS})
"""Schemas that belong to the cluster's software and to its operations, not to the application."""

PATIENCE = 60.0
"""Seconds for which a revision that loses a race is run again."""


class TopologyError(Exception):
    """The cluster is not what it should be; the message names the nodes and the cause."""


@dataclass(frozen=True)
class Link:
    """A node and one that has to follow it: there are none."""

    origin: str
    receiver: str
    state: str


def writers(connections: Mapping[str, Connection]) -> list[str]:
    """The nodes that take writes: all of them."""
    return list(connections)


def schema_nodes(connections: Mapping[str, Connection]) -> list[str]:
    """Where a change of the schema has to be run: on any one node."""
    return list(connections)[:1]


def settle(connections: Mapping[str, Connection]) -> None:
    """Nothing to wait for: a change of the schema is answered when every node knows of it."""


def fence(connections: Mapping[str, Connection], *, timeout: float = 10.0) -> None:
    """Nothing to wait for: what was committed is seen by whoever asks next, anywhere."""


def drop_schema(connections: Mapping[str, Connection], schema: str) -> None:
    """Remove a schema, with all that is in it."""
    node = schema_nodes(connections)[0]
    connections[node].execute(DropSchema(schema, cascade=True, if_exists=True))


def node_number(connection: Connection) -> int:
    """The number of a node, for keys that carry one: the same for all, since the cluster numbers its nodes itself."""
    return 1


def links(connections: Mapping[str, Connection]) -> list[Link]:
    """Every link between nodes, with its state: there are none to look at."""
    return []


def software(connection: Connection) -> str:
    """What a server calls itself."""
    driver_connection: Any = connection.connection.driver_connection
    return backend.software(driver_connection) or str(connection.scalar(text("SELECT version()")))


def is_stand_in(connection: Connection) -> bool:
    """Whether one PostgreSQL stands in for the cluster."""
    return software(connection).startswith("stand-in")


def internals(connection: Connection) -> str:
    """The schema in which the cluster tells about itself, opened for this session.

    What is in there may change from version to version, so CockroachDB 26 wants to be told that one knows.
    """
    known = "SELECT count(*) FROM pg_settings WHERE name = 'allow_unsafe_internals'"
    if connection.scalar(text(known)):
        connection.execute(text("SET allow_unsafe_internals = true"))
    # Servers of the same line may call it otherwise.
    found = "SELECT nspname FROM pg_namespace WHERE right(nspname::text, 9) = '_internal'"
    return str(connection.scalar(text(found)) or "crdb_internal")


def unreplicable_tables(connection: Connection) -> list[tuple[str, str]]:
    """The tables that not every node has: there are none."""
    return []


def refusal(statement: str) -> str | None:
    """Why a migration must not contain `statement`: what CockroachDB has not, or takes without a word and ignores; None if it may.

    Args:
        statement: SQL without comments and literals, in upper case, with single spaces.
    """
    for pattern, reason in _REFUSED:
        if re.match(pattern, statement):
            return reason
    return None


_REFUSED = (
    (r"ALTER SYSTEM\b", "that changes one server; the cluster has SET CLUSTER SETTING"),
    (r"CREATE UNLOGGED |ALTER TABLE .*SET UNLOGGED\b", "there is no UNLOGGED table: the word is taken and ignored"),
    (r"CREATE (GLOBAL |LOCAL )?TEMP(ORARY)? |SELECT .* INTO TEMP\b", "temporary tables are an experiment there"),
    (r"CREATE (EXTENSION|DOMAIN|RULE|PUBLICATION|SUBSCRIPTION|FOREIGN|SERVER)\b", "CockroachDB has nothing like it"),
    (r"CREATE TABLE .*\b(INHERITS|PARTITION OF|EXCLUDE)\b", "CockroachDB has nothing like it"),
    (r"(LOCK|LISTEN|NOTIFY|VACUUM|CLUSTER|REINDEX)\b", "CockroachDB has nothing like it"),
    (r"(PREPARE TRANSACTION|COMMIT PREPARED|ROLLBACK PREPARED)\b", "there is no two-phase commit to rely on"),
    (r"(BEGIN|START TRANSACTION|COMMIT|END|ROLLBACK|SAVEPOINT)\b", "the runner begins and ends transactions"),
)


@contextmanager
def alone(connection: Connection) -> Iterator[bool]:
    """Whether nobody else is inside such a block; the cluster forgets who is gone within five seconds.

    There are no advisory locks. A row that is written by a transaction which stays open is as good: whoever wants to write it too is
    told at once.
    """
    table = f"{OPERATIONS}.migration_lock"
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {OPERATIONS}"))
    connection.execute(text(f"CREATE TABLE IF NOT EXISTS {table} (id int PRIMARY KEY, taken int NOT NULL)"))
    lock = text(f"SELECT id FROM {table} WHERE id = 1 FOR UPDATE NOWAIT")  # noqa: S608 - a constant
    with connection.engine.connect().execution_options(isolation_level=backend.ISOLATION) as holder:
        try:
            if holder.scalar(lock) is None:
                holder.execute(text(f"INSERT INTO {table} VALUES (1, 0) ON CONFLICT (id) DO NOTHING"))  # noqa: S608
                holder.commit()
                holder.execute(lock)
            # A lock that was only asked for may be lost with the node that keeps it; what was written is on a majority.
            holder.execute(text(f"UPDATE {table} SET taken = taken + 1 WHERE id = 1"))  # noqa: S608
        except DBAPIError as error:
            if sqlstate_of(error) not in ("55P03", *backend.RETRYABLE):
                raise
            is_alone = False
        else:
            is_alone = True
        try:
            yield is_alone
        finally:
            holder.rollback()
