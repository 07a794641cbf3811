"""The writer and its readers, as operations see them: who is which, who follows whom, and a fence over all of them."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.schema import DropSchema

SYSTEM_SCHEMAS: frozenset[str] = frozenset()
"""Schemas that belong to the cluster's software: there is none."""

POLL = 0.001
"""Seconds between two looks at the progress of a reader; repeating a small transaction takes about a quarter of that."""

PATIENCE = 30.0
"""Seconds that a schema change may take to arrive; a link that is known to be broken is reported at once."""


class TopologyError(Exception):
    """The cluster is not what it should be; the message names the nodes and the cause."""


@dataclass(frozen=True)
class Link:
    """A reader and the writer it should follow."""

    origin: str
    receiver: str
    state: str
    """`streaming`, or what it does instead."""

    @property
    def is_up(self) -> bool:
        """Whether changes flow, as far as both ends know."""
        return self.state == "streaming"

    @property
    def is_lost(self) -> bool:
        """Whether it does not come back by waiting."""
        return self.state.startswith(("paused", "left behind"))

    def __str__(self) -> str:
        return f"{self.origin}→{self.receiver} {self.state}"


def writers(connections: Mapping[str, Connection]) -> list[str]:
    """The nodes that take writes: one, if all is well."""
    return [
        node for node, connection in connections.items() if not connection.scalar(text("SELECT pg_is_in_recovery()"))
    ]


def the_writer(connections: Mapping[str, Connection]) -> str:
    """The one node that takes writes.

    Raises:
        TopologyError: there is none, or more than one.
    """
    found = writers(connections)
    if not found:
        raise TopologyError(
            f"no node takes writes: {' and '.join(connections)} are readers. Promote one with `failover`"
        )
    if len(found) > 1:
        raise TopologyError(
            f"{' and '.join(found)} both take writes, and each goes its own way. Decide which one is right, stop the other, "
            "and bring it back with `rejoin`: what only it has is lost"
        )
    return found[0]


def schema_nodes(connections: Mapping[str, Connection]) -> list[str]:
    """Where a change of the schema has to be run: on the writer, which the readers repeat."""
    return [the_writer(connections)]


def settle(connections: Mapping[str, Connection]) -> None:
    """Return when every node has what changed in the schema.

    Raises:
        TopologyError: a reader does not follow.
    """
    fence(connections, timeout=PATIENCE)


def drop_schema(connections: Mapping[str, Connection], schema: str) -> None:
    """Remove a schema, with all that is in it, from every node.

    Raises:
        TopologyError: a reader does not follow.
    """
    connections[the_writer(connections)].execute(DropSchema(schema, cascade=True, if_exists=True))
    settle(connections)


def node_number(connection: Connection) -> int:
    """The number of a node, for keys that carry one: the same for all, since only one of them makes keys."""
    return 1


def links(connections: Mapping[str, Connection]) -> list[Link]:
    """Every reader's link to the writer, with its state."""
    writer = the_writer(connections)
    timeline = int(connections[writer].scalar(text(_TIMELINE)) or "0", 16)
    sent = {row.application_name: row.state for row in connections[writer].execute(text(_SENT))}
    return [
        Link(writer, reader, _state(connection, sent, timeline))
        for reader, connection in connections.items()
        if reader != writer
    ]


def fence(connections: Mapping[str, Connection], *, timeout: float = 10.0) -> None:
    """Return when all that was committed before the call is visible on every node.

    Raises:
        TopologyError: not within `timeout` seconds, or there is not exactly one writer.
    """
    look = time.monotonic() + min(timeout, 0.5)
    deadline = time.monotonic() + timeout
    writer = the_writer(connections)
    # A transaction of its own, behind all others: whoever sees it sees them. Aurora's readers, which get no log, can say so too.
    last = connections[writer].scalar(text("SELECT pg_current_xact_id()::text"))
    waiting = [reader for reader in connections if reader != writer]
    seen = text("SELECT pg_visible_in_snapshot(CAST(:last AS xid8), pg_current_snapshot())")
    while waiting := [reader for reader in waiting if not connections[reader].scalar(seen, {"last": last})]:
        now = time.monotonic()
        if now > look:
            look = now + 0.5
            late = [link for link in links(connections) if link.receiver in waiting]
            if now > deadline or any(link.is_lost for link in late):
                raise TopologyError("not replayed: " + ", ".join(map(str, late)))
        time.sleep(POLL)


def is_aurora(connection: Connection) -> bool:
    """Whether the readers share the writer's storage instead of receiving its log."""
    return connection.scalar(text("SELECT to_regprocedure('aurora_version()') IS NOT NULL")) is True


def unreplicable_tables(connection: Connection) -> list[tuple[str, str]]:
    """The tables that only the writer can read, each with the reason."""
    return [
        (name, "it is UNLOGGED: no reader has its rows, and a failover empties it")
        for name in connection.scalars(text(_UNLOGGED))
    ]


def refusal(statement: str) -> str | None:
    """Why a migration must not contain `statement`: what no reader repeats; None if it may.

    Args:
        statement: SQL without comments and literals, in upper case, with single spaces.
    """
    for pattern, reason in _REFUSED:
        if re.match(pattern, statement):
            return reason
    return None


_REFUSED = (
    (r"ALTER SYSTEM\b", "settings are a matter of one server"),
    (r"CREATE UNLOGGED ", "rows of an UNLOGGED table are not in the log that the readers repeat"),
    (r"ALTER TABLE .*SET UNLOGGED\b", "rows of an UNLOGGED table are not in the log that the readers repeat"),
)

# The first eight digits of a log file's name.
_TIMELINE = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"

_SENT = "SELECT application_name, state FROM pg_stat_replication"

_RECEIVED = """
    SELECT current_setting('cluster_name') AS name,
           pg_get_wal_replay_pause_state() <> 'not paused' AS paused,
           (SELECT status FROM pg_stat_wal_receiver) AS status,
           (SELECT received_tli FROM pg_stat_wal_receiver) AS timeline
"""

_UNLOGGED = """
    SELECT n.nspname || '.' || c.relname
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    ORDER BY 1
"""


def _state(reader: Connection, sent: Mapping[str, str], timeline: int) -> str:
    """What both ends say; a reader that follows somebody else looks well from its own end only."""
    found = reader.execute(text(_RECEIVED)).one()
    if found.paused:
        return "paused: its replay was stopped by hand"
    if found.timeline is not None and found.timeline < timeline:
        # It may look well from both ends, again and again for a moment.
        return (
            f"left behind on timeline {found.timeline} of {timeline}: it went further than the writer that was promoted"
        )
    if found.status != "streaming":
        return found.status or "not streaming"
    # A receiver introduces itself by its server's cluster_name, if that has one.
    return sent.get(found.name or "walreceiver", "follows another node")


{% include 'template/postgresql/alone.py' %}
