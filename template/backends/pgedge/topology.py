"""The mesh, as operations see it: its links, a fence over all of them, and what DDL does in it.

Two kinds of mesh are understood, and which one a node is in is asked of the node: Spock, whose links replicate DDL as well as
rows, and PostgreSQL's own logical replication, the local stand-in, which replicates rows only.
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DropSchema

SYSTEM_SCHEMAS = frozenset({"spock", "snowflake", "lolor"})
"""Schemas that belong to the cluster's software, not to the application."""

POLL = 0.002
"""Seconds between two looks at the progress of replication; applying a small transaction takes about a tenth of that."""

CLEARING = 15.0
"""Seconds that colliding rows get to be cleared away; each round of it takes about one."""

PATIENCE = 30.0
"""Seconds that a schema change may take to arrive; a link that is known to be broken is reported at once."""


class TopologyError(Exception):
    """The mesh is not what it should be; the message names the nodes and the cause."""


@dataclass(frozen=True)
class Link:
    """One direction of replication, from `origin` to `receiver`."""

    origin: str
    receiver: str
    state: str
    """`replicating`, or what it does instead."""

    @property
    def is_up(self) -> bool:
        """Whether changes flow, as far as the receiver knows."""
        return self.state == "replicating"

    def __str__(self) -> str:
        return f"{self.origin}→{self.receiver} {self.state}"


def has_spock(connection: Connection) -> bool:
    """Whether Spock replicates this node."""
    return connection.scalar(text("SELECT to_regclass('spock.node') IS NOT NULL")) is True


def writers(connections: Mapping[str, Connection]) -> list[str]:
    """The nodes that take writes: all of them."""
    return list(connections)


def schema_nodes(connections: Mapping[str, Connection]) -> list[str]:
    """Where a change of the schema has to be run: on every node, or on one if the mesh carries it to the others."""
    carried = all(has_spock(connection) and _replicates_ddl(connection) for connection in connections.values())
    return list(connections)[:1] if carried else list(connections)


def settle(connections: Mapping[str, Connection]) -> None:
    """Return when every node has what changed in the schema and every link carries its tables: before that, write nothing.

    Raises:
        TopologyError: a link does not work.
    """
    publish_new_tables(connections)
    fence(connections, timeout=PATIENCE)


def drop_schema(connections: Mapping[str, Connection], schema: str) -> None:
    """Remove a schema, with all that is in it, from every node.

    A change to a table that is gone fails on the receiver for ever and blocks all that follow, so what is on its way comes first.

    Raises:
        TopologyError: a link does not work.
    """
    nodes = schema_nodes(connections)
    if len(nodes) > 1:
        _let_through(connections, schema)
    for node in nodes:
        connections[node].execute(DropSchema(schema, cascade=True, if_exists=True))
    settle(connections)


def _let_through(connections: Mapping[str, Connection], schema: str) -> None:
    """Wait until every change to the tables of a schema has arrived, clearing away what it collides with.

    A change that collides with a row is tried again and again; without the row it succeeds.
    """
    deadline = time.monotonic() + CLEARING
    while True:
        try:
            return fence(connections, timeout=2.0)
        except TopologyError:
            if time.monotonic() > deadline:
                raise
        for connection in connections.values():
            mark_as_local(connection)
            # Foreign keys do not matter: all of it goes.
            connection.execute(text("SET session_replication_role = replica"))
            for table in connection.scalars(text(_TABLES), {"schema": schema}).all():
                connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608 - quoted by %I
            connection.execute(text("RESET session_replication_role"))
            connection.execute(text("SELECT pg_replication_origin_session_reset()"))


_TABLES = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = :schema"


def _replicates_ddl(connection: Connection) -> bool:
    return connection.scalar(text("SELECT current_setting('spock.enable_ddl_replication', true) = 'on'")) is True


def node_number(connection: Connection) -> int:
    """The number that `snowflake.node` gives this node; 0 if it has none."""
    return int(connection.scalar(text("SELECT current_setting('snowflake.node', true)")) or 0)


def links(connections: Mapping[str, Connection]) -> list[Link]:
    """Every link there should be, each node from each other, with its state."""
    node_of = {_name_in_mesh(connection) or node: node for node, connection in connections.items()}
    found: dict[tuple[str, str], str] = {}
    for receiver, connection in connections.items():
        query = _SPOCK_LINKS if has_spock(connection) else _NATIVE_LINKS
        for name, slot, state in connection.execute(text(query)):
            origin = node_of.get(name)
            if origin is None:
                continue
            # A worker that fails and starts again looks well in between; its stream does not.
            streams = connections[origin].scalar(text(_STREAMS), {"slot": slot})
            found[origin, receiver] = "down" if state == "replicating" and not streams else state
    return [
        Link(origin, receiver, found.get((origin, receiver), "missing"))
        for receiver in connections
        for origin in connections
        if origin != receiver
    ]


