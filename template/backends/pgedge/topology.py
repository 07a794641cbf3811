"""The mesh as the operations see it: its links, how to wait for them, and what DDL does in it.

Each node is asked which kind of mesh it is in: Spock, whose links replicate DDL as well as rows, or PostgreSQL's own
logical replication, the local stand-in, which replicates rows only. A revision runs once if the nodes replicate DDL.
Otherwise it runs on every node in turn, and its entry in Alembic's table stays local. Either way every node catches up
before the next step, because a row that overtakes its table is dropped without an error. A revision that changes rows,
with `changes = "data"` in its file, runs on one node, and they are replicated.
"""

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import permutations
from typing import Any

from sqlalchemy import Connection, MetaData, Row, event, text
from sqlalchemy.exc import DBAPIError
from typer import Typer

from .base import BaseTopology, Changes, Link, MigrationError, Pause, TopologyError
from .pause import pausable_writes

_NO_ROWS = 'runs on every node, so it must not change rows; put this into a revision of its own with changes = "data"'
_NO_SCHEMA = "runs on one node, so it must not change the schema; put this into a revision of its own"
_FILL_ONCE = (
    'Add the column without a default, fill it in a revision with changes = "data", and set the default in a third one'
)
_NOW = "each node would compute a constant of its own; now() and current_date are computed for each row"
_CONSTANT_NOW = re.compile(r"\bDEFAULT\b[^,;]*'\s*(now|today|tomorrow|yesterday)\s*'", re.IGNORECASE)
_UNIQUE = (
    "Two nodes can each accept a row, and the clash stops replication. Make it an index that is not unique, and look "
    "for the value under a lock on one node, with db.using(key=…)"
)
_IN_FLIGHT = (
    "A row that another node wrote a moment before could not be applied, and would block its link. Let no code use it, "
    "and set contract = True in the revision: writes pause while it runs. "
)
_STEPS = _IN_FLIGHT + "`revision --expand-contract` writes the steps"


