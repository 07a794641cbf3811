"""Which node is the writer, and what a reader has repeated so far.

A reader is a moment behind, so a read that follows a write may miss it. Therefore COMMIT is followed by one question, how far the
writer's log has come; the answer, a token, stays with whoever wrote (a context variable, so a thread or a task), and a reader
serves the next read only when it has come that far. If it takes too long the writer answers.

    token = current_token()        # at the end of a web request: send it along, as a cookie or a header
    use_token(token)               # at the beginning of the next one, which may be handled by another process
"""

import random
import re
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from .errors import DistributedSQLError, NodeUnavailable, WrongNode
from .routing import Route, Router


@dataclass(frozen=True)
class Token:
    """A position in the writer's log."""

    timeline: int
    """How many promotions lie before it, plus one."""
    lsn: str
    """The place in the log, as PostgreSQL prints it."""

    def __str__(self) -> str:
        return f"{self.timeline}:{self.lsn}"

    @classmethod
    def parse(cls, value: str) -> "Token":
        """Read what `str` wrote.

        Raises:
            ValueError: somebody else wrote it.
        """
        if not (found := _TOKEN.fullmatch(value)):
            raise ValueError("not a token: expected a timeline and a position in the log, as in 1:0/3000148")
        return cls(int(found[1]), found[2])


_TOKEN = re.compile(r"([1-9][0-9]{0,8}):([0-9A-F]{1,8}/[0-9A-F]{1,8})")

UNKNOWN = Token(1, "FFFFFFFF/FFFFFFFF")
"""Of a write that is somewhere in the log: no reader can be trusted to have it."""

_last_write: ContextVar[Token | None] = ContextVar("last_write", default=None)

LOOK = 0.0005
"""Seconds between two looks of a reader at its own progress; repeating a small transaction takes about half of that."""


def current_token() -> str | None:
    """How far a reader must have come to see what was written here, as text; None if nothing was."""
    token = _last_write.get()
    return str(token) if token else None


def use_token(token: str | None) -> None:
    """Let reads here see what was written where `token` came from; None: whatever they find will do.

    Raises:
        ValueError: it is not a token. Cookies can be made up; one that is answers slower, never wrong.
    """
    _last_write.set(Token.parse(token) if token else None)


def remember_write(connection: Connection) -> None:
    """Take the token of what was just committed on `connection`."""
    dbapi_connection: Any = connection.connection.dbapi_connection
    try:
        # Outside a transaction it costs one round trip.
        dbapi_connection.autocommit = True
        try:
            cursor = dbapi_connection.cursor()
            cursor.execute(_POSITION)
            timeline, lsn = cursor.fetchone()
            cursor.close()
        finally:
            dbapi_connection.autocommit = False
        _last_write.set(Token(int(timeline, 16), lsn))
    except connection.dialect.loaded_dbapi.Error:
        # The commit is a fact, only its place is not known; the pool will find out about the connection.
        _last_write.set(UNKNOWN)


# What was committed is written, unless synchronous_commit is off: then it is at least inserted.
_POSITION = """
    SELECT substr(pg_walfile_name(lsn), 1, 8), lsn::text
    FROM (SELECT CASE current_setting('synchronous_commit') WHEN 'off' THEN pg_current_wal_insert_lsn()
                 ELSE pg_current_wal_lsn() END AS lsn) AS position
"""


class ReplicaRouter(Router):
    """Sends writes to the writer and reads to the readers, the writer last.

    Which node is the writer is learned from the nodes themselves: each connection says so, at no round trip.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        *,
        preferred_node: str | None = None,
        cooldown: float = 2.0,
        wait: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(nodes, preferred_node=preferred_node, cooldown=cooldown, clock=clock)
        self._wait = wait
        self._writer = next(iter(nodes), None)
        self._progress: dict[str, tuple[float, float]] = {}
        """Of each reader the moment it was asked, and how many seconds it was behind then."""

    def refusal(self, connection: Connection, node: str, route: Route) -> DistributedSQLError | None:
        """Why `node` cannot do this work, or None; a question to the server only where the answer is not known."""
        if _takes_writes(connection, certainly=not route.readonly):
            self._writer = node
            return None
        if self._writer == node:
            self._writer = None
        if not route.readonly:
            return WrongNode(
                f"{node} is a reader and refuses writes. Leave `node` away, and the writer is found", node=node
            )
        return self._behind(connection, node, route)

    def _order(self, route: Route) -> list[str]:
        writer = [node for node in self._nodes if node == self._writer]
        readers = [node for node in self._nodes if node != self._writer]
        if not route.readonly:
            return [*writer, *readers]
        if route.key is not None or self._preferred_node in readers:
            readers.sort(key=self._affinity(route))
        else:
            random.shuffle(readers)
        return [*readers, *writer]

    def _behind(self, connection: Connection, node: str, route: Route) -> DistributedSQLError | None:
        token = _last_write.get()
        if token is None and self._is_fresh(node, route.max_lag):
            return None
        if token is not UNKNOWN:
            asked = self._clock()
            arrived, lag = _ask_progress(connection, token, self._wait)
            if lag is not None:
                self._progress[node] = asked, lag
            if arrived and self._is_fresh(node, route.max_lag):
                return None
        return NodeUnavailable(f"{node} has not repeated enough of the writer's log", node=node)

    def _is_fresh(self, node: str, max_lag: float | None) -> bool:
        """Whether a reader is certainly no more than `max_lag` behind: since it was asked it fell back by the time gone at most."""
        if max_lag is None:
            return True
        asked, lag = self._progress.get(node, (0.0, float("inf")))
        return lag + self._clock() - asked <= max_lag


def _takes_writes(connection: Connection, *, certainly: bool) -> bool:
    driver_connection: Any = connection.connection.driver_connection
    # Reported by the server at login and whenever it changes (PostgreSQL 14). Who writes does so until it is restarted; who does
    # not may have been promoted while the connection was idle.
    reported = driver_connection.info.parameter_status("in_hot_standby")
    if reported == "off" or (reported == "on" and not certainly):
        return bool(reported == "off")
    answer = connection.scalar(text("SELECT NOT pg_is_in_recovery()"))
    connection.rollback()
    return answer is True


def _ask_progress(connection: Connection, token: Token | None, wait: float) -> tuple[bool, float | None]:
    """Whether a reader has come as far as `token` within `wait` seconds, and how many seconds it is behind; None: nobody knows."""
    arguments = {
        "lsn": token.lsn if token else "0/0",
        "timeline": token.timeline if token else 0,
        "looks": round(wait / LOOK),
        "pause": LOOK,
    }
    try:
        arrived, lag = connection.execute(_PROGRESS, arguments).one()
    except DBAPIError:
        return False, None
    finally:
        connection.rollback()
    return arrived is True, None if lag is None else float(lag)


# The reader waits by itself: one round trip. A receiver that follows an earlier writer may be ahead in a history that is void.
_PROGRESS = text("""
    SELECT EXISTS (
               SELECT FROM generate_series(0, :looks)
               WHERE pg_last_wal_replay_lsn() >= CAST(:lsn AS pg_lsn) OR pg_sleep(:pause) IS NULL
           ) AND EXISTS (
               SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming' AND received_tli >= :timeline
           ),
           CASE WHEN NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming') THEN NULL
                WHEN pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() THEN 0
                ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())
           END
""")