_STREAMS = "SELECT active FROM pg_replication_slots WHERE slot_name = :slot"

_SPOCK_LINKS = "SELECT provider_node, slot_name, status FROM spock.sub_show_status()"

# Named by the local cluster: RECEIVER_from_ORIGIN.
_NATIVE_LINKS = """
    SELECT split_part(subname, '_from_', 2), subslotname, CASE WHEN subenabled THEN 'replicating' ELSE 'disabled' END
    FROM pg_subscription
    WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def fence(connections: Mapping[str, Connection], *, timeout: float = 10.0) -> None:
    """Return when all that was committed anywhere before the call is visible everywhere.

    Raises:
        TopologyError: not within `timeout` seconds, or a link is known to be broken.
    """
    if all(has_spock(connection) for connection in connections.values()):
        _spock_fence(connections, timeout)
    else:
        _native_fence(connections, timeout)


def _name_in_mesh(connection: Connection) -> str | None:
    """What Spock calls this node, which need not be what the settings call it."""
    if not has_spock(connection):
        return None
    name = connection.scalar(text("SELECT node_name FROM spock.node_info()"))
    return str(name) if name else None


def _spock_fence(connections: Mapping[str, Connection], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    events = {
        node: (_name_in_mesh(connection), connection.scalar(text("SELECT spock.sync_event()")))
        for node, connection in connections.items()
    }
    late = []
    for receiver, connection in connections.items():
        for origin, (name, lsn) in events.items():
            if origin == receiver:
                continue
            seconds = max(1, round(deadline - time.monotonic()))
            try:
                # A procedure that commits while it waits: only outside a transaction block.
                arrived = connection.scalar(
                    text("CALL spock.wait_for_sync_event(NULL, CAST(:origin AS name), CAST(:lsn AS pg_lsn), :seconds)"),
                    {"origin": name, "lsn": lsn, "seconds": seconds},
                )
            except DBAPIError:
                arrived = False
            if not arrived:
                late.append((origin, receiver))
    if late:
        raise TopologyError(_not_arrived(connections, late))


def _native_fence(connections: Mapping[str, Connection], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    errors = _apply_errors(connections)
    # Every commit that returned is flushed; WAL beyond that may stay unflushed, and so unsent, for a while.
    pending = {
        (origin, receiver): connection.scalar(text("SELECT pg_current_wal_flush_lsn()"))
        for origin, connection in connections.items()
        for receiver in connections
        if receiver != origin
    }
    look_for_errors = time.monotonic() + 0.3
    while True:
        for origin in {origin for origin, _ in pending}:
            for link, lsn in [(link, lsn) for link, lsn in pending.items() if link[0] == origin]:
                if connections[origin].scalar(text(_HAS_APPLIED), {"link": f"{link[1]}_from_{origin}", "lsn": lsn}):
                    del pending[link]
        if not pending:
            return
        now = time.monotonic()
        if now > deadline:
            raise TopologyError(_not_arrived(connections, pending))
        if now > look_for_errors:
            look_for_errors = now + 0.2
            if stopped := [pair for pair in pending if _states(connections)[pair] in ("disabled", "missing")]:
                raise TopologyError(_not_arrived(connections, stopped))
            # One error may be a peer that restarts; a second one is the same change failing again.
            failing = [link for link, count in _apply_errors(connections).items() if count > errors.get(link, 0) + 1]
            if failing:
                raise TopologyError(
                    f"replication is blocked: {', '.join(failing)} fails to apply a change; the receiver's log has the reason"
                )
        time.sleep(POLL)


_HAS_APPLIED = """
    SELECT count(*) FROM pg_stat_replication
    WHERE application_name = :link AND replay_lsn >= CAST(:lsn AS pg_lsn)
