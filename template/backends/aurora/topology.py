"""The writer and its readers as the operations see them: their roles, their links, and how to wait for a reader."""

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, text
from typer import Typer

from .base import BaseTopology, Link, TopologyError


class Topology(BaseTopology):
    """One writer, whose changes the readers replay."""

    unlogged_tables = "no reader has its rows, and a failover empties it"
    followers = "replayed by {}"
    refused = (
        (r"ALTER SYSTEM\b", "settings belong to one server"),
        (r"CREATE UNLOGGED |ALTER TABLE .*SET UNLOGGED\b", "readers do not get the rows of an UNLOGGED table"),
    )

    def writers(self) -> list[str]:
        """Return the nodes that take writes: one, if all is well."""
        in_recovery = text("SELECT pg_is_in_recovery()")
        return [node for node, connection in self.connections.items() if not connection.scalar(in_recovery)]

    def writer(self) -> str:
        """Return the one node that takes writes; raise TopologyError if there is none, or more than one."""
        found = self.writers()
        if not found:
            readers = " and ".join(self.connections)
            raise TopologyError(f"no node takes writes: {readers} are readers. Promote one with `failover`")
        if len(found) > 1:
            raise TopologyError(
                f"{' and '.join(found)} both take writes, and their timelines diverge. Decide which one is right, stop "
                "the other, and bring it back with `rejoin`: what only the other has is lost"
            )
        return found[0]

    def ddl_nodes(self) -> list[str]:
        """Return the writer, whose changes the readers replay."""
        return [self.writer()]

    def receivers(self, node: str) -> list[str]:
        """Return every node."""
        return list(self.connections)

    def links(self) -> list[Link]:
        """Return the link of every reader to the writer, with its state."""
        writer = self.writer()
        # The first eight digits of a WAL file's name.
        timeline = text("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)")
        present = int(self.connections[writer].scalar(timeline) or "0", 16)
        sent = {row.name: row for row in self.connections[writer].execute(text(_SENT))}
        return [
            _link(writer, reader, connection, sent, present)
            for reader, connection in self.connections.items()
            if reader != writer
        ]

    def wait_for_catchup(self, *, timeout: float = 30.0) -> None:
        """Wait until everything committed before the call is visible on every node."""
        next_check = time.monotonic() + min(timeout, 0.5)
        deadline = time.monotonic() + timeout
        writer = self.writer()
        # A new transaction comes after all others, so a snapshot that has it has them. Aurora's readers, which receive
        # no WAL, can answer this too.
        last = self.connections[writer].scalar(text("SELECT pg_current_xact_id()::text"))
        waiting = [reader for reader in self.connections if reader != writer]
        seen = text("SELECT pg_visible_in_snapshot(CAST(:last AS xid8), pg_current_snapshot())")
        while waiting := [node for node in waiting if not self.connections[node].scalar(seen, {"last": last})]:
            now = time.monotonic()
            if now > next_check:
                next_check = now + 0.5
                late = [link for link in self.links() if link.receiver in waiting]
                if now > deadline or any(link.is_lost for link in late):
                    raise TopologyError("not replayed: " + ", ".join(map(str, late)))
            # Replaying a small transaction takes about a quarter of that.
            time.sleep(0.001)

    def wait_for_ddl(self) -> None:
        """Wait until every reader has replayed the schema changes made so far."""
        self.wait_for_catchup()

    @staticmethod
    def register_commands(app: Typer) -> None:
        """Add the commands that compare rows and that change which node is the writer."""
        from .commands import failover, rejoin
        from .diff import diff

        for command in (diff, failover, rejoin):
            app.command()(command)


def is_aurora(connection: Connection) -> bool:
    """Return whether the readers share the writer's storage instead of receiving its WAL."""
    return connection.scalar(text("SELECT to_regprocedure('aurora_version()') IS NOT NULL")) is True


def _link(writer: str, reader: str, connection: Connection, sent: Mapping[str, Row[Any]], timeline: int) -> Link:
    """Return a reader's link, judged from both ends: one that follows another node looks well from its own end."""
    found = connection.execute(text(_RECEIVED)).one()
    # Both ends may call a reader on an old timeline streaming, again and again for a moment.
    # A WAL receiver introduces itself by its server's cluster_name, if that is set.
    there = sent.get(found.name or "walreceiver")
    is_behind = found.timeline is not None and found.timeline < timeline
    advice = ""
    if found.paused:
        state = "paused: its replay was stopped by hand"
        advice = f"on {reader}: SELECT pg_wal_replay_resume()"
    elif is_behind:
        state = f"left behind on timeline {found.timeline} of {timeline}: it is ahead of where the writer was promoted"
    elif found.status != "streaming":
        state = found.status or "not streaming"
    else:
        state = there.state if there else "follows another node"
    is_lost, lag = found.paused or is_behind, there.lag if there else None
    return Link(writer, reader, state, is_up=state == "streaming", is_lost=is_lost, advice=advice, lag=lag)


_SENT = """
    SELECT application_name AS name, state, extract(epoch FROM replay_lag)::float8 AS lag FROM pg_stat_replication
"""

_RECEIVED = """
    SELECT current_setting('cluster_name') AS name,
           pg_get_wal_replay_pause_state() <> 'not paused' AS paused,
           (SELECT status FROM pg_stat_wal_receiver) AS status,
           (SELECT received_tli FROM pg_stat_wal_receiver) AS timeline
"""
