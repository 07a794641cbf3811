"""Connections of the operations: one per node, in autocommit, with time limits, but without pool, routing and retry."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool
from sqlalchemy.exc import DBAPIError

from ..db import Database, DistributedSQLError, PoolLimits, Timeouts
from ..db.retry import first_line
from .base import OperationError


class Unreachable(OperationError):
    """A node refuses the connection; the message names the node and the cause."""

    def __init__(self, node: str, error: Exception) -> None:
        super().__init__(f"{node} cannot be reached: {first_line(error).removeprefix('connection failed: ')}")


@lru_cache(maxsize=64)
def engine_for(url: URL, *, statement_timeout: float = 10.0, transaction_pooler: bool = False) -> Engine:
    """Return an engine without a pool. The timeout is in seconds; 0 means no limit. A pooler has its own.

    It is kept, because the queries that SQLAlchemy sends on an engine's first connection double the time to connect.
    """
    server = f"{url.host}:{url.port}"
    pool = PoolLimits(poolclass=NullPool, size=1, max_overflow=0)
    timeouts = Timeouts(statement=statement_timeout, idle_in_transaction=0)
    options: dict[str, Any] = {"pool": pool, "timeouts": timeouts, "transaction_pooler": transaction_pooler}
    return Database({server: url}, application_name="operations", **options).engine(server)


@contextmanager
def connect(
    url: URL, *, node: str, statement_timeout: float = 10.0, transaction_pooler: bool = False
) -> Iterator[Connection]:
    """Open a connection to `node`; raise Unreachable if the node refuses it."""
    engine = engine_for(url, statement_timeout=statement_timeout, transaction_pooler=transaction_pooler)
    try:
        connection = engine.execution_options(isolation_level="AUTOCOMMIT").connect()
    except (DBAPIError, DistributedSQLError) as error:
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
