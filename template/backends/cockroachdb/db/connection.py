"""Connections that give up on a silent node, and that lead to CockroachDB only."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

from psycopg import OperationalError
from psycopg.abc import PQGen
from psycopg.crdb import AsyncCrdbConnection, CrdbConnection
from sqlalchemy import Engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from .deadline import deadlines
from .errors import WrongNode

T = TypeVar("T")

GRACE = 5.0
"""Seconds that a silent node gets beyond the server's statement timeout. Arbitrary."""

SETTING = "autocommit_before_ddl"
"""Setting that is sent with every login; PostgreSQL refuses a login with settings that it does not have."""


class TimedConnection(CrdbConnection[Any]):
    """Connection that is shut down if the answer to a statement, a COMMIT or a ping takes too long."""

    response_timeout = 0.0
    """Longest wait for an answer in seconds; 0 disables the limit."""

    def wait(self, gen: PQGen[T], *args: Any, **options: Any) -> T:
        """Wait for the server; psycopg calls this for every answer."""
        with deadlines.limit(self.pgconn.socket, self.response_timeout):
            return super().wait(gen, *args, **options)


class AsyncTimedConnection(AsyncCrdbConnection[Any]):
    """Connection for asyncio with the same limit."""

    response_timeout = 0.0
    """Longest wait for an answer in seconds; 0 disables the limit."""

    async def wait(self, gen: PQGen[T], *args: Any, **options: Any) -> T:
        """Wait for the server; psycopg calls this for every answer."""
        with deadlines.limit(self.pgconn.socket, self.response_timeout):
            return await super().wait(gen, *args, **options)


def software(driver_connection: Any) -> str | None:
    """Return the version that a server reports at login; None if it is not CockroachDB. A stand-in reports itself."""
    version: str | None = driver_connection.info.parameter_status("crdb_version")
    return version


def prepare(engine: Engine, node: str, *, statement_timeout: float) -> None:
    """Let an engine open timed connections, and refuse servers that are not CockroachDB.

    Args:
        engine: engine that has not connected yet.
        node: name of its node, for errors.
        statement_timeout: the server's own limit in seconds, which a healthy node keeps, unless the URL has another;
            0: neither side has a limit.
    """
    # The server reports how many rows a statement changed, but the dialect tells SQLAlchemy to ignore the number.
    # Without it a version column detects no lost update: SQLAlchemy warns and commits.
    engine.dialect.supports_sane_rowcount = True

    def response_timeout(options: str) -> float:
        *_, longest = statement_timeout, *map(_seconds, _STATEMENT_TIMEOUT.findall(options))
        return longest + GRACE if longest else 0.0

    async def connect_async(*arguments: Any, **parameters: Any) -> AsyncTimedConnection:
        with _refused(node):
            connection = await AsyncTimedConnection.connect(*arguments, **parameters)
        connection.response_timeout = response_timeout(connection.info.options)
        return connection

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _entry: Any, arguments: Any, parameters: dict[str, Any]) -> TimedConnection | None:
        if dialect.is_async:
            parameters["async_creator_fn"] = connect_async
            return None
        with _refused(node):
            connection = TimedConnection.connect(*arguments, **parameters)
        connection.response_timeout = response_timeout(connection.info.options)
        return connection

    @event.listens_for(engine, "connect")
    def check(dbapi_connection: Any, entry: ConnectionPoolEntry) -> None:
        connection: Any = entry.driver_connection
        if software(connection) is not None:
            return
        # A compatible server that does not report its version at login silently ignores the settings that are sent
        # there.
        dbapi_connection.autocommit = True
        with closing(dbapi_connection.cursor()) as cursor:
            cursor.execute("SELECT version()")
            version = str(cursor.fetchone()[0])
            if version.startswith("PostgreSQL"):
                dbapi_connection.close()
                raise WrongNode(
                    f"{node} is not CockroachDB: the server is {' '.join(version.split()[:2])}. Correct the URL",
                    node=node,
                )
            for name, value in _OPTION.findall(connection.info.options):
                # A setting that the server does not support has no effect.
                with suppress(engine.dialect.loaded_dbapi.Error):
                    cursor.execute(f"SET {name} = {value}")
        dbapi_connection.autocommit = False


@contextmanager
def _refused(node: str) -> Iterator[None]:
    """Raise WrongNode if a login fails by the name of a setting that every CockroachDB node accepts."""
    try:
        yield
    except OperationalError as error:
        if f'"{SETTING}"' not in str(error):
            raise
        message = f"{node} is not CockroachDB: the server refuses the setting {SETTING}. Correct the URL"
        raise WrongNode(message, node=node) from error


def _seconds(duration: tuple[str, str]) -> float:
    number, unit = duration
    return int(number) * {"us": 1e-6, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}.get(unit, 0.001)


_OPTION = re.compile(r"(?:-c *|--)([\w.]+)=(\S+)")
_STATEMENT_TIMEOUT = re.compile(r"(?:-c *|--)statement_timeout=(\d+)([a-z]*)")
