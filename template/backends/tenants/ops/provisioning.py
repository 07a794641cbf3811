"""Create, suspend and drop tenants: their databases and roles, and what the registry has about them.

Each step that processes could notice is in the registry before it is done on a server. A command that was interrupted
is finished, or undone, by running it again. A lock in the registry keeps two commands from working on one tenant.
"""

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, text, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSequence, CreateTable

from ..db.retry import first_line
from ..db.tenants.placement import Placement, TenantState, check_name, database_of, password_of, quoted
from ..db.tenants.registry import PLACEMENTS, configured_secret, epochs, placement_of, registry_url, tenant
from ..settings import PREFIX, Settings
from . import migrate as runner
from . import tenant_server
from .base import MigrationError, TopologyError
from .connections import Unreachable, connect, engine_for
from .tenant_server import TenantError, run

MAINTENANCE_DATABASE = "postgres"
"""Database from which others are created and dropped."""

DATABASE_TIMEOUT = 60.0
"""Statement timeout, in seconds, for creating and dropping databases; copying an empty one takes 0.05 s."""

LOCK = 20_012
"""Key of the advisory locks that keep two commands from working on one tenant. Arbitrary."""

FAILURES = (TenantError, Unreachable, MigrationError, TopologyError, DBAPIError)
"""Errors that a command on a tenant can end with."""

_IN_PUBLIC: dict[str, Any] = {"schema_translate_map": {None: "public"}}
"""Execution options that name the schema of the registry's table, because the search path does not."""

# Alembic keeps its state in module variables.
_alembic = Lock()