class Topology(BaseTopology):
    """A multi-master mesh: every node takes writes and sends them to all others."""

    system_schemas = frozenset({"spock", "snowflake", "lolor"})
    each_node_computes = True
    link_extensions = frozenset({"spock"})
    followers = "replicated to {}"
    refused = (
        (r"(CREATE|DROP|ALTER) DATABASE\b", "a database belongs to one server"),
        (r"ALTER SYSTEM\b", "settings belong to one server"),
        (r"(CREATE|ALTER|DROP) (SUBSCRIPTION|PUBLICATION)\b", "it changes the links of the mesh themselves"),
        (r"CREATE (GLOBAL |LOCAL )?TEMP(ORARY)? ", "temporary objects live in one session of one node"),
        (r"CREATE UNLOGGED |ALTER TABLE .*SET UNLOGGED\b", "rows of an UNLOGGED table are not replicated"),
        (r"ALTER TABLE .*REPLICA IDENTITY (NOTHING|FULL)\b", "other nodes find the row to update by its primary key"),
        (r"CREATE TABLE .* AS EXECUTE\b", "the prepared statement exists on one node only"),
        (r"SELECT\b.*\bSETVAL ?\(", "the position of a sequence belongs to one node"),
        (
            r"(CLUSTER|REPACK|VACUUM)\b",
            "it rewrites a table on one node, outside of a revision: run it on each in turn",
        ),
    )
    refused_effects = {
        "truncate": f"Its rows were removed, and a schema revision {_NO_ROWS}",
        "volatile default": f"Each node would fill in values of its own for the rows there are. {_FILL_ONCE}",
        "unique": _UNIQUE,
        "deferrable key": "Replication does not apply rows by a DEFERRABLE key. Leave DEFERRABLE out",
        "exclusion": "Two nodes can each accept a row, and the clash stops replication. Look for overlaps under a lock "
        "on one node, with db.using(key=…)",
        "local keys": "Every node would hand out the same keys, and rows overwrite each other. Derive the model from "
        "PrimaryKeyMixin, or use key_column()",
    }
    paused_effects = {
        "drop table": _IN_FLIGHT,
        "rename table": _IN_FLIGHT,
        "drop column": _STEPS,
        "rename column": _STEPS,
        "change type": _STEPS,
        "set not null": _STEPS,
        "add not null column": "A row on its way has no value for it. Give it a constant default, or make it nullable: "
        "`revision --expand-contract` writes the steps",
        "add constraint": _IN_FLIGHT,
    }
    refused_in = {
        "schema": (
            (r"(WITH .*)?\b(INSERT|UPDATE|DELETE|MERGE|COPY|TRUNCATE)\b", f"a schema revision {_NO_ROWS}"),
            (
                r"(CREATE (UNIQUE )?INDEX|DROP INDEX|REINDEX .*) ?CONCURRENTLY\b",
                'CONCURRENTLY happens on one node only; with changes = "indexes" a revision runs on each of them',
            ),
            (r"ALTER TABLE .*DETACH PARTITION .* ?CONCURRENTLY\b", "leave out CONCURRENTLY: it stays on one node"),
        ),
        "data": ((r"(CREATE|ALTER|DROP|GRANT|REVOKE|COMMENT|REINDEX)\b", f"a data revision {_NO_SCHEMA}"),),
        "indexes": ((r"CREATE UNIQUE\b", _UNIQUE),),
    }

    def refusal(self, statement: str, changes: Changes) -> str | None:
        """Return why a revision with this subject must not send `statement`, one or several; None if it may."""
        return _NOW if _CONSTANT_NOW.search(statement) else super().refusal(statement, changes)

    def ddl_nodes(self) -> list[str]:
        """Return every node, or one of them if the mesh replicates DDL to the others."""
        setting = text("SELECT current_setting('spock.enable_ddl_replication', true) = 'on'")
        is_replicated = all(has_spock(node) and node.scalar(setting) for node in self.connections.values())
        return self.writers()[:1] if is_replicated else self.writers()

    def receivers(self, node: str) -> list[str]:
        """Return every node."""
        return list(self.connections)

    def links(self) -> list[Link]:
        """Return the link from each node to each other, with its state."""
        node_of = {self._name_in_mesh(node): node for node in self.connections}
        links = {pair: Link(*pair, "missing", is_up=False, is_lost=True) for pair in permutations(self.connections, 2)}
        for receiver, connection in self.connections.items():
            query = text(_SPOCK_LINKS if has_spock(connection) else _NATIVE_LINKS)
            blockers = {row.name: row for row in connection.execute(text(_BLOCKERS))}
            for row in connection.execute(query):
                if (origin := node_of.get(row.origin)) is not None and origin != receiver:
                    blocker = blockers.get(row.name) or blockers.get(None)
                    links[origin, receiver] = self._judge(origin, receiver, row, blocker)
        return list(links.values())

    def _judge(self, origin: str, receiver: str, link: Row[Any], blocker: Row[Any] | None) -> Link:
        """Return a link with its state, as both ends see it, and what to do about it."""
        advice, is_lost, state = "", False, str(link.state)
        spock = has_spock(self.connections[receiver])
        # An apply worker that fails and restarts looks well in between; its slot does not.
        values = {"slot": link.slot, "link": link.name, "asked": link.asked}
        there = self.connections[origin].execute(text(_SLOT), values).one_or_none()
        if state == "disabled":
            is_lost = True
            enable = f"SELECT spock.sub_enable('{link.name}')" if spock else f"ALTER SUBSCRIPTION {link.name} ENABLE"
            advice = f"on {receiver}: {enable}"
        elif there is None:
            state, is_lost = f"lost its slot, so {receiver} misses all that was written on {origin} since then", True
            plugin = "spock_output" if spock else "pgoutput"
            advice = f"on {origin}: SELECT pg_create_logical_replication_slot('{link.slot}', '{plugin}')"
        elif blocker is not None:
            state = f"waits for a lock of {blocker.application or 'a session'}, {blocker.state}, for {blocker.waits} s"
            advice = f"on {receiver}: SELECT pg_terminate_backend({blocker.pid})"
        elif state == "replicating" and not there.active:
            state = "down"
        elif state == "replicating" and link.patience and (there.silence or 0) > link.patience:
            state = (
                f"silent for {there.silence:.0f} s: its apply worker, process {link.pid} on {receiver}, does nothing"
            )
            advice = f"let it go on with `kill -CONT {link.pid}`"
        lag = None if there is None else there.lag
        return Link(origin, receiver, state, is_up=state == "replicating", is_lost=is_lost, advice=advice, lag=lag)

    def wait_for_catchup(self, *, timeout: float = 30.0) -> None:
        """Wait until everything committed on any node before the call is visible on every node."""
        started = time.monotonic()
        deadline, next_check = started + timeout, started + 0.3
        errors: dict[str, int] | None = None
        positions = {node: _position(connection) for node, connection in self.connections.items()}
        late = {node: [other for other in positions if other != node] for node in positions}
        while late := {node: them for node, all_ in late.items() if (them := self._late(node, positions[node], all_))}:
            now = time.monotonic()
            if errors is None and now > started + 0.05:
                errors = self.apply_errors()
            if errors is not None and now > next_check:
                next_check = now + 0.2
                links = [link for link in self.links() if link.receiver in late.get(link.origin, ())]
                if lost := [link for link in links if link.is_lost or now > deadline]:
                    raise TopologyError("not replicated: " + ", ".join(link.explanation for link in lost))
                # One error may be a peer that restarts; a second one is the same change failing again.
                failing = [link for link, count in self.apply_errors().items() if count > errors.get(link, 0) + 1]
                if failing:
                    raise TopologyError(
                        f"replication is blocked: {', '.join(failing)} fails to apply a change; "
                        "the receiver's server log has the reason"
                    )
            # Applying a small transaction takes about a tenth of that.
            time.sleep(0.002)

    def wait_for_ddl(self) -> None:
        """Wait until every node has the schema changes made so far and every link carries the new tables."""
        # A native link drops the rows of a table that it was not told of; one that is disabled cannot be told.
        if disabled := [str(link) for link in self.links() if link.state == "disabled"]:
            raise TopologyError("not replicated: " + ", ".join(disabled))
        for connection in self.connections.values():
            if not has_spock(connection):
                for statement in connection.scalars(text(_REFRESH_LINKS)).all():
                    connection.exec_driver_sql(statement)
        self.wait_for_catchup()

    def drop_schemas(self, *schemas: str) -> None:
        """Drop schemas, with everything in them, on every node, once all changes to their tables have arrived."""
        self._keep_clients_out(schemas)
        if len(self.ddl_nodes()) > 1:
            self._drain(schemas)
        else:
            # A link that is broken does not matter here.
            with suppress(TopologyError):
                self.wait_for_catchup(timeout=10.0)
        super().drop_schemas(*schemas)

    def node_number(self, node: str) -> int:
        """Return the number that `snowflake.node` gives a node; 0 if it has none."""
        return int(self.connections[node].scalar(text("SELECT current_setting('snowflake.node', true)")) or 0)

    def unreplicable_tables(self, connection: Connection) -> list[tuple[str, str]]:
        """Return the tables whose rows cannot (all) reach the other nodes, each with the reason."""
        rows = connection.execute(text(_UNREPLICABLE))
        return [(f"{schema}.{table}", reason) for schema, table, reason in rows if schema not in self.system_schemas]

    def left_out_tables(self) -> list[tuple[str, str]]:
        """Return the nodes and the tables that no link of the node carries, or only some."""
        found: list[tuple[str, str]] = []
        for node, connection in self.connections.items():
            found += [(node, table) for table in dict.fromkeys(table for table, _ in uncarried_tables(connection))]
        return found

    def wrongly_changed(self, connection: Connection, changes: Changes) -> list[tuple[str, str]]:
        """Return the tables whose rows a schema revision has changed: in a DO block, a function or a trigger, too."""
        rows = connection.execute(text(_CHANGED_TABLES)).all() if changes == "schema" else ()
        reason = f"its rows were changed, and a schema revision {_NO_ROWS}"
        return [(f"{schema}.{table}", reason) for schema, table in rows if schema not in self.system_schemas]

    def pausable_writes(self, owners: Mapping[str, Connection]) -> AbstractContextManager[Pause]:
        """Prepare to pause the writes of clients on every node, so that no row is on its way to a changed table."""
        return pausable_writes(self, owners)

    @staticmethod
    def refuse_models(models: Sequence[MetaData]) -> None:
        """Refuse models that the mesh cannot hold."""
        # Imported here, because it needs this module.
        from .mesh_models import refuse_models

        refuse_models(models)

    def check_peers(self, nodes: int) -> None:
        """Raise MigrationError if nodes of the mesh are not configured, because what is written reaches them all."""
        for node, connection in self.connections.items():
            links = connection.execute(text(_SPOCK_LINKS if has_spock(connection) else _NATIVE_LINKS)).all()
            if len(links) > nodes - 1:
                raise MigrationError(
                    f"{node} has {len(links)} peers, and {nodes - 1} of them are configured: "
                    "name every node of the mesh in the settings"
                )

    def revision_nodes(self, changes: Changes) -> list[str]:
        """Return where a revision runs: rows are changed on one node, and no mesh replicates CONCURRENTLY."""
        if changes == "schema":
            return self.ddl_nodes()
        return self.writers() if changes == "indexes" else self.writers()[:1]

    def configure_revision(self, connection: Connection, changes: Changes) -> None:
        """Keep a revision that runs on every node from being replicated, and its entry in Alembic's table anyway."""
        if len(self.revision_nodes(changes)) > 1:
            mark_as_local(connection)
        elif len(self.ddl_nodes()) > 1:
            mark_version_as_local(connection)
        # Rows that this session changed before would count as the revision's.
        connection.execute(text("SELECT pg_stat_force_next_flush()"))

    @staticmethod
    def register_commands(app: Typer) -> None:
        """Add the commands that compare and repair rows."""
        from .diff import diff
        from .repair import repair

        app.command()(diff)
        app.command()(repair)

    def _keep_clients_out(self, schemas: Sequence[str]) -> None:
        """Take the schemas away from clients of `verify` that an interrupt has left writing.

        A row that is written while its table is dropped elsewhere would block its link for ever.
        """
        values = {"schemas": list(schemas)}
        for node in self.ddl_nodes():
            connection = self.connections[node]
            for statement in connection.scalars(text(_REVOKE), values).all():
                connection.exec_driver_sql(statement)
        for connection in self.connections.values():
            connection.execute(text(_END_CLIENTS))

    def _drain(self, schemas: Sequence[str]) -> None:
        """Wait until every change to the tables of some schemas has arrived, deleting the rows that block one.

        A change to a table that is gone fails on the receiver for ever and blocks all that follow. A change that
        collides with a row is tried again and again; without the row it succeeds.
        """
        deadline = time.monotonic() + 15  # One round takes about a second.
        while True:
            try:
                return self.wait_for_catchup(timeout=2.0)
            except TopologyError:
                if time.monotonic() > deadline:
                    raise
            for connection in self.connections.values():
                mark_as_local(connection)
                # Foreign keys do not matter, because all rows go.
                connection.execute(text("SET session_replication_role = replica"))
                for statement in connection.scalars(text(_DELETE_ROWS), {"schemas": list(schemas)}).all():
                    connection.exec_driver_sql(statement)
                connection.execute(text("RESET session_replication_role"))
                connection.execute(text(_RESET_ORIGIN))

    def _name_in_mesh(self, node: str) -> str:
        """Return the name that Spock has for a node, which may differ from the one in the settings."""
        connection = self.connections[node]
        name = connection.scalar(text("SELECT node_name FROM spock.node_info()")) if has_spock(connection) else None
        return str(name or node)

    def _late(self, origin: str, position: str, receivers: Sequence[str]) -> list[str]:
        """Return the receivers that have not applied what a node wrote up to a position."""
        spock = [receiver for receiver in receivers if has_spock(self.connections[receiver])]
        late = [receiver for receiver in spock if not self._spock_has_applied(origin, receiver, position)]
        if native := set(receivers) - set(spock):
            applied = self.connections[origin].scalars(text(_NATIVE_HAVE_APPLIED), {"position": position}).all()
            # The local cluster names a subscription RECEIVER_from_ORIGIN.
            late += [receiver for receiver in native if f"{receiver}_from_{origin}" not in applied]
        return late

    def _spock_has_applied(self, origin: str, receiver: str, position: str) -> bool:
        values = {"origin": self._name_in_mesh(origin), "position": position}
        with suppress(DBAPIError):
            # A procedure that commits while it waits, for up to a second, so it runs only outside a transaction block.
            return bool(self.connections[receiver].scalar(text(_SPOCK_HAS_APPLIED), values))
        return False

    def apply_errors(self) -> dict[str, int]:
        """Return how often each link has failed to apply a change."""
        query = text("SELECT subname, apply_error_count FROM pg_stat_subscription_stats")
        return {
            f"{name.split('_from_')[-1]}→{receiver}": count
            for receiver, connection in self.connections.items()
            for name, count in connection.execute(query)
        }

    def conflicts(self) -> dict[str, int]:
        """Return how many conflicting changes each node has met, as far as the servers count or record them."""
        return {node: count_conflicts(connection)[0] for node, connection in self.connections.items()}

    def explain_blocked(self, link: Link, log: str) -> str:
        """Return the change that a link cannot apply, in the words of its receiver's log, and how to skip it."""
        name = f"{link.receiver}_from_{link.origin}"
        oid = self.connections[link.receiver].scalar(text(_SUBSCRIPTION), {"name": name})
        found = [match for match in _FAILURE.finditer(log) if match["oid"] == str(oid)]
        if not found:
            return f"; the log of {link.receiver} has the row and its LSN, for ALTER SUBSCRIPTION {name} SKIP (lsn = …)"
        reason = " ".join(f"{found[-1]['error']}. {found[-1]['detail']}".split())
        skip = f"ALTER SUBSCRIPTION {name} SKIP (lsn = '{found[-1]['lsn']}')"
        return f" that cannot be applied: {reason[:400]}. Skip it, then compare the rows; on {link.receiver}: {skip}"


