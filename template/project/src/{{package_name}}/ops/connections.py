"""Connections of the operations: one per node, outside transactions, each with time limits.

They are not the application's: no pool, no routing, no retry, and a role that may do more.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from sqlalchemy import Connection, Engine, NullPool, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

CONNECT_TIMEOUT = 3
"""Seconds until a node counts as unreachable."""


class Unreachable(Exception):
    """A node does not take the connection; the message names it and says why."""

    def __init__(self, node: str, error: DBAPIError) -> None:
        self.node = node
        reason = str(error.orig).partition("\n")[0].removeprefix("connection failed: ")
        super().__init__(f"{node} cannot be reached: {reason}")


def engine_for(url: URL, *, statement_timeout: float = 10.0, lock_timeout: float = 5.0) -> Engine:
    """An engine without a pool. Timeouts in seconds; 0 means never."""
    return create_engine(
        url,
        poolclass=NullPool,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT,
            "application_name": "operations",
            "options": f"-c statement_timeout={round(statement_timeout * 1000)} -c lock_timeout={round(lock_timeout * 1000)}",
            "tcp_user_timeout": 10_000,
        },
    )


@contextmanager
def connect(url: URL, *, node: str, statement_timeout: float = 10.0) -> Iterator[Connection]:
    """One connection, in autocommit.

    Raises:
        Unreachable: the node does not take it.
    """
    engine = engine_for(url, statement_timeout=statement_timeout).execution_options(isolation_level="AUTOCOMMIT")
    try:
        connection = engine.connect()
    except DBAPIError as error:
        raise Unreachable(node, error) from None
    with connection:
        yield connection


@contextmanager
def connect_all(urls: Mapping[str, URL], *, statement_timeout: float = 10.0) -> Iterator[dict[str, Connection]]:
    """A connection to every node, as `connect`."""
    connections: dict[str, Connection] = {}
    with ExitStack() as stack:
        for node, url in urls.items():
            connections[node] = stack.enter_context(connect(url, node=node, statement_timeout=statement_timeout))
        yield connections
