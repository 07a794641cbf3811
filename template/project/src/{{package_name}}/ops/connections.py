"""Connections of the operations: one per node, in autocommit, with time limits, but without pool, routing and retry.

A role can define functions, operators and views that run with the rights of whoever reads them. So migrations run as
the owner of the tables, and an administrator's connection is for roles, links and databases: it has the search path
`pg_catalog` from its first query on, and evaluates nothing that the owner or the application can have defined.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, NullPool, Pool, event
from sqlalchemy.exc import DBAPIError

from ..db import Database, DistributedSQLError, PoolLimits, Timeouts
from ..db.retry import first_line
from .base import OperationError


class Unreachable(OperationError):
    """A node refuses the connection; the message names the node and the cause."""

    def __init__(self, node: str, error: Exception) -> None:
        super().__init__(f"{node} cannot be reached: {first_line(error).removeprefix('connection failed: ')}")


@contextmanager
def unlogged(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Open a transaction whose statements, which hold a password, appear in no log and in no view of the server.

    A superuser may set all of these settings; another role only those that were granted to it.
    """
    with connection.transaction():
        connection.execute(_UNLOGGED)
        yield


_UNLOGGED = """
    SELECT set_config(name, value, true)
    FROM (VALUES ('log_statement', 'none'), ('log_min_error_statement', 'panic'), ('log_min_duration_statement', '-1'),
                 ('log_duration', 'off'), ('log_transaction_sample_rate', '0'), ('track_activities', 'off'),
                 ('pg_stat_statements.track_utility', 'off')) AS setting (name, value)
    WHERE has_parameter_privilege(name, 'SET')
"""


@lru_cache(maxsize=64)
def engine_for(
    url: URL, *, statement_timeout: float = 10.0, transaction_pooler: bool = False, pinned: bool = False
) -> Engine:
    """Return an engine without a pool. The timeout is in seconds; 0 means no limit. For the others see `connect`.

    It is kept, because the queries that SQLAlchemy sends on an engine's first connection double the time to connect.
    """
    server = f"{url.host}:{url.port}"
    pool = PoolLimits(poolclass=NullPool, size=1, max_overflow=0)
    timeouts = Timeouts(statement=statement_timeout, idle_in_transaction=0)
    options: dict[str, Any] = {"pool": pool, "timeouts": timeouts, "transaction_pooler": transaction_pooler}
    engine = Database({server: url}, application_name="operations", **options).engine(server)
    if pinned:

        def pin(dbapi_connection: Any, _entry: Any) -> None:
            dbapi_connection.autocommit = True
            dbapi_connection.execute("SET search_path = pg_catalog")
            dbapi_connection.autocommit = False

        # Before the queries that SQLAlchemy and the backend send on the first connection.
        event.listen(engine, "first_connect", pin, insert=True)
        event.listen(engine, "connect", pin, insert=True)
    return engine


@contextmanager
def connect(
    url: URL,
    *,
    node: str,
    statement_timeout: float = 10.0,
    transaction_pooler: bool = False,
    pinned: bool = False,
) -> Iterator[Connection]:
    """Open a connection to a node.

    Args:
        url: URL of the node.
        node: name of the node, for messages.
        statement_timeout: time limit of a statement in seconds; 0 means none. A pooler has its own.
        transaction_pooler: the URL leads to a pooler in transaction mode.
        pinned: the search path is `pg_catalog`, as an administrator's connection needs it.

    Raises:
        Unreachable: the node refuses the connection.
    """
    engine = engine_for(url, statement_timeout=statement_timeout, transaction_pooler=transaction_pooler, pinned=pinned)
    try:
        connection = engine.execution_options(isolation_level="AUTOCOMMIT").connect()
    except (DBAPIError, DistributedSQLError) as error:
        raise Unreachable(node, error) from None
    with connection:
        yield connection


@contextmanager
def connect_all(
    urls: Mapping[str, URL],
    *,
    statement_timeout: float = 10.0,
    transaction_pooler: bool = False,
    pinned: bool = False,
) -> Iterator[dict[str, Connection]]:
    """Open a connection to every node, to all of them at once, as `connect` does."""
    options = {"transaction_pooler": transaction_pooler, "pinned": pinned}

    def open_one(node: str) -> Connection:
        return stack.enter_context(connect(urls[node], node=node, statement_timeout=statement_timeout, **options))

    with ExitStack() as stack:
        with ThreadPoolExecutor(len(urls) or 1) as threads:
            opened = dict(zip(urls, threads.map(open_one, urls), strict=True))
        yield opened


@contextmanager
def refuse_writes() -> Iterator[None]:
    """Let the servers refuse writes on every connection that this process opens in the block, for whatever purpose.

    A pooler would give the setting to other clients, so a connection through one in transaction mode is left as it is.
    """

    def refuse(client: Any, _entry: Any) -> None:
        if isinstance(client, psycopg.Connection) and client.prepare_threshold is not None:
            autocommit, client.autocommit = client.autocommit, True
            # A value that the server or the role has already stays: the checks look for its source.
            if client.execute("SHOW default_transaction_read_only").fetchone() != ("on",):
                client.execute("SET default_transaction_read_only = on")
            client.autocommit = autocommit

    event.listen(Pool, "connect", refuse)
    try:
        yield
    finally:
        event.remove(Pool, "connect", refuse)


def verification(url: URL, client: psycopg.Connection[Any]) -> dict[str, str]:
    """Return the parameters with which the server `client` verifies the server of `url`, as the URL asks.

    The root certificate is a file of the client: the one of the URL, or of the client's setting `peer.sslrootcert`.
    """
    found = {name: str(url.query[name]) for name in ("sslmode", "sslrootcert") if name in url.query}
    row = client.execute("SELECT current_setting('peer.sslrootcert', true)").fetchone()
    if row and row[0] and found.get("sslrootcert") != "system":
        found["sslrootcert"] = row[0]
    if client.info.server_version >= 160000:
        found["require_auth"] = "scram-sha-256"
    return found
