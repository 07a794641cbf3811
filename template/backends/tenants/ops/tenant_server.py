"""A tenant on one server: its role and database, their sessions, and the means to copy them to another server.

All functions take a connection to the server, in autocommit, for a role that may create roles and databases.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

from psycopg import sql
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from ..db.retry import sqlstate_of
from ..db.tenants.placement import database_of
from .base import OperationError
from .privileges import privilege_statements, quoted

SESSION_TIMEOUT = 10.0
"""Seconds within which terminated sessions, and replication slots in use, have to end."""


class TenantError(OperationError):
    """The command is not possible for this tenant; the message has the reason, and what changed if anything did."""


def run(connection: Connection, statement: str, *names: str, **literals: str) -> None:
    """Execute SQL that takes no parameters, with names for each `{}` and literals for each `{key}`, both quoted."""
    driver: Any = connection.connection.driver_connection
    composed = sql.SQL(statement).format(
        *map(sql.Identifier, names), **{key: sql.Literal(value) for key, value in literals.items()}
    )
    # SQLAlchemy passes "%%" on as "%".
    connection.exec_driver_sql(composed.as_string(driver).replace("%", "%%"))


def create_role(connection: Connection, name: str, password: str, connections: int) -> None:
    """Create the role of a tenant, which may have that many connections."""
    run(connection, "CREATE ROLE {} LOGIN NOINHERIT", database_of(name))
    set_login(connection, name, password, connections)


def set_login(connection: Connection, name: str, password: str, connections: int) -> None:
    """Set the password of a tenant's role, and the number of its connections."""
    role = database_of(name)
    secret = verifier(connection, role, password)
    connection.exec_driver_sql(f"ALTER ROLE {quoted(role)} CONNECTION LIMIT {connections}")
    run(connection, "ALTER ROLE {} PASSWORD {secret}", role, secret=secret)


def verifier(connection: Connection, role: str, password: str) -> str:
    """Return the SCRAM verifier of a password; sent instead of the password, it keeps that out of the log file."""
    driver: Any = connection.connection.driver_connection
    encrypted: bytes = driver.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    return encrypted.decode()


def create_database(connection: Connection, name: str, owner: str) -> None:
    """Create the database of a tenant; nobody but its owner may connect to it."""
    database = database_of(name)
    run(connection, "CREATE DATABASE {} OWNER {} TEMPLATE template0", database, owner)
    run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", database)


def grant_privileges(connection: Connection, name: str, owner: str) -> None:
    """Let the role of a tenant read and write what `owner` makes in its database; the connection is to that."""
    role = database_of(name)
    for statement in privilege_statements(database=role, owner=owner, application=role):
        connection.exec_driver_sql(statement)


def exists(connection: Connection, name: str) -> bool:
    """Return True if the server has a database or a role with the name of a tenant's."""
    return connection.scalar(text(_EXISTS), {"name": database_of(name)}) is True


def refuse_unknown(connection: Connection, server: str, name: str) -> None:
    """Raise `TenantError` if the server has a database or a role of a tenant that is not registered there."""
    if exists(connection, name):
        raise TenantError(
            f"{server} has a database or a role {database_of(name)} that the registry does not know of: "
            "look at what it is, and rename or drop it"
        )


def open_database(connection: Connection, name: str) -> None:
    """Let a tenant's role log in."""
    run(connection, "ALTER ROLE {} LOGIN", database_of(name))


def close_database(connection: Connection, name: str) -> None:
    """Refuse the logins of a tenant's role, end its sessions, and wait until they are gone."""
    run(connection, "ALTER ROLE {} NOLOGIN", database_of(name))
    deadline = time.monotonic() + SESSION_TIMEOUT
    while left := connection.scalars(text(_TERMINATE), {"name": database_of(name)}).all():
        if time.monotonic() > deadline:
            pids = ", ".join(map(str, left))
            raise TenantError(f"sessions of {name} do not end: {pids}; `pg_stat_activity` shows what they do")
        time.sleep(0.002)


def copier_of(name: str) -> str:
    """Return the name of the role and the slot with which another server copies a tenant's database."""
    # The name of a slot takes letters, digits and underscores only.
    return f"copy_{blake2b(database_of(name).encode(), digest_size=10).hexdigest()}"


def remove_copier(connection: Connection, name: str) -> None:
    """Remove the role and the slot with which another server copies a tenant's database from this one."""
    role = copier_of(name)
    with _ignoring("42704"):
        run(connection, "ALTER ROLE {} NOLOGIN", role)
    deadline = time.monotonic() + SESSION_TIMEOUT
    while slots := connection.execute(text(_SLOTS), {"database": database_of(name)}).all():
        if time.monotonic() > deadline:
            raise TenantError(f"a copy of {name} does not end: {', '.join(slot for slot, _ in slots)}")
        for slot, pid in slots:
            # It may be in use again, or gone, before the next statement.
            with _ignoring("55006", "42704"):
                if pid is not None:
                    connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
                else:
                    connection.execute(text("SELECT pg_drop_replication_slot(:name)"), {"name": slot})
        time.sleep(0.002)
    run(connection, "DROP ROLE IF EXISTS {}", role)


@contextmanager
def _ignoring(*states: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if sqlstate_of(error) not in states:
            raise


_EXISTS = "SELECT to_regrole(quote_ident(:name)) IS NOT NULL OR EXISTS (SELECT FROM pg_database WHERE datname = :name)"

_TERMINATE = "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = :name"

_SLOTS = "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = :database"