def count_conflicts(connection: Connection) -> tuple[int, int, str, str]:
    """Return the numbers of conflicts and of changes not applied, since when, and what makes a node forget them."""
    query = text(_SPOCK_COUNTS if has_spock(connection) else _NATIVE_COUNTS)
    conflicts, failures, since, forget = connection.execute(query).one()
    return conflicts, failures, since, forget


def has_spock(connection: Connection) -> bool:
    """Return whether Spock replicates this node; it is asked once on a connection."""
    if "has_spock" not in connection.info:
        query = text("SELECT to_regclass('spock.node') IS NOT NULL")
        connection.info["has_spock"] = connection.scalar(query) is True
    return bool(connection.info["has_spock"])


def mark_as_local(connection: Connection) -> None:
    """Keep what this session writes from being replicated, because it is about to be written on every node.

    Needs EXECUTE on these functions, as a superuser and the owner of the tables have it. Only one session of a node can
    do it at a time.
    """
    connection.execute(text(_CREATE_ORIGIN))
    connection.execute(text(_SET_ORIGIN))


def uncarried_tables(connection: Connection) -> list[tuple[str, str]]:
    """Return the tables that no link carries, or only in part, though it could, each with the statement that helps."""
    rows = connection.execute(text(_SPOCK_LEFT_OUT if has_spock(connection) else _NATIVE_LEFT_OUT))
    return [(f"{schema}.{table}", mend) for schema, table, mend in rows if schema not in Topology.system_schemas]


