"""Find the writer, and keep a read from missing a write that came before it.

A reader replays the writer's WAL with a delay. Therefore every COMMIT is followed by a query for the current WAL
position. The result, a token, is stored in a context variable of the thread or task that wrote, and its next reads go
to a reader that has replayed that position. If no reader reaches it in time, the writer serves the read.

    token = current_token()        # after a write: send it along, as with a message to another process
    use_token(token)               # there, before it reads

Web requests take their token from a cookie and give it back in one: see `asgi.py`.
"""

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from .errors import DistributedSQLError, NodeUnavailable, WrongNode
from .routing import Route, Router


@dataclass(frozen=True)
class Token:
    """A position in the WAL of the writer."""

    timeline: int
    """Timeline of the writer; each promotion begins the next one."""
    lsn: str
    """Log sequence number, as PostgreSQL prints it."""

    def __str__(self) -> str:
        return f"{self.timeline}:{self.lsn}"

    @classmethod
    def parse(cls, value: str) -> "Token":
        """Return the token that `str` wrote.

        Raises:
            ValueError: malformed token.
        """
        if not (found := _TOKEN.fullmatch(value)):
            raise ValueError("malformed token: expected a timeline and a WAL position, as in 1:0/3000148")
        return cls(int(found[1]), found[2])


_TOKEN = re.compile(r"([1-9][0-9]{0,8}):([0-9A-F]{1,8}/[0-9A-F]{1,8})")

UNKNOWN_TOKEN = Token(1, "FFFFFFFF/FFFFFFFF")
"""Token of a write at an unknown position: only the writer is certain to have it."""

_last_write: ContextVar[Token | None] = ContextVar("last_write", default=None)


class RequestTokens:
    """Tokens of one web request, shared by its tasks and threads: a context variable set in one of them stays there."""

    def __init__(self, given: Token | None) -> None:
        """Begin a request, with the token that came with it."""
        self.given = given
        self.written: Token | None = None
        self._lock = Lock()

    def add(self, token: Token) -> None:
        """Keep the token of a write if it is the newest."""
        with self._lock:
            self.written = _newest(self.written, token)


_request: ContextVar[RequestTokens | None] = ContextVar("request", default=None)


@contextmanager
def request_tokens(given: Token | None) -> Iterator[RequestTokens]:
    """Keep one set of tokens for all tasks and threads that are started in this block, not one for each context."""
    tokens = RequestTokens(given)
    before = _request.set(tokens)
    try:
        yield tokens
    finally:
        _request.reset(before)


def _newest(*tokens: Token | None) -> Token | None:
    def position(token: Token) -> tuple[bool, int, list[int]]:
        return token == UNKNOWN_TOKEN, token.timeline, [int(part, 16) for part in token.lsn.split("/")]

    return max(filter(None, tokens), key=position, default=None)


def _token() -> Token | None:
    request = _request.get()
    return _newest(request.given, request.written) if request else _last_write.get()


def _remember(token: Token) -> None:
    if request := _request.get():
        request.add(token)
    else:
        _last_write.set(token)


POLL_INTERVAL = 0.0005
"""Seconds between two samples of a reader's replay position; replaying a small transaction takes about half of that."""


def current_token() -> str | None:
    """Return the token of the last write in this context, as text; None if nothing was written."""
    token = _token()
    return str(token) if token else None


def use_token(token: str | None) -> None:
    """Let reads in this context see the write that a token stands for.

    Args:
        token: result of `current_token`, perhaps in another process; None or empty: reads wait for nothing.

    Raises:
        ValueError: malformed token. A forged token can only delay a read, never return stale data.
    """
    parsed = Token.parse(token) if token else None
    if request := _request.get():
        request.given = parsed
    else:
        _last_write.set(parsed)


def remember_write(connection: Connection) -> None:
    """Store the token of the transaction that was just committed on `connection`."""
    dbapi_connection: Any = connection.connection.dbapi_connection
    try:
        # Outside a transaction the query costs one round trip.
        dbapi_connection.autocommit = True
        try:
            cursor = dbapi_connection.cursor()
            cursor.execute(_POSITION)
            timeline, lsn = cursor.fetchone()
            cursor.close()
        finally:
            dbapi_connection.autocommit = False
        _remember(Token(int(timeline, 16), lsn))
    except connection.dialect.loaded_dbapi.Error:
        # The transaction is committed, whatever became of the connection.
        connection.invalidate()
        _remember(UNKNOWN_TOKEN)


# A commit is written before it is acknowledged, except with synchronous_commit = off: then it is only inserted.
_POSITION = """
    SELECT substr(pg_walfile_name(lsn), 1, 8), lsn::text
    FROM (SELECT CASE current_setting('synchronous_commit') WHEN 'off' THEN pg_current_wal_insert_lsn()
                 ELSE pg_current_wal_lsn() END AS lsn) AS position
"""