@dataclass(frozen=True)
class TenantAdmin:
    """Administer tenants: change the registry, and create and drop databases on the servers.

    Methods raise `Unreachable` if a server or the registry does not answer, and `TenantError` or `BadTenantName` if
    the command is not possible. Nothing has changed then, unless the message says so.
    """

    servers: Mapping[str, URL]
    """URL of each server for a role that may create roles and databases."""
    registry: URL
    """URL of the registry for a role that may change it."""
    application: str
    """Role of the application, which may read the registry."""
    project: Path = Path()
    """Folder with an `alembic.ini` for this program; else the revisions are those of the package."""
    owners: Mapping[str, URL] = field(kw_only=True)
    """URL of each server for the role that owns what is in the databases of the tenants and migrates them."""
    secret: str = field(kw_only=True, repr=False)
    """Secret from which the passwords of the tenants' roles are derived."""
    connections: int = field(default=50, kw_only=True)
    """Number of connections that a tenant may have on its server."""

    @classmethod
    def from_settings(cls, settings: Settings, project: Path = Path()) -> "TenantAdmin":
        """Create it as the settings describe it."""
        servers, admin_registry = settings.admin_urls(), settings.admin_registry or settings.registry
        application = registry_url(settings.urls(), settings.registry).username or ""
        return cls(
            *(servers, registry_url(servers, admin_registry), application, project),
            owners=settings.owner_urls(),
            secret=configured_secret(settings),
            connections=settings.tenant_connections,
        )

    # The registry.

    def create_registry(self) -> None:
        """Create the registry, unless it exists."""
        try:
            with connect(self.registry, node="the registry", pinned=True) as connection:
                # The table is created last, so it shows that the registry is complete.
                if connection.scalar(text("SELECT to_regclass('public.tenant') IS NOT NULL")):
                    return
        except Unreachable as error:
            if "does not exist" not in str(error):
                raise
        name = self.registry.database or ""
        maintenance = self.registry.set(database=MAINTENANCE_DATABASE)
        node = "the registry"
        with connect(maintenance, node=node, statement_timeout=DATABASE_TIMEOUT, pinned=True) as connection:
            # Held until this connection ends: a second process waits here and finds the registry.
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
            query = text("SELECT EXISTS (SELECT FROM pg_database WHERE datname = :name)")
            if not connection.scalar(query, {"name": name}):
                run(connection, "CREATE DATABASE {} TEMPLATE template0", name)
            run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", name)
            run(connection, "GRANT CONNECT ON DATABASE {} TO {}", name, self.application)
            with engine_for(self.registry, pinned=True).begin() as inside:
                inside.execution_options(**_IN_PUBLIC)
                inside.execute(CreateSequence(epochs, if_not_exists=True))
                inside.execute(CreateTable(tenant, if_not_exists=True))
                run(inside, "GRANT SELECT ON public.tenant TO {}", self.application)

    def all(self) -> list[Placement]:
        """Return the placements of all tenants, in the order of their names."""
        with self._on_registry() as registry:
            return [placement_of(row) for row in registry.execute(PLACEMENTS.order_by(tenant.c.name))]

    def find(self, name: str) -> Placement:
        """Return the placement of a tenant."""
        check_name(name)
        with self._on_registry() as registry:
            return look_up(registry, name)

    @contextmanager
    def lock(self, name: str, *, wait: float = 0.0) -> Iterator[Connection]:
        """Keep other commands from a tenant; yield the connection to the registry, which has the lock.

        Args:
            name: name of the tenant.
            wait: time in seconds to wait for another command to end.
        """
        check_name(name)
        deadline = time.monotonic() + wait
        with self._on_registry(statement_timeout=0) as registry:
            # A lost connection releases the lock.
            keys = {"lock": LOCK, "name": name}
            while not registry.scalar(text("SELECT pg_try_advisory_lock(:lock, hashtext(:name))"), keys):
                if time.monotonic() > deadline:
                    raise TenantError(f"another command is working on {name}; wait for it to end")
                time.sleep(0.2)
            try:
                yield registry
            finally:
                registry.execute(text("SELECT pg_advisory_unlock(:lock, hashtext(:name))"), keys)

    @contextmanager
    def _on_registry(self, statement_timeout: float = 10.0) -> Iterator[Connection]:
        self.create_registry()
        node = "the registry"
        with connect(self.registry, node=node, statement_timeout=statement_timeout, pinned=True) as registry:
            yield registry.execution_options(**_IN_PUBLIC)

    # The servers.

    def server(self, name: str) -> URL:
        """Return the URL of a server."""
        if name not in self.servers:
            raise TenantError(f"there is no server {quoted(name)}: the servers are {', '.join(self.servers)}")
        return self.servers[name]

    def database_url(self, server: str, name: str) -> URL:
        """Return the URL of a tenant's database on a server for the administrating role."""
        return self.server(server).set(database=database_of(name))

    def on_server(self, server: str) -> AbstractContextManager[Connection]:
        """Open a connection to a server, to no tenant's database, in autocommit."""
        url = self.server(server).set(database=MAINTENANCE_DATABASE)
        return connect(url, node=server, statement_timeout=DATABASE_TIMEOUT, pinned=True)

    def owner_url(self, server: str, name: str) -> URL:
        """Return the URL of a tenant's database on a server for the role that owns what is in it."""
        self.server(server)
        return self.owners[server].set(database=database_of(name))

    def in_database(self, server: str, name: str) -> AbstractContextManager[Connection]:
        """Open a connection to a tenant's database for the administrating role, in autocommit."""
        url = self.database_url(server, name)
        return connect(url, node=server, statement_timeout=DATABASE_TIMEOUT, pinned=True)

    def as_owner(self, server: str, name: str) -> AbstractContextManager[Connection]:
        """Open a connection to a tenant's database for the role that owns what is in it, in autocommit."""
        return connect(self.owner_url(server, name), node=server, statement_timeout=DATABASE_TIMEOUT)

    def has_password(self, found: Placement) -> bool:
        """Return False if the password that the secret gives is not that of a tenant's role."""
        try:
            with connect(found.url(self.server(found.server), self.secret), node=found.server):
                return True
        except Unreachable as error:
            # The server looks at the password first. One that does not answer cannot tell.
            return "password authentication failed" not in str(error)

    def check_secret(self, *tenants: Placement) -> None:
        """Raise `TenantError` if the secret gives none of these tenants its password."""
        if tenants and not any(map(self.has_password, tenants)):
            names = " and ".join(one.name for one in tenants)
            raise TenantError(
                f"{names} cannot log in with the password that {PREFIX}TENANT_SECRET gives: set the secret with "
                "which it was made, or, if you have changed that, run `tenants rotate --new-secret`"
            )

    # The commands.

    def add(self, name: str, server: str | None = None) -> Placement:
        """Create a tenant's role and database with the newest schema, and serve the tenant.

        Args:
            name: name of the tenant.
            server: name of its server; None: the one with the fewest tenants.
        """
        check_name(name)
        if server is not None:
            self.server(server)
        with self.lock(name) as registry:
            found = _find(registry, name)
            if found and found.state is not TenantState.ADDING:
                raise TenantError(f"{name} exists: it is {found.state} on {found.server}")
            if found and server not in (None, found.server):
                raise TenantError(f"{name} was begun on {found.server}: add it there, or drop it first")
            chosen = server or (found.server if found else self._emptiest_server(registry))
            self.check_secret(*self._some(registry, chosen))
            with self.on_server(chosen) as there:
                values = {"server": chosen, "salt": secrets.token_urlsafe(24), "revision": None}
                if found is None:
                    tenant_server.refuse_unknown(there, chosen, name)
                    registry.execute(insert(tenant).values(name=name, state=TenantState.ADDING, **values))
                else:
                    change(registry, name, **values)
                try:
                    self.remove_from(there, chosen, name)
                    self.create(there, chosen, name, str(values["salt"]))
                    revision = self.migrate(chosen, name, "head")
                except BaseException as error:
                    self._undo_adding(registry, name, chosen, error)
                    raise
            return change(registry, name, state=TenantState.ACTIVE, revision=revision)

    def suspend(self, name: str) -> Placement:
        """Stop serving a tenant: its sessions end at once, its data stays."""
        with self.lock(name) as registry:
            found = expect(registry, name, TenantState.ACTIVE, TenantState.SUSPENDED)
            with self.on_server(found.server) as there:
                # In the registry first, so that no process is sent to the database any more.
                suspended = change(registry, name, state=TenantState.SUSPENDED, epoch=epochs.next_value())
                tenant_server.close_database(there, name)
            return suspended

    def resume(self, name: str) -> Placement:
        """Serve a suspended tenant again; the role of one that is served may log in afterwards, too."""
        with self.lock(name) as registry:
            found = expect(registry, name, TenantState.SUSPENDED, TenantState.ACTIVE)
            with self.on_server(found.server) as there:
                tenant_server.open_database(there, name)
            return change(registry, name, state=TenantState.ACTIVE, epoch=epochs.next_value())

    def drop(self, name: str, *, force: bool = False) -> None:
        """Delete a tenant and all its data.

        Args:
            name: name of the tenant.
            force: also if it is served.
        """
        with self.lock(name) as registry:
            found = expect(registry, name, *TenantState)
            with self.on_server(found.server) as there:
                if found.state is TenantState.ACTIVE and not force:
                    query = text("SELECT count(*) FROM pg_stat_activity WHERE usename = :name")
                    count = there.scalar(query, {"name": database_of(name)})
                    raise TenantError(
                        f"{name} is served, with {count} session(s) now: suspend it first, or drop it with --force"
                    )
                self.remove_leftovers(registry, found)
                change(registry, name, state=TenantState.DROPPING, epoch=epochs.next_value())
                self.remove_from(there, found.server, name)
            registry.execute(delete(tenant).where(tenant.c.name == name))

    def rotate(self, name: str, *, new_secret: bool = False) -> Placement:
        """Give a tenant's role another password, and the number of connections in force; sessions go on.

        Args:
            name: name of the tenant.
            new_secret: also if the secret is another one than before. Until then the tenant cannot log in with it.
        """
        with self.lock(name) as registry:
            found = expect(registry, name, TenantState.ACTIVE, TenantState.SUSPENDED)
            if not new_secret:
                self.check_secret(found)
            salt = secrets.token_urlsafe(24)
            with self.on_server(found.server) as there, engine_for(self.registry, pinned=True).begin() as deciding:
                deciding.execution_options(**_IN_PUBLIC)
                # A process that is refused in between asks the registry, and finds the new one a moment later.
                changed = change(deciding, name, salt=salt, epoch=epochs.next_value())
                tenant_server.set_login(there, name, password_of(name, salt, self.secret), self.connections)
            return changed

    # Steps of commands.

    def create(self, there: Connection, server: str, name: str, salt: str) -> None:
        """Create a tenant's role and its empty database on a server, to which `there` is the connection."""
        owner = self.owners[server].username or ""
        tenant_server.create_role(there, name, password_of(name, salt, self.secret), self.connections)
        tenant_server.create_database(there, name, owner)
        with self.in_database(server, name) as inside:
            tenant_server.grant_privileges(inside, name, owner)

    def migrate(
        self,
        server: str,
        name: str,
        target: str,
        *,
        down: bool = False,
        contract: bool = False,
        wait: float = 0.0,
    ) -> str:
        """Migrate a tenant's database to a revision, or to `head`; return the revision, or raise `MigrationError`.

        A revision behind the one the database is at needs `down`; for the other options see `migrate.migrate`.
        """
        urls, owner_urls = {server: self.database_url(server, name)}, {server: self.owner_url(server, name)}
        with _alembic:
            return runner.migrate(
                urls,
                owner_urls=owner_urls,
                target=target,
                down=down,
                contract=contract,
                wait=wait,
                project=self.project,
            )

    def remove_leftovers(self, registry: Connection, found: Placement) -> Placement:
        """Remove what a move has left on another server, and return the placement then."""
        if found.left_on is None:
            return found
        with self.on_server(found.left_on) as there:
            self.remove_from(there, found.left_on, found.name)
        return change(registry, found.name, left_on=None)

    def remove_from(self, there: Connection, server: str, name: str) -> None:
        """Remove everything that a server, with the connection `there`, has of a tenant; sessions end."""
        database = database_of(name)
        for subscription in there.scalars(text(_SUBSCRIPTIONS), {"database": database}).all():
            with self.in_database(server, name) as connection:
                drop_subscription(connection, subscription)
        tenant_server.remove_copier(there, name)
        run(there, "DROP DATABASE IF EXISTS {} WITH (FORCE)", database)
        run(there, "DROP ROLE IF EXISTS {}", database)

    def _emptiest_server(self, registry: Connection) -> str:
        counted = select(tenant.c.server, func.count().label("number")).group_by(tenant.c.server)
        count = {row.server: int(row.number) for row in registry.execute(counted)}
        return min(self.servers, key=lambda server: (count.get(server, 0), server))

    def _some(self, registry: Connection, server: str) -> list[Placement]:
        """Return up to three tenants that are served, those of a server first."""
        served = PLACEMENTS.where(tenant.c.state.in_((TenantState.ACTIVE, TenantState.SUSPENDED)))
        chosen = served.order_by(tenant.c.server != server, tenant.c.name).limit(3)
        return [placement_of(row) for row in registry.execute(chosen)]

    def _undo_adding(self, registry: Connection, name: str, server: str, error: BaseException) -> None:
        try:
            with self.on_server(server) as there:
                self.remove_from(there, server, name)
            registry.execute(delete(tenant).where(tenant.c.name == name))
        except (Unreachable, DBAPIError):
            raise TenantError(
                f"{name} could not be added: {first_line(error)}. {server} does not answer any more, so remains of it "
                f"may be there: it is listed as adding; add it again, or drop it, when {server} is back"
            ) from error
        if isinstance(error, DBAPIError | MigrationError | TopologyError):
            raise TenantError(f"{name} could not be added, and nothing is left of it: {first_line(error)}") from error


