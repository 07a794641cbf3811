"""Tenants come, rest and go: their databases, their roles, and what the registry says of them.

Every step that others could see is in the registry before it is done on a server, and whatever was begun there is finished, or taken
back, by the same command given again. One command at a time works on a tenant; a lock in the registry says which.
"""

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from psycopg import sql
from sqlalchemy import Connection, Engine, delete, func, insert, select, text, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSequence, CreateTable

from ..db.registry import PLACEMENTS, Placement, State, checked_name, database_of, epochs, shown, tenant
from ..db.retry import first_line, sqlstate_of
from ..db.tenants import TenantSettings
from . import migrate as runner
from .connections import Unreachable, connect, engine_for
from .statements import MigrationError
from .topology import TopologyError

MAINTENANCE = "postgres"
"""The database from which others are made and dropped."""

PATIENCE = 60.0
"""Seconds that making or dropping a database may take; copying an empty one takes 0.05."""

DRAINING = 10.0
"""Seconds that sessions get to end once they were told to."""

LOCK = 20_012
"""Of the advisory locks that keep two commands from working on one tenant. Arbitrary."""

# Alembic keeps what it works on in its modules.
_alembic = threading.Lock()


class TenantError(Exception):
    """What was asked for cannot be done with this tenant; the message says why, and that nothing or what has changed."""


