"""Connections of the operations: one per node, in autocommit, with time limits, but without pool, routing and retry.

Roles with fewer rights than an administrator's can define functions, operators and views. So an administrator's
connection has the search path `pg_catalog` from its first query on, and gives up its rights before it reads what such a
role can have defined.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, NullPool, event, text
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
    url: URL, *, statement_timeout: float = 10.0, transaction_pooler: bool = False, owner: str | None = None
) -> Engine:
    """Return an engine without a pool. The timeout is in seconds; 0 means no limit. For the others see `connect`.

    It is kept, because the queries that SQLAlchemy sends on an engine's first connection double the time to connect.
    """
    server = f"{url.host}:{url.port}"
    pool = PoolLimits(poolclass=NullPool, size=1, max_overflow=0)
    timeouts = Timeouts(statement=statement_timeout, idle_in_transaction=0)
    options: dict[str, Any] = {"pool": pool, "timeouts": timeouts, "transaction_pooler": transaction_pooler}
    engine = Database({server: url}, application_name="operations", **options).engine(server)
    if owner not in (None, url.username):

        def pin(dbapi_connection: Any, entry: Any) -> None:
            dbapi_connection.autocommit = True
            dbapi_connection.execute("SET search_path = pg_catalog")
            dbapi_connection.autocommit = False
            entry.info["owner"] = owner

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
    owner: str | None = None,
) -> Iterator[Connection]:
    """Open a connection to a node.

    Args:
        url: URL of the node.
        node: name of the node, for messages.
        statement_timeout: time limit of a statement in seconds; 0 means none. A pooler has its own.
        transaction_pooler: the URL leads to a pooler in transaction mode.
        owner: role with fewer rights that may have defined objects there; the search path is `pg_catalog` then, and
            `as_owner` has an effect. None: a connection as any client has it.

    Raises:
        Unreachable: the node refuses the connection.
    """
    engine = engine_for(url, statement_timeout=statement_timeout, transaction_pooler=transaction_pooler, owner=owner)
    try:
        connection = engine.execution_options(isolation_level="AUTOCOMMIT").connect()
    except (DBAPIError, DistributedSQLError) as error:
        raise Unreachable(node, error) from None
    with connection:
        yield connection


@contextmanager
def connect_all(
    urls: Mapping[str, URL], *, statement_timeout: float = 10.0, owner: str | None = None
) -> Iterator[dict[str, Connection]]:
    """Open a connection to every node, as `connect` does."""
    with ExitStack() as stack:
        yield {
            node: stack.enter_context(connect(url, node=node, statement_timeout=statement_timeout, owner=owner))
            for node, url in urls.items()
        }


def become_owner(connection: Connection) -> None:
    """Give up the administrator's rights for those of the `owner` that `connect` was given, with its search path."""
    if owner := connection.info.get("owner"):
        connection.exec_driver_sql(f"SET ROLE {connection.dialect.identifier_preparer.quote(owner)}")
        connection.exec_driver_sql("SET search_path TO DEFAULT")
        # SQLAlchemy has read it with the other search path.
        connection.dialect.default_schema_name = connection.scalar(text("SELECT current_schema()"))


@contextmanager
def as_owner(connection: Connection) -> Iterator[None]:
    """Give up those rights within the block; without an `owner`, change nothing."""
    become_owner(connection)
    try:
        yield
    finally:
        if "owner" in connection.info:
            connection.exec_driver_sql("RESET ROLE")
            connection.exec_driver_sql("SET search_path = pg_catalog")


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
