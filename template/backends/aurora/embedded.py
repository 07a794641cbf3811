"""How three plain PostgreSQL servers become a writer and two readers.

The readers are copies of the writer that repeat its log. Whether a server is one of them is written in its data directory
(`standby.signal`), and a promotion deletes that. So a server that says it is a writer while a later one exists is a former
writer: it is rewound and follows the new one before it takes a single write.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence

import psycopg
from psycopg import sql

from . import ClusterError
from .nodes import DATABASE, NODES, Node, find_node
from .processes import Processes, State
from .server import Server

STREAMING_TIMEOUT = 20.0
"""Seconds that the readers get to follow the writer; they need 0.3."""

QUORUM = "ANY 1 (n1, n2, n3)"
"""A commit is answered when one more node has it. Aurora's storage does the same in its own way."""


class Embedded(Processes):
    """The writer and its readers as processes of this machine."""

    kind = "embedded"

    def _settings(self, node: Node) -> Mapping[str, object]:
        return {
            # Whoever is the writer is found by asking; so a reader needs no new settings at a failover.
            "primary_conninfo": "service=writer",
            "synchronous_standby_names": os.environ.get("SYNCHRONOUS_STANDBY_NAMES", QUORUM),
            "wal_level": "replica",
            # Without slots: enough for a reader that is away for a while.
            "wal_keep_size": "256MB",
            "max_wal_size": "512MB",
            # The default of 5 s is how long a reader waits before it looks for the new writer.
            "wal_retrieve_retry_interval": "200ms",
            "hot_standby_feedback": "on",
            # pg_rewind needs both.
            "full_page_writes": "on",
            "wal_log_hints": "on",
            # A writer that is cut off says nothing, for 60 s by default.
            "wal_receiver_timeout": "5s",
        }

    def _services(self, state: State) -> str:
        ports = ",".join(str(port) for port in state.ports.values())
        hosts = ",".join("127.0.0.1" for _ in state.ports)
        return super()._services(state) + (
            f"[writer]\nhost={hosts}\nport={ports}\ntarget_session_attrs=read-write\nconnect_timeout=2\n"
            f"dbname={DATABASE}\n{self._login(state)}\n"
        )

    def _prepare(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        # Whether a reader follows the writer is shown to no one else.
        connection.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(DATABASE)))

    def _clone(self, first: Server, others: Sequence[Server]) -> None:
        super()._clone(first, others)
        for server in others:
            _make_reader(server)

    def _wire(self, nodes: Mapping[str, str]) -> None:
        deadline = time.monotonic() + STREAMING_TIMEOUT
        writer = next(dsn for dsn in nodes.values() if not _ask(dsn, "SELECT pg_is_in_recovery()"))
        while _ask(writer, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") != len(nodes) - 1:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the readers do not follow the writer after {STREAMING_TIMEOUT:.0f} s; see their logs in {self._data}"
                )
            time.sleep(0.01)

    def _start(self, state: State, nodes: Sequence[Node]) -> None:
        former = self._former_writers(state)
        writer = self._writer(state)
        returning = [
            node
            for node in nodes
            if node in former or (writer and _has_strayed(self._server(state, node), self._server(state, writer)))
        ]
        super()._start(state, [node for node in nodes if node not in returning])
        for node in returning:
            self._rejoin(state, node)
        super()._start(state, returning)

    def rejoin_node(self, name: str) -> None:
        """Let one node follow the present writer, whatever it was before: what only it has written is lost."""
        with self._locked():
            state, node = self._existing(), find_node(name)
            self._stop(state, [node], signal.SIGINT)
            self._rejoin(state, node)
            super()._start(state, [node])
            self._publish()

    def _role(self, state: State, node: Node) -> str:
        if _is_reader(self._server(state, node)):
            return "reader"
        return "former writer" if node in self._former_writers(state) else "writer"

    def _former_writers(self, state: State) -> list[Node]:
        """The nodes that were the writer until another one was promoted."""
        claims = self._claims(state)
        newest = max(claims.values(), default=0)
        return [node for node, timeline in claims.items() if timeline < newest]

    def _writer(self, state: State, *, but: Node | None = None) -> Node | None:
        """The node that was promoted last, running or not, if need be but for one; None before the first one is made."""
        claims = {node: timeline for node, timeline in self._claims(state).items() if node != but}
        return max(claims, key=lambda node: claims[node]) if claims else None

    def _claims(self, state: State) -> dict[Node, int]:
        """The nodes whose data say that they are the writer, with their timelines."""
        return {
            node: _timeline(server)
            for node in NODES
            if (server := self._server(state, node)).data.exists() and not _is_reader(server)
        }

    def _rejoin(self, state: State, node: Node) -> None:
        """Make a reader of a stopped node that may have what the writer never had: take that back, and follow.

        Raises:
            ClusterError: there is no writer to follow.
        """
        server, writer = self._server(state, node), self._writer(state, but=node)
        if writer is None:
            raise ClusterError(f"There is no other node that takes writes, so {node.name} has nobody to follow.")
        try:
            server.tool("pg_rewind", "--target-pgdata", str(server.data), "--source-server", "service=writer")
        except ClusterError:
            # What it would take to go back is gone, or never was.
            server.replace_by(
                lambda fresh: server.tool(
                    *("pg_basebackup", "--pgdata", str(fresh)), *("--dbname", "service=writer", "--checkpoint", "fast")
                )
            )
        _make_reader(server)
        # It answers once it has repeated one more record, for which an idle writer can take 15 s.
        _ask(self._dsn(state, writer), "SELECT pg_log_standby_snapshot()::text")


def _is_reader(server: Server) -> bool:
    return (server.data / "standby.signal").exists()


def _make_reader(server: Server) -> None:
    mark = server.data / "standby.signal"
    mark.touch(mode=0o600)
    server.give(mark)


def _timeline(server: Server) -> int:
    """How many promotions lie behind a server, plus one: each leaves a file named by the timeline it began."""
    return max((int(path.stem, 16) for path in (server.data / "pg_wal").glob("*.history")), default=1)


def _has_strayed(reader: Server, writer: Server) -> bool:
    """Whether a stopped reader has what the writer never had: it had received more when the writer was promoted.

    PostgreSQL can miss this itself when it starts after a crash, and follow with rows that exist nowhere else.
    """
    if not reader.data.exists() or reader.data == writer.data:
        return False
    history = writer.data / "pg_wal" / f"{_timeline(writer):08X}.history"
    # Lists each earlier timeline and where it was left; there is none before the first promotion.
    lines = history.read_text().splitlines() if history.exists() else []
    return any(_went_past(reader, *line.split()[:2]) for line in lines if line.strip() and not line.startswith("#"))


def _went_past(reader: Server, timeline: str, position: str) -> bool:
    """Whether a reader's recovery starts after a position in the log, or has a record to repeat there."""
    control = dict(
        line.split(":", 1) for line in reader.tool("pg_controldata", "-D", str(reader.data)).splitlines() if ":" in line
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
        reader.tool(
            *("pg_waldump", "--path", str(segment.parent), "--timeline", timeline),
            *("--start", position, "--limit", "1", "--quiet"),
        )
    except ClusterError:
        return False
    return True


def _bytes(position: str) -> int:
    high, low = position.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def _ask(dsn: str, query: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None