"""


def _apply_errors(connections: Mapping[str, Connection]) -> dict[str, int]:
    query = text("SELECT subname, apply_error_count FROM pg_stat_subscription_stats")
    return {
        f"{name.split('_from_')[-1]}→{receiver}": count
        for receiver, connection in connections.items()
        for name, count in connection.execute(query)
    }


def _not_arrived(connections: Mapping[str, Connection], late: Iterable[tuple[str, str]]) -> str:
    states = _states(connections)
    return "not replicated: " + ", ".join(
        f"{origin}→{receiver} {states[origin, receiver]}" for origin, receiver in late
    )


def _states(connections: Mapping[str, Connection]) -> dict[tuple[str, str], str]:
    return {(link.origin, link.receiver): link.state for link in links(connections)}


def mark_as_local(connection: Connection) -> None:
    """Keep what this session writes from being replicated: it is about to be written on every node.

    Needs a superuser. A second session cannot do it at the same time.
    """
    create = "SELECT pg_replication_origin_create('migrate') WHERE pg_replication_origin_oid('migrate') IS NULL"
    connection.execute(text(create))
    connection.execute(text("SELECT pg_replication_origin_session_setup('migrate')"))


def publish_new_tables(connections: Mapping[str, Connection]) -> None:
    """Let every link carry the tables that exist by now; on a table it does not know it drops the rows without a word.

    A Spock mesh does so by itself.

    Raises:
        TopologyError: a link is disabled, so it cannot be told.
    """
    if disabled := [link for link in links(connections) if link.state == "disabled"]:
        raise TopologyError("not replicated: " + ", ".join(map(str, disabled)))
    for connection in connections.values():
        if not has_spock(connection):
            for name in connection.scalars(text("SELECT subname FROM pg_subscription")).all():
                quoted = connection.dialect.identifier_preparer.quote(name)
                connection.exec_driver_sql(f"ALTER SUBSCRIPTION {quoted} REFRESH PUBLICATION WITH (copy_data = false)")


def unreplicable_tables(connection: Connection) -> list[tuple[str, str]]:
    """The tables whose rows cannot (all) reach the other nodes, each with the reason."""
    return [
        (f"{schema}.{table}", reason)
        for schema, table, reason in connection.execute(text(_UNREPLICABLE))
        if schema not in SYSTEM_SCHEMAS
    ]


_UNREPLICABLE = """
    SELECT n.nspname, c.relname,
           CASE c.relpersistence WHEN 'u' THEN 'it is UNLOGGED, so none of its rows are replicated'
                ELSE 'it has no primary key, so UPDATE and DELETE are not replicated' END
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
      AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
      AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'e')
      AND (c.relpersistence = 'u' OR NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary))
    ORDER BY 1, 2
"""


def left_out_tables(connection: Connection) -> list[str]:
    """The tables that no link carries, or only in part, though it could."""
    rows = connection.execute(text(_SPOCK_LEFT_OUT if has_spock(connection) else _NATIVE_LEFT_OUT))
    return [f"{schema}.{table}" for schema, table in rows if schema not in SYSTEM_SCHEMAS]


_SPOCK_LEFT_OUT = """
    SELECT nspname, relname FROM spock.tables
    WHERE set_name IS DISTINCT FROM 'default' AND nspname !~ '^pg_' AND nspname <> 'information_schema'
"""

_NATIVE_LEFT_OUT = """
    SELECT n.nspname, c.relname
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND EXISTS (SELECT FROM pg_subscription AS s
                  WHERE NOT EXISTS (SELECT FROM pg_subscription_rel AS r
                                    WHERE r.srsubid = s.oid AND r.srrelid = c.oid AND r.srsubstate = 'r'))
"""


_REFUSED = (
    (r"(CREATE|DROP|ALTER) DATABASE\b", "a database is a matter of one server"),
    (r"ALTER SYSTEM\b", "settings are a matter of one server"),
    (r"(CREATE|ALTER|DROP) (SUBSCRIPTION|PUBLICATION)\b", "it changes the links of the mesh themselves"),
    (r"CREATE (GLOBAL |LOCAL )?TEMP(ORARY)? ", "temporary objects live in one session of one node"),
    (r"CREATE UNLOGGED ", "rows of an UNLOGGED table are not replicated"),
    (r"ALTER TABLE .*SET UNLOGGED\b", "rows of an UNLOGGED table are not replicated"),
    (r"ALTER TABLE .*REPLICA IDENTITY (NOTHING|FULL)\b", "updates are found by primary key on the other nodes"),
    (
        r"(CREATE (UNIQUE )?INDEX|DROP INDEX|REINDEX .*|ALTER TABLE .*DETACH PARTITION .*) ?CONCURRENTLY\b",
        "CONCURRENTLY happens on one node only; without it the statement reaches all",
    ),
    (r"CREATE TABLE .* AS EXECUTE\b", "the prepared statement exists on one node only"),
    (r"SELECT\b.*\bSETVAL ?\(", "the position of a sequence is a matter of one node"),
)


def refusal(statement: str) -> str | None:
    """Why a migration must not contain `statement`: what is silently not replicated; None if it may.

    Args:
        statement: SQL without comments and literals, in upper case, with single spaces.
    """
    for pattern, reason in _REFUSED:
        if re.match(pattern, statement):
            return reason
    return None


{% include 'template/postgresql/alone.py' %}