@dataclass(frozen=True)
class Registrar:
    """Whoever may change the registry, and make databases on the servers."""

    servers: Mapping[str, URL]
    """For a role that may make roles and databases."""
    registry: URL
    """For a role that may change it."""
    application: str
    """The application's role, which may read it."""
    project: Path = Path()
    """Where the migrations are."""

    @classmethod
    def from_settings(cls, settings: TenantSettings, project: Path = Path()) -> "Registrar":
        """As the settings describe it."""
        reader = settings.registry_url().username or ""
        return cls(settings.admin_urls(), settings.admin_registry_url(), reader, project)

    # The registry -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the registry, if there is none.

        Raises:
            Unreachable: its server does not answer.
        """
        try:
            with connect(self.registry, node="the registry") as connection:
                # There, and whole: the table is the last thing that is made.
                if connection.scalar(text("SELECT to_regclass('tenant') IS NOT NULL")):
                    return
        except Unreachable as error:
            if "does not exist" not in str(error):
                raise
        name = self.registry.database or ""
        maintenance = self.registry.set(database=MAINTENANCE)
        with connect(maintenance, node="the registry", statement_timeout=PATIENCE) as connection:
            # Of two who make it the second one waits here, and finds it. Until this connection ends.
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
            if not connection.scalar(
                text("SELECT EXISTS (SELECT FROM pg_database WHERE datname = :name)"), {"name": name}
            ):
                run(connection, "CREATE DATABASE {} TEMPLATE template0", name)
            run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", name)
            run(connection, "GRANT CONNECT ON DATABASE {} TO {}", name, self.application)
            with engine_for(self.registry).begin() as inside:
                inside.execute(CreateSequence(epochs, if_not_exists=True))
                inside.execute(CreateTable(tenant, if_not_exists=True))
                run(inside, "GRANT SELECT ON tenant TO {}", self.application)

    def all(self) -> list[Placement]:
        """Every tenant, in order.

        Raises:
            Unreachable: the registry does not answer.
        """
        self.prepare()
        with connect(self.registry, node="the registry") as connection:
            return [Placement.of(row) for row in connection.execute(PLACEMENTS.order_by(tenant.c.name))]

    def find(self, name: str) -> Placement:
        """Where a tenant is.

        Raises:
            TenantError: there is none of that name.
            BadTenantName: there can be none.
        """
        self.prepare()
        with connect(self.registry, node="the registry") as connection:
            return look_up(connection, checked_name(name))

    @contextmanager
    def alone(self, name: str) -> Iterator[Connection]:
        """Keep other commands from this tenant; a connection to the registry, in autocommit. Ends however this process does.

        Raises:
            TenantError: another command works on it.
        """
        checked_name(name)
        self.prepare()
        with connect(self.registry, node="the registry", statement_timeout=0) as connection:
            keys = {"lock": LOCK, "name": name}
            if not connection.scalar(text("SELECT pg_try_advisory_lock(:lock, hashtext(:name))"), keys):
                raise TenantError(f"another command is working on {name}; wait for it to end")
            try:
                yield connection
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:lock, hashtext(:name))"), keys)

    # The servers ------------------------------------------------------------------------------------------------

    def server(self, name: str) -> URL:
        """The URL of a server.

        Raises:
            TenantError: there is none of that name.
        """
        if name not in self.servers:
            raise TenantError(f"there is no server {shown(name)}: the servers are {', '.join(self.servers)}")
        return self.servers[name]

    @contextmanager
    def on_server(self, server: str) -> Iterator[Connection]:
        """A connection to a server, to no tenant's database, in autocommit.

        Raises:
            Unreachable: it does not answer.
        """
        url = self.server(server).set(database=MAINTENANCE)
        with connect(url, node=server, statement_timeout=PATIENCE) as connection:
            yield connection

    @contextmanager
    def in_database(self, server: str, name: str) -> Iterator[Connection]:
        """A connection to a tenant's database, in autocommit, for the role that may do everything.

        Raises:
            Unreachable: the server does not answer, or has no such database.
        """
        with connect(self.database_url(server, name), node=server, statement_timeout=PATIENCE) as connection:
            yield connection

    def database_url(self, server: str, name: str) -> URL:
        """The URL of a tenant's database on a server, for the role that may do everything."""
        return self.server(server).set(database=database_of(name))

    def engine(self, server: str, name: str) -> Engine:
        """Without a pool, for transactions in a tenant's database."""
        return engine_for(self.database_url(server, name), statement_timeout=0)

    # What people ask for ----------------------------------------------------------------------------------------

    def add(self, name: str, server: str | None = None) -> Placement:
        """Make a tenant's role and database, with the newest schema, and serve it.

        Args:
            name: of the tenant.
            server: where; the one with the fewest tenants if absent.

        Raises:
            TenantError: it exists; or it could not be made, and nothing is left of it.
            Unreachable: a server does not answer, and nothing has changed.
        """
        checked_name(name)
        if server is not None:
            self.server(server)
        with self.alone(name) as connection:
            row = connection.execute(PLACEMENTS.where(tenant.c.name == name)).one_or_none()
            found = Placement.of(row) if row else None
            if found and found.state is not State.ADDING:
                raise TenantError(f"{name} exists: it is {found.state} on {found.server}")
            if found and server not in (None, found.server):
                raise TenantError(f"{name} was begun on {found.server}: add it there, or drop it first")
            chosen = server or (found.server if found else self._emptiest(connection))
            password = secrets.token_urlsafe(24)
            with self.on_server(chosen) as there:
                if found is None and exists(there, name):
                    raise TenantError(
                        f"{chosen} has a database or a role {database_of(name)} that the registry does not know of: look at what it is, "
                        "and rename or drop it"
                    )
                values = {"server": chosen, "state": State.ADDING, "password": password, "revision": None}
                if found is None:
                    connection.execute(insert(tenant).values(name=name, **values))
                else:
                    change(connection, name, **values)
                try:
                    self.remove(there, chosen, name)
                    make_role(there, name, password)
                    make_database(there, name)
                    revision = self.bring_to(chosen, name, "head")
                except BaseException as error:
                    self._take_back(connection, name, chosen, error)
                    raise
            change(connection, name, state=State.ACTIVE, revision=revision)
            return look_up(connection, name)

    def suspend(self, name: str) -> Placement:
        """Serve a tenant no longer; its sessions end at once, its data stays.

        Raises:
            TenantError: there is no such tenant, or it is on its way to another server.
            Unreachable: its server does not answer.
        """
        with self.alone(name) as connection:
            found = settled(connection, name, State.ACTIVE, State.SUSPENDED)
            with self.on_server(found.server) as there:
                # First where everybody asks, so that nobody is sent there any more.
                change(connection, name, state=State.SUSPENDED, epoch=epochs.next_value())
                close_database(there, name)
            return look_up(connection, name)

    def resume(self, name: str) -> Placement:
        """Serve a tenant again that was suspended.

        Raises:
            TenantError: there is no such tenant, or it is not suspended.
            Unreachable: its server does not answer.
        """
        with self.alone(name) as connection:
            found = settled(connection, name, State.SUSPENDED)
            with self.on_server(found.server) as there:
                open_database(there, name)
            change(connection, name, state=State.ACTIVE, epoch=epochs.next_value())
            return look_up(connection, name)

    def drop(self, name: str, *, force: bool = False) -> None:
        """Delete a tenant and all its data.

        Args:
            name: of the tenant.
            force: also if it is being served.

        Raises:
            TenantError: there is no such tenant; or it is served, or moving, and stays as it is.
            Unreachable: its server does not answer.
        """
        with self.alone(name) as connection:
            found = settled(connection, name, *State)
            if found.state is State.ACTIVE and not force:
                with self.on_server(found.server) as there:
                    count = len(sessions(there, name))
                raise TenantError(
                    f"{name} is served, with {count} session(s) at this moment: suspend it first, or drop it with --force"
                )
            found = self.clear(connection, found)
            with self.on_server(found.server) as there:
                change(connection, name, state=State.DROPPING, epoch=epochs.next_value())
                self.remove(there, found.server, name)
            connection.execute(delete(tenant).where(tenant.c.name == name))

    def clear(self, connection: Connection, found: Placement) -> Placement:
        """Remove what a move has left on another server.

        Raises:
            Unreachable: that server does not answer.
        """
        if found.left_on is None:
            return found
        with self.on_server(found.left_on) as there:
            self.remove(there, found.left_on, found.name)
        change(connection, found.name, left_on=None)
        return look_up(connection, found.name)

    def remove(self, there: Connection, server: str, name: str) -> None:
        """Remove every trace of a tenant from a server, as far as there is one; sessions in its database end.

        Args:
            there: a connection to the server.
            server: its name.
            name: of the tenant.
        """
        database = database_of(name)
        if there.scalar(text(_SUBSCRIBED), {"database": database}):
            with self.in_database(server, name) as connection:
                for subscription in connection.scalars(text(_SUBSCRIPTIONS)).all():
                    run(connection, "ALTER SUBSCRIPTION {} DISABLE", subscription)
                    # Otherwise it would be dropped together with its slot on the other server, which need not answer.
                    run(connection, "ALTER SUBSCRIPTION {} SET (slot_name = NONE)", subscription)
                    run(connection, "DROP SUBSCRIPTION {}", subscription)
        end_copying(there, name)
        run(there, "DROP DATABASE IF EXISTS {} WITH (FORCE)", database)
        run(there, "DROP ROLE IF EXISTS {}", database)

    def bring_to(self, server: str, name: str, target: str) -> str:
        """Bring the schema of a tenant's database to a revision; returns that.

        Raises:
            MigrationError: it was refused or failed.
        """
        with _alembic:
            return runner.migrate(
                {server: self.database_url(server, name)}, owner=database_of(name), target=target, project=self.project
            )

    def _emptiest(self, connection: Connection) -> str:
        counted = select(tenant.c.server, func.count().label("number")).group_by(tenant.c.server)
        count = {row.server: int(row.number) for row in connection.execute(counted)}
        return min(self.servers, key=lambda server: (count.get(server, 0), server))

    def _take_back(self, connection: Connection, name: str, server: str, error: BaseException) -> None:
        """Leave nothing of a tenant that could not be added."""
        try:
            with self.on_server(server) as there:
                self.remove(there, server, name)
            connection.execute(delete(tenant).where(tenant.c.name == name))
        except (Unreachable, DBAPIError):
            raise TenantError(
                f"{name} could not be added: {first_line(error)}. {server} does not answer any more, so something of it may be there: "
                f"it is listed as adding; add it again, or drop it, when {server} is back"
            ) from error
        if isinstance(error, DBAPIError | MigrationError | TopologyError):
            raise TenantError(f"{name} could not be added, and nothing is left of it: {first_line(error)}") from error