def drop_subscription(connection: Connection, name: str) -> None:
    """Drop a subscription and leave its slot on the other server, which need not answer."""
    run(connection, "ALTER SUBSCRIPTION {} DISABLE", name)
    run(connection, "ALTER SUBSCRIPTION {} SET (slot_name = NONE)", name)
    run(connection, "DROP SUBSCRIPTION {}", name)


def look_up(registry: Connection, name: str) -> Placement:
    """Return the placement of a tenant, or raise `TenantError`."""
    if (found := _find(registry, name)) is None:
        raise TenantError(f"there is no tenant {quoted(name)}")
    return found


def expect(registry: Connection, name: str, *states: TenantState) -> Placement:
    """Return the placement of a tenant; raise `TenantError` if its state is another one, or a move did not end."""
    found = look_up(registry, name)
    if found.target is not None:
        raise TenantError(
            f"{name} is on its way from {found.server} to {found.target}, and the move did not end: move it again, or "
            "take the move back with --undo"
        )
    if found.state not in states:
        raise TenantError(f"{name} is {found.state}, not {' or '.join(states)}")
    return found


def change(registry: Connection, name: str, **values: object) -> Placement:
    """Change the registry's row of a tenant, and return the tenant's placement."""
    registry.execute(update(tenant).where(tenant.c.name == name).values(**values))
    return look_up(registry, name)


def _find(registry: Connection, name: str) -> Placement | None:
    row = registry.execute(PLACEMENTS.where(tenant.c.name == name)).one_or_none()
    return placement_of(row) if row else None


_SUBSCRIPTIONS = """
    SELECT subname FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid WHERE d.datname = :database
"""
