"""A connection that does not wait for ever, and that leads to CockroachDB and nowhere else."""

import re
from contextlib import closing, suppress
from typing import Any, TypeVar

from psycopg.abc import PQGen
from psycopg.crdb import AsyncCrdbConnection, CrdbConnection
from sqlalchemy import Engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from . import backend
from .deadline import deadlines
from .errors import WrongNode

T = TypeVar("T")

GRACE = 5.0
"""Seconds after its own time limit for which a silent node is believed to be at work. Arbitrary."""


class PatientConnection(CrdbConnection[Any]):
    """Hangs up on a node that stays silent for too long, whatever it was asked: a statement, COMMIT, a ping."""

    silence = 0.0
    """Seconds; 0 means never."""

    def wait(self, gen: PQGen[T], *args: Any, **options: Any) -> T:
        """Called by psycopg whenever it waits for the server."""
        with deadlines.limit(self.pgconn.socket, self.silence):
            return super().wait(gen, *args, **options)


class AsyncPatientConnection(AsyncCrdbConnection[Any]):
    """The same for asyncio."""

    silence = 0.0
    """Seconds; 0 means never."""

    async def wait(self, gen: PQGen[T], *args: Any, **options: Any) -> T:
        """Called by psycopg whenever it waits for the server."""
        with deadlines.limit(self.pgconn.socket, self.silence):
            return await super().wait(gen, *args, **options)


def prepare(engine: Engine, node: str, *, statement_timeout: float) -> None:
    """Let all connections of an engine be such connections.

    Args:
        engine: before its first connection.
        node: what the engine leads to is called.
        statement_timeout: the server's own limit in seconds, which a node that works keeps itself; 0 means that it has none, and
            then there is none here.
    """
    # The server says how many rows a statement changed; the dialect tells SQLAlchemy not to ask. Then a version column finds no
    # lost update: SQLAlchemy warns, and commits it.
    engine.dialect.supports_sane_rowcount = True

    silence = statement_timeout + GRACE if statement_timeout else 0.0

    async def connect_async(*arguments: Any, **parameters: Any) -> AsyncPatientConnection:
        connection = await AsyncPatientConnection.connect(*arguments, **parameters)
        connection.silence = silence
        return connection

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _entry: Any, arguments: Any, parameters: dict[str, Any]) -> PatientConnection | None:
        if dialect.is_async:
            parameters["async_creator_fn"] = connect_async
            return None
        connection = PatientConnection.connect(*arguments, **parameters)
        connection.silence = silence
        return connection

    @event.listens_for(engine, "connect")
    def look(dbapi_connection: Any, entry: ConnectionPoolEntry) -> None:
        connection: Any = entry.driver_connection
        if backend.software(connection) is not None:
            return
        # A server of the same line that does not say which it is, and ignores without a word what it is asked for at login.
        dbapi_connection.autocommit = True
        with closing(dbapi_connection.cursor()) as cursor:
            cursor.execute("SELECT version()")
            software = str(cursor.fetchone()[0])
            if software.startswith("PostgreSQL"):
                dbapi_connection.close()
                raise WrongNode(
                    f"{node} is no CockroachDB: the server there is {' '.join(software.split()[:2])}. Correct its URL",
                    node=node,
                )
            for name, value in _OPTION.findall(connection.info.options):
                # What it does not know it cannot keep.
                with suppress(engine.dialect.loaded_dbapi.Error):
                    cursor.execute(f"SET {name} = {value}")
        dbapi_connection.autocommit = False


_OPTION = re.compile(r"-c (\w+)=(\w+)")