def mark_version_as_local(connection: Connection) -> None:
    """Keep what this session writes to Alembic's table from being replicated, as `mark_as_local` does for all.

    A node whose entry was written there would count a conflict for one that comes from another node.
    """
    connection.execute(text(_CREATE_ORIGIN))

    @event.listens_for(connection, "before_cursor_execute")
    def set_origin(_connection: Connection, cursor: Any, statement: str, *_rest: Any) -> None:
        if _WRITES_VERSION.match(statement):
            cursor.connection.execute(_SET_ORIGIN)

    @event.listens_for(connection, "after_cursor_execute")
    def reset_origin(_connection: Connection, cursor: Any, statement: str, *_rest: Any) -> None:
        if _WRITES_VERSION.match(statement):
            cursor.connection.execute(_RESET_ORIGIN)


def _position(connection: Connection) -> str:
    # Every commit that returned is flushed; WAL beyond that may stay unflushed, and so unsent, for a while.
    position = "spock.sync_event()" if has_spock(connection) else "pg_current_wal_flush_lsn()"
    return str(connection.scalar(text(f"SELECT {position}")))


_CREATE_ORIGIN = "SELECT pg_replication_origin_create('migrate') WHERE pg_replication_origin_oid('migrate') IS NULL"

_SET_ORIGIN = "SELECT pg_replication_origin_session_setup('migrate')"

