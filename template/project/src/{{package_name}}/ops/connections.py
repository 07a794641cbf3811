"""Connections of the operations: one per node, outside transactions, each with time limits.

Unlike the application's they have no pool, no routing and no retry, and their role may do more.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache

from sqlalchemy import Connection, Engine, NullPool, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ..db import WrongNode
from ..db.backend import Backend

CONNECT_TIMEOUT = 3
"""Seconds until a node counts as unreachable."""


class Unreachable(Exception):
    """A node refuses the connection; the message names the node and the cause."""

    def __init__(self, node: str, error: DBAPIError | WrongNode) -> None:
        self.node = node
        reason = str(getattr(error, "orig", error)).partition("\n")[0].removeprefix("connection failed: ")
        super().__init__(f"{node} cannot be reached: {reason}")


@lru_cache(maxsize=64)
def engine_for(url: URL, *, statement_timeout: float = 10.0, lock_timeout: float = 5.0) -> Engine:
    """Return an engine without a pool. Timeouts are in seconds; 0 means no limit.

    It is kept, because the queries that SQLAlchemy sends on an engine's first connection double the time to connect.
    """
    limits = {"statement_timeout": statement_timeout, "lock_timeout": lock_timeout}
    engine = create_engine(
        url,
        poolclass=NullPool,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT,
            "application_name": "operations",
            "options": " ".join(f"-c {name}={round(seconds * 1000)}" for name, seconds in limits.items()),
            "tcp_user_timeout": 10_000,
        },
    )
    Backend().configure_engine(engine, f"{url.host}:{url.port}", statement_timeout=statement_timeout)
    return engine


@contextmanager
def connect(url: URL, *, node: str, statement_timeout: float = 10.0) -> Iterator[Connection]:
    """Open a connection to `node`, in autocommit.

    Raises:
        Unreachable: the node refuses it.
    """
    engine = engine_for(url, statement_timeout=statement_timeout).execution_options(isolation_level="AUTOCOMMIT")
    try:
        connection = engine.connect()
    except (DBAPIError, WrongNode) as error:
        raise Unreachable(node, error) from None
    with connection:
        yield connection


@contextmanager
def connect_all(urls: Mapping[str, URL], *, statement_timeout: float = 10.0) -> Iterator[dict[str, Connection]]:
    """Open a connection to every node, as `connect` does."""
    with ExitStack() as stack:
        yield {
            node: stack.enter_context(connect(url, node=node, statement_timeout=statement_timeout))
            for node, url in urls.items()
        }