# One tenant on one server -------------------------------------------------------------------------------------------


def run(connection: Connection, statement: str, *names: str, **literals: str) -> None:
    """Execute SQL with names, and literals, put into it as PostgreSQL quotes them."""
    composed = sql.SQL(statement).format(
        *map(sql.Identifier, names), **{key: sql.Literal(value) for key, value in literals.items()}
    )
    driver: Any = connection.connection.driver_connection
    # Not as parameters, which such statements do not take; the text is the driver's, hence past SQLAlchemy's own "%".
    connection.exec_driver_sql(composed.as_string(driver).replace("%", "%%"))


def make_role(connection: Connection, name: str, password: str) -> None:
    """Make the role of a tenant. The server gets to see only what it is to compare with, so no log holds the password."""
    role = database_of(name)
    run(
        connection,
        "CREATE ROLE {} LOGIN NOINHERIT PASSWORD {verifier}",
        role,
        verifier=verifier(connection, role, password),
    )


def verifier(connection: Connection, role: str, password: str) -> str:
    """What a server keeps of a password."""
    driver: Any = connection.connection.driver_connection
    encrypted: bytes = driver.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    return encrypted.decode()


def make_database(connection: Connection, name: str) -> None:
    """Make the database of a tenant, which nobody else may connect to."""
    role = database_of(name)
    run(connection, "CREATE DATABASE {} OWNER {} TEMPLATE template0", role, role)
    run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", role)


