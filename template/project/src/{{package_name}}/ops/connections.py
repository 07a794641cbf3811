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
from ..db.retry import first_line
from .base import OperationError


class Unreachable(OperationError):
    """A node refuses the connection; the message names the node and the cause."""

    def __init__(self, node: str, error: Exception) -> None:
        super().__init__(f"{node} cannot be reached: {first_line(error).removeprefix('connection failed: ')}")


@lru_cache(maxsize=64)
def engine_for(url: URL, *, statement_timeout: float = 10.0) -> Engine:
    """Return an engine without a pool. The timeout is in seconds; 0 means no limit.

    It is kept, because the queries that SQLAlchemy sends on an engine's first connection double the time to connect.
    """
    engine = create_engine(
        url,
        poolclass=NullPool,
        connect_args={
            "connect_timeout": 3,
            "application_name": "operations",
            "options": f"-c statement_timeout={round(statement_timeout * 1000)} -c lock_timeout=5000",
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