_RESET_ORIGIN = "SELECT pg_replication_origin_session_reset()"

_WRITES_VERSION = re.compile(r"(INSERT INTO|UPDATE|DELETE FROM) alembic_version\b")

_REVOKE = """
    SELECT DISTINCT format('REVOKE ALL ON ALL TABLES IN SCHEMA %I FROM %I', nspname, pg_get_userbyid(grantee))
    FROM pg_namespace AS n JOIN pg_class ON relnamespace = n.oid CROSS JOIN aclexplode(relacl)
    WHERE nspname = ANY(:schemas) AND grantee <> relowner AND grantee <> 0
"""

# By the name that their Database gives them; a lock keeps other runs of `verify` away.
_END_CLIENTS = """
    SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity
    WHERE application_name = 'verify' AND datname = current_database()
      AND (pg_has_role(usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE'))
"""

_DELETE_ROWS = (
    "SELECT format('DELETE FROM %I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = ANY(:schemas)"
)

_SPOCK_LINKS = """
    SELECT provider_node AS origin, slot_name AS slot, status AS state, subscription_name AS name, 0 AS patience,
           now() AS asked
    FROM spock.sub_show_status()
"""

_NATIVE_LINKS = """
    SELECT split_part(s.subname, '_from_', 2) AS origin, subslotname AS slot, s.subname AS name,
           CASE WHEN subenabled THEN 'replicating' ELSE 'disabled' END AS state,
           (SELECT max(pid) FROM pg_stat_subscription AS w WHERE w.subid = s.oid AND w.relid IS NULL) AS pid,
           -- Twice the interval of its reports, and time for a busy machine; 0: it reports nothing.
           (SELECT 2 * seconds + CASE seconds WHEN 0 THEN 0 ELSE 2 END
            FROM CAST(extract(epoch FROM current_setting('wal_receiver_status_interval')::interval) AS int) AS seconds)
           AS patience,
           now() AS asked
    FROM pg_subscription AS s
    WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

# Workers of Spock have no subscription in the view.
_BLOCKERS = """
    SELECT DISTINCT ON (subname) subname AS name, b.pid, b.application_name AS application, b.state,
           round(extract(epoch FROM now() - coalesce(l.waitstart, now()))) AS waits
    FROM pg_stat_activity AS w LEFT JOIN pg_stat_subscription USING (pid)
    CROSS JOIN unnest(pg_blocking_pids(w.pid)) AS blocker (pid)
    JOIN pg_stat_activity AS b ON b.pid = blocker.pid LEFT JOIN pg_locks AS l ON l.pid = w.pid AND NOT l.granted
    WHERE w.backend_type ~ '^(logical replication|spock)' AND w.datname = current_database()
      AND b.backend_type = 'client backend'
    ORDER BY subname, waits DESC