def end_copying(connection: Connection, name: str) -> None:
    """Remove what lets another server copy a tenant's database from this one.

    Raises:
        TenantError: a copy does not end.
    """
    role = copier_of(name)
    if connection.scalar(text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :role)"), {"role": role}):
        run(connection, "ALTER ROLE {} NOLOGIN", role)
    deadline = time.monotonic() + DRAINING
    while slots := connection.execute(text(_SLOTS), {"database": database_of(name)}).all():
        if time.monotonic() > deadline:
            raise TenantError(f"a copy of {name} does not end: {', '.join(slot.slot_name for slot in slots)}")
        for slot in slots:
            # It may be in use again, or gone, before the next statement.
            with _ignoring("55006", "42704"):
                if slot.active_pid is not None:
                    connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": slot.active_pid})
                else:
                    connection.execute(text("SELECT pg_drop_replication_slot(:name)"), {"name": slot.slot_name})
        time.sleep(0.002)
    run(connection, "DROP ROLE IF EXISTS {}", role)


def copier_of(name: str) -> str:
    """The role as which another server copies a tenant's database, and the name of the slot: letters and digits only."""
    return f"copy_{blake2b(database_of(name).encode(), digest_size=10).hexdigest()}"


def exists(connection: Connection, name: str) -> bool:
    """Whether a server has a database, or a role, of the name that a tenant's has."""
    query = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = :name) OR EXISTS (SELECT FROM pg_roles WHERE rolname = :name)"
    return connection.scalar(text(query), {"name": database_of(name)}) is True


def close_database(connection: Connection, name: str) -> None:
    """Let a tenant's role log in no longer, and end its sessions.

    Raises:
        TenantError: a session does not end.
    """
    run(connection, "ALTER ROLE {} NOLOGIN", database_of(name))
    end_sessions(connection, name)


def open_database(connection: Connection, name: str) -> None:
    """Let a tenant's role log in again."""
    run(connection, "ALTER ROLE {} LOGIN", database_of(name))


def end_sessions(connection: Connection, name: str) -> None:
    """End the sessions of a tenant's role, and wait until they are gone.

    Raises:
        TenantError: one does not end.
    """
    deadline = time.monotonic() + DRAINING
    while left := sessions(connection, name):
        if time.monotonic() > deadline:
            raise TenantError(
                f"sessions of {name} do not end: {', '.join(map(str, left))}; `pg_stat_activity` shows what they do"
            )
        for pid in left:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        time.sleep(0.002)


def sessions(connection: Connection, name: str) -> list[int]:
    """The process ids of the sessions that a tenant's role has."""
    query = "SELECT pid FROM pg_stat_activity WHERE usename = :name"
    return list(connection.scalars(text(query), {"name": database_of(name)}))


def look_up(connection: Connection, name: str) -> Placement:
    """What the registry says of a tenant.

    Raises:
        TenantError: it has none of that name.
    """
    row = connection.execute(PLACEMENTS.where(tenant.c.name == name)).one_or_none()
    if row is None:
        raise TenantError(f"there is no tenant {shown(name)}")
    return Placement.of(row)


def settled(connection: Connection, name: str, *states: State) -> Placement:
    """A tenant in one of `states` and not on its way.

    Raises:
        TenantError: it is not.
    """
    found = look_up(connection, name)
    if found.target is not None:
        raise TenantError(
            f"{name} is on its way from {found.server} to {found.target}, and the move did not end: move it again, or take that back "
            "with --undo"
        )
    if found.state not in states:
        raise TenantError(f"{name} is {found.state}, not {' or '.join(states)}")
    return found


def change(connection: Connection, name: str, **values: object) -> None:
    """Let the registry say something else of a tenant."""
    connection.execute(update(tenant).where(tenant.c.name == name).values(**values))


_SUBSCRIBED = """
    SELECT EXISTS (SELECT FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid WHERE d.datname = :database)
"""

_SUBSCRIPTIONS = """
    SELECT subname FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

_SLOTS = "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = :database"


@contextmanager
def _ignoring(*states: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if sqlstate_of(error) not in states:
            raise