class ReplicaRouter(Router):
    """Send writes to the writer and reads to the readers, the writer last.

    The router learns from each connection whether its server is the writer, at no round trip.
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
        """Start with the first node as the presumed writer.

        Args:
            nodes: names of the nodes.
            preferred_node: reader to try first; None: any reader.
            cooldown: seconds for which a node stays marked down.
            wait: seconds that a reader gets to replay the last write of the context.
            clock: source of monotonic time in seconds.
        """
        super().__init__(nodes, preferred_node=preferred_node, cooldown=cooldown, clock=clock)
        self._wait = wait
        self._writer = next(iter(nodes), None)
        self._progress: dict[str, tuple[float, float]] = {}
        """Time of the last measurement of each reader's lag, and that lag; both in seconds."""

    def refusal(
        self, connection: Connection, node: str, *, readonly: bool, max_lag: float | None
    ) -> DistributedSQLError | None:
        """Return the reason why `node` cannot do this work, or None; query the server only where that is not known.

        Args:
            connection: an open connection to the node.
            node: its name.
            readonly: the work only reads.
            max_lag: seconds that a reader may be behind; None: any number.
        """
        if _takes_writes(connection, verify=not readonly):
            self._writer = node
            return None
        if self._writer == node:
            self._writer = None
        if not readonly:
            return WrongNode(
                f"{node} is a reader and refuses writes: leave out node=…, so that the router finds the writer",
                node=node,
            )
        return self._behind(connection, node, max_lag)

    def _order(self, route: Route) -> list[str]:
        writer = [node for node in self.nodes if node == self._writer]
        readers = [node for node in self.nodes if node != self._writer]
        if not route.readonly:
            return [*writer, *readers]
        if route.key is not None or self.preferred_node in readers:
            readers.sort(key=self._affinity(route))
        else:
            random.shuffle(readers)
        return [*readers, *writer]

    def _behind(self, connection: Connection, node: str, max_lag: float | None) -> DistributedSQLError | None:
        token = _token()
        if token is None and self._is_fresh(node, max_lag):
            return None
        if token != UNKNOWN_TOKEN:
            asked = self.clock()
            arrived, lag = _measure_replay(connection, token, self._wait)
            if lag is not None:
                self._progress[node] = asked, lag
            if arrived and self._is_fresh(node, max_lag):
                return None
        return NodeUnavailable(f"{node} has not replayed enough of the writer's WAL", node=node)

    def _is_fresh(self, node: str, max_lag: float | None) -> bool:
        """Return True if a reader is certainly at most `max_lag` seconds behind.

        Since the last measurement its lag grew by at most the time that has passed.
        """
        if max_lag is None:
            return True
        asked, lag = self._progress.get(node, (0.0, float("inf")))
        return lag + self.clock() - asked <= max_lag


def _takes_writes(connection: Connection, *, verify: bool) -> bool:
    """Return True if a server is the writer; `verify` queries a server that reported at login that it is not."""
    driver_connection: Any = connection.connection.driver_connection
    # PostgreSQL 14 and newer report this at login and whenever it changes. A writer stays one until it is restarted; a
    # reader may have been promoted while the connection was idle.
    reported = driver_connection.info.parameter_status("in_hot_standby")
    if reported == "off" or (reported == "on" and not verify):
        return bool(reported == "off")
    answer = connection.scalar(text("SELECT NOT pg_is_in_recovery()"))
    connection.rollback()
    return answer is True


def _measure_replay(connection: Connection, token: Token | None, wait: float) -> tuple[bool, float | None]:
    """Wait until a reader has replayed up to `token`, at most `wait` seconds.

    Returns:
        True if the reader has, and its lag in seconds; None if the lag is unknown.
    """
    arguments = {
        "lsn": token.lsn if token else "0/0",
        "timeline": token.timeline if token else 0,
        "samples": round(wait / POLL_INTERVAL),
        "interval": POLL_INTERVAL,
    }
    try:
        arrived, lag = connection.execute(_REPLAY, arguments).one()
    except DBAPIError:
        return False, None
    finally:
        connection.rollback()
    return arrived is True, None if lag is None else float(lag)


# The server does the waiting, so that it costs one round trip. A standby that still follows a former writer may have a
# higher position on a diverged timeline.
_REPLAY = text("""
    SELECT EXISTS (
               SELECT FROM generate_series(0, :samples)
               WHERE pg_last_wal_replay_lsn() >= CAST(:lsn AS pg_lsn) OR pg_sleep(:interval) IS NULL
           ) AND EXISTS (
               SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming' AND received_tli >= :timeline
           ),
           CASE WHEN NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming') THEN NULL
                WHEN pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() THEN 0
                ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())
           END
""")
