"""Three plain PostgreSQL servers as a writer and two streaming replicas.

The data directory of a reader holds `standby.signal`, which a promotion deletes. A server without that file is a former
writer if another such server has a later timeline: it is rewound and follows the new writer before it takes writes.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence

import psycopg
from psycopg import sql

from . import ClusterError, write_private
from .nodes import DATABASE, NODES, Node, find_node
from .process_cluster import ClusterState, ProcessCluster
from .server import Server

STREAMING_TIMEOUT = 20.0
"""Seconds until all readers must follow the writer; they need 0.3."""

QUORUM = "ANY 1 (n1, n2, n3)"
"""Nodes that a commit waits for: one more node, as Aurora waits for a quorum of its storage."""


class Embedded(ProcessCluster):
    """The writer and its readers as processes of this machine."""

    def _settings(self, node: Node) -> Mapping[str, object]:
        return {
            # The service leads to the present writer, so a reader needs no new settings after a failover.
            "primary_conninfo": "service=writer",
            "synchronous_standby_names": os.environ.get("SYNCHRONOUS_STANDBY_NAMES", QUORUM),
            "wal_level": "replica",
            # Enough, without replication slots, for a reader that is down for a while.
            "wal_keep_size": "256MB",
            "max_wal_size": "512MB",
            # Delay before a reader looks for the new writer; the default is 5 s.
            "wal_retrieve_retry_interval": "200ms",
            "hot_standby_feedback": "on",
            # pg_rewind needs both.
            "full_page_writes": "on",
            "wal_log_hints": "on",
            # Time until a reader notices a writer that is cut off; the default is 60 s.
            "wal_receiver_timeout": "5s",
        }

    def _services(self, state: ClusterState) -> str:
        ports = ",".join(str(port) for port in state.ports.values())
        hosts = ",".join("127.0.0.1" for _ in state.ports)
        return super()._services(state) + (
            f"[writer]\nhost={hosts}\nport={ports}\ntarget_session_attrs=read-write\nconnect_timeout=2\n"
            f"dbname={DATABASE}\n{self._login(state)}\n"
        )

    def _prepare(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        # Other roles do not see whether a reader follows the writer.
        connection.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(DATABASE)))

    def _create(self, state: ClusterState) -> None:
        super()._create(state)
        for node in NODES[1:]:
            _make_reader(self._server(state, node))

    def _wire(self, nodes: Mapping[str, str]) -> None:
        deadline = time.monotonic() + STREAMING_TIMEOUT
        writer = next(dsn for dsn in nodes.values() if not _query(dsn, "SELECT pg_is_in_recovery()"))
        while _query(writer, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") != len(nodes) - 1:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the readers do not follow the writer after {STREAMING_TIMEOUT} s; see their logs in {self._data}"
                )
            time.sleep(0.01)

    def _start(self, state: ClusterState, nodes: Sequence[Node]) -> None:
        former, writer = self._former_writers(state), self._writer(state)
        diverged = [
            node
            for node in nodes
            if node in former or (writer and _is_ahead(self._server(state, node), self._server(state, writer)))
        ]
        super()._start(state, [node for node in nodes if node not in diverged])
        for node in diverged:
            self._rewind(state, node)
        super()._start(state, diverged)

    def rejoin_node(self, name: str) -> None:
        """Make one node a reader of the present writer; the writes that only this node has are lost."""
        with self._locked():
            state, node = self._existing(), find_node(name)
            self._stop(state, [node], signal.SIGINT)
            self._rewind(state, node)
            super()._start(state, [node])
            self._write_env()

    def _role(self, state: ClusterState, node: Node) -> str:
        if _is_reader(self._server(state, node)):
            return "reader"
        return "former writer" if node in self._former_writers(state) else "writer"

    def _timelines(self, state: ClusterState) -> dict[Node, int]:
        """Return the timeline of each node whose data is that of a writer, present or former."""
        return {
            node: _timeline(server)
            for node in NODES
            if (server := self._server(state, node)).data.exists() and not _is_reader(server)
        }

    def _writer(self, state: ClusterState, *, but: Node | None = None) -> Node | None:
        """Return the node that was promoted last, running or not, without regard to `but`; None if there is none."""
        timelines = {node: timeline for node, timeline in self._timelines(state).items() if node != but}
        return max(timelines, key=lambda node: timelines[node], default=None)

    def _former_writers(self, state: ClusterState) -> list[Node]:
        """Return the nodes that were the writer until another node was promoted."""
        timelines = self._timelines(state)
        return [node for node, timeline in timelines.items() if timeline < max(timelines.values())]

    def _rewind(self, state: ClusterState, node: Node) -> None:
        """Make a stopped node a reader: undo the writes that the present writer never had, or copy the writer.

        Raises:
            ClusterError: there is no writer to follow.
        """
        server, writer = self._server(state, node), self._writer(state, but=node)
        if writer is None:
            raise ClusterError(f"There is no other node that takes writes, so {node.name} has nobody to follow.")
        try:
            server.run("pg_rewind", "--target-pgdata", str(server.data), "--source-server", "service=writer")
        except ClusterError:
            # The WAL that pg_rewind needs is gone, or the data directories are unrelated.
            server.replace_data(
                lambda fresh: server.run(
                    *("pg_basebackup", "--pgdata", str(fresh)), *("--dbname", "service=writer", "--checkpoint", "fast")
                )
            )
        _make_reader(server)
        # The reader accepts connections when it has replayed one more record; an idle writer may write none for 15 s.
        _query(self._dsn(state, writer), "SELECT pg_log_standby_snapshot()::text")


def _is_reader(server: Server) -> bool:
    return (server.data / "standby.signal").exists()


def _make_reader(server: Server) -> None:
    write_private(server.data / "standby.signal", "", owner=server.user)


def _timeline(server: Server) -> int:
    """Return the timeline of a server: each promotion begins one and writes a file named after it."""
    return max((int(path.stem, 16) for path in (server.data / "pg_wal").glob("*.history")), default=1)


def _is_ahead(reader: Server, writer: Server) -> bool:
    """Return whether a stopped reader has WAL that the writer did not have when it was promoted.

    PostgreSQL can miss this when it starts after a crash, and then follow with rows that exist on no other node.
    """
    if not reader.data.exists() or reader.data == writer.data:
        return False
    history = writer.data / "pg_wal" / f"{_timeline(writer):08X}.history"
    # The file lists each earlier timeline and the position of its end; before the first promotion there is no file.
    lines = history.read_text().splitlines() if history.exists() else []
    return any(_went_past(reader, *line.split()[:2]) for line in lines if line.strip() and not line.startswith("#"))


def _went_past(reader: Server, timeline: str, position: str) -> bool:
    """Return whether a reader starts its recovery after a WAL position, or has a record to replay there."""
    control = dict(
        line.split(":", 1) for line in reader.run("pg_controldata", "-D", str(reader.data)).splitlines() if ":" in line
    )
    redo = control["Latest checkpoint's REDO location"].strip()
    if control["Latest checkpoint's TimeLineID"].strip() == timeline and _bytes(redo) > _bytes(position):
        return True
    size = int(control["Bytes per WAL segment"])
    number = _bytes(position) // size
    per_log = 2**32 // size
    segment = reader.data / "pg_wal" / f"{int(timeline):08X}{number // per_log:08X}{number % per_log:08X}"
    if not segment.exists():
        return False
    try:
        reader.run(
            *("pg_waldump", "--path", str(segment.parent), "--timeline", timeline),
            *("--start", position, "--limit", "1", "--quiet"),
        )
    except ClusterError:
        return False
    return True


def _bytes(position: str) -> int:
    high, low = position.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def _query(dsn: str, query: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None