"""

# The reply comes at each wal_receiver_status_interval, and when the sender asks for one; its time is by the receiver's
# clock.
_SLOT = """
    SELECT active, (SELECT extract(epoch FROM CAST(:asked AS timestamptz) - min(reply_time))::float8
                    FROM pg_stat_replication WHERE application_name = :link) AS silence,
           (SELECT extract(epoch FROM replay_lag)::float8 FROM pg_stat_replication WHERE pid = active_pid) AS lag
    FROM pg_replication_slots WHERE slot_name = :slot
"""

# Without spock.save_resolutions only the statistics count conflicts, from the last crash of the server on. Both
# have the conflicts that the probes of `--isolation` provoke in their own schema, and these are subtracted.
_SPOCK_COUNTS = """
    SELECT greatest(recorded, counted), (SELECT count(*) FROM spock.exception_log),
           CASE WHEN counted > recorded THEN 'its last crash, and did not record all of them'
                ELSE coalesce(first::text, 'its creation') END,
           'DELETE FROM spock.resolutions; SELECT spock.reset_channel_stats()'
    FROM (SELECT count - own AS recorded, total - own AS counted, first
          FROM (SELECT count(*) AS own FROM spock.resolutions WHERE starts_with(relname, '_verify_')) AS o
          CROSS JOIN (SELECT coalesce(sum(n_conflict), 0)::bigint AS total FROM spock.channel_summary_stats) AS s
          CROSS JOIN (SELECT count(*), min(log_time) FILTER (WHERE NOT starts_with(relname, '_verify_')) AS first
                      FROM spock.resolutions) AS r) AS c
"""

# The columns for conflicts came one by one with PostgreSQL 18 and 19, so they are summed by name.
_NATIVE_COUNTS = """
    SELECT coalesce(sum(value::bigint), 0)::bigint, 0,
           coalesce(max(date_trunc('second', stats_reset))::text, 'its last crash, or its creation'),
           'SELECT pg_stat_reset_subscription_stats(NULL)'
    FROM pg_stat_subscription_stats AS s, jsonb_each_text(to_jsonb(s)) AS c(name, value)
    -- A row that one node wrote and another one changes later is no conflict, though the server counts it.
    WHERE name LIKE 'confl\\_%' AND name NOT LIKE '%\\_origin\\_differs'
"""

_SUBSCRIPTION = "SELECT oid FROM pg_subscription WHERE subname = :name"

_FAILURE = re.compile(
    r"ERROR: +(?P<error>[^\n]*)\n(?:(?!.*ERROR: )[^\n]*(?:DETAIL: +(?P<detail>(?:(?!.*CONTEXT: )[^\n]*\n)*)))?"
    r"(?:(?!.*ERROR: )[^\n]*\n)*?"
    r'[^\n]*CONTEXT: [^\n]*replication origin "pg_(?P<oid>\d+)"[^\n]*finished at (?P<lsn>[0-9A-F]+/[0-9A-F]+)'
)
"""Entry of a server's log for a change that could not be applied."""

_REFRESH_LINKS = """
    SELECT format('ALTER SUBSCRIPTION %I REFRESH PUBLICATION WITH (copy_data = false)', subname) FROM pg_subscription
"""

_SPOCK_HAS_APPLIED = "CALL spock.wait_for_sync_event(NULL, CAST(:origin AS name), CAST(:position AS pg_lsn), 1)"

_NATIVE_HAVE_APPLIED = "SELECT application_name FROM pg_stat_replication WHERE replay_lsn >= CAST(:position AS pg_lsn)"

_UNREPLICABLE = """
    SELECT relnamespace::regnamespace::text, relname,
           CASE WHEN relpersistence = 'u'
                THEN format('it is UNLOGGED, so none of its rows are replicated: ALTER TABLE %s SET LOGGED',
                            c.oid::regclass)
                WHEN relreplident = 'n' THEN format('its replica identity is NOTHING, so UPDATE and DELETE fail: '
                    'ALTER TABLE %s REPLICA IDENTITY DEFAULT', c.oid::regclass)
                WHEN EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary)
                THEN 'its primary key is DEFERRABLE, so UPDATE and DELETE fail: drop it and add it as NOT DEFERRABLE'
                ELSE 'it has no primary key, so UPDATE and DELETE are not replicated: add one' END
    FROM pg_class AS c
    WHERE relkind IN ('r', 'p') AND relpersistence <> 't'
      AND oid >= 16384  -- the first one that is not the server's own
      AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND classid = 'pg_class'::regclass AND deptype = 'e')
      AND (relpersistence = 'u' OR relreplident = 'n'
           OR NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary AND indimmediate))
    ORDER BY 1, 2
"""

_CHANGED_TABLES = """
    SELECT schemaname, relname FROM pg_stat_xact_user_tables
    WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 AND relname <> 'alembic_version'
"""

_SPOCK_LEFT_OUT = """
    SELECT nspname, relname, format('SELECT spock.repset_add_table(''default'', ''%I.%I'')', nspname, relname)
    FROM spock.tables AS t
    WHERE NOT EXISTS (SELECT FROM spock.tables AS o WHERE o.relid = t.relid AND o.set_name = 'default')
"""

_NATIVE_LEFT_OUT = """
    SELECT relnamespace::regnamespace::text, relname,
           format('ALTER SUBSCRIPTION %I REFRESH PUBLICATION WITH (copy_data = false)', subname)
    FROM pg_class AS c CROSS JOIN pg_subscription AS s
    WHERE relkind = 'r' AND relpersistence = 'p' AND c.oid >= 16384
      AND NOT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubid = s.oid AND srrelid = c.oid AND srsubstate = 'r')
"""
