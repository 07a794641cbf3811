"""A tenant moves to another server while it is being used.

Its rows are copied by logical replication, which takes as long as it takes and stops nobody. Then, for a moment:

1. writers are held up: every table is locked, once whoever writes has committed;
2. what they committed arrives on the other server;
3. the old database refuses its tenant's logins, and ends its sessions, of which none has anything to lose;
4. the registry says that the tenant is on the other server. This is the one commit that decides.

So no moment has two places that take writes, and a write that was acknowledged is in the place that goes on. Whatever ends this program, and
whenever, the registry says where the tenant is and that a move did not end: the same command begins it anew, `--undo` takes it
back, and after the decision there is only the old copy left to remove.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.conninfo import make_conninfo
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ..db.registry import Placement, State, checked_name, database_of, epochs
from ..db.retry import first_line, sqlstate_of
from .connections import Unreachable
from .migrate import version_of
from .provisioning import (
    Registrar,
    TenantError,
    change,
    close_database,
    copier_of,
    end_copying,
    exists,
    look_up,
    make_database,
    make_role,
    open_database,
    run,
    verifier,
)
from .schema import differences, read_schema
from .statements import MigrationError
from .topology import TopologyError, unreplicable_tables

PUBLICATION = "move"

LONGEST_PAUSE = 3.0
"""Seconds that writers are held up at most, else the move waits for a better moment; an application's own lock_timeout is 5."""

LOCK_TIMEOUT = 0.8
"""Seconds that the locks may take: shorter than deadlock_timeout (1 s), so that it is the move that gives way."""

BEGINNING = 60.0
"""Seconds that a copy waits for the transactions that were there before it. Arbitrary."""

ATTEMPTS = 20
"""At the last step, before the move is given up: with pauses between them about half a minute."""

STEPS = ("note", "make", "publish", "copy", "hold", "close", "switch", "release", "clean")
"""In their order; each is named before it is taken."""


@dataclass(frozen=True)
class Moved:
    """A move that was made. Durations in seconds."""

    name: str
    source: str
    target: str
    seconds: float
    pause: float
    """From when writers were held up to when the registry sent them to the other server."""
    left: str | None = None
    """Why something is left on the old server, if it is."""


def move(
    registrar: Registrar,
    name: str,
    target: str,
    *,
    longest_pause: float = LONGEST_PAUSE,
    on_step: Callable[[str], None] = lambda step: None,
) -> Moved:
    """Move a tenant to another server.

    Args:
        registrar: who may.
        name: of the tenant.
        target: the server.
        longest_pause: how many seconds writers are held up at most.
        on_step: is told of each of `STEPS` before it is taken.

    Raises:
        TenantError: it cannot be moved, and is where it was.
        Unreachable: a server does not answer, and nothing has changed.
    """
    started = time.monotonic()
    checked_name(name)
    registrar.server(target)
    with registrar.alone(name) as registry:
        found = look_up(registry, name)
        if found.state not in (State.ACTIVE, State.SUSPENDED):
            raise TenantError(f"{name} is {found.state}: only a tenant that was added completely can move")
        was_unfinished = found.target is not None or found.left_on is not None
        if found.target is not None:
            found = take_back(registrar, registry, found)
        found = registrar.clear(registry, found)
        if found.server == target:
            if was_unfinished:
                return Moved(name, target, target, time.monotonic() - started, 0.0)
            raise TenantError(f"{name} is on {target} already")
        attempt = _Move(registrar, registry, found, target, longest_pause, on_step)
        attempt.check()
        try:
            attempt.copy()
            pause = attempt.switch()
        except BaseException as error:
            if not attempt.switched:
                _give_up(attempt, error)
            raise
        left = None
        try:
            on_step("clean")
            attempt.clean()
        except (Unreachable, DBAPIError, TenantError) as error:
            left = first_line(error)
        return Moved(name, found.server, target, time.monotonic() - started, pause, left)


def undo(registrar: Registrar, name: str) -> Placement:
    """Take back a move that did not end; after its decision, remove what is left on the old server.

    Raises:
        TenantError: no move of this tenant is unfinished.
        Unreachable: a server does not answer.
    """
    with registrar.alone(name) as registry:
        found = look_up(registry, name)
        if found.target is not None:
            return registrar.clear(registry, take_back(registrar, registry, found))
        if found.left_on is not None:
            return registrar.clear(registry, found)
        raise TenantError(f"no move of {name} is unfinished: it is on {found.server}")


def take_back(registrar: Registrar, registry: Connection, found: Placement) -> Placement:
    """Serve a tenant where it was before a move that was not decided.

    Raises:
        Unreachable: the server where it was does not answer. One that it was to go to need not.
    """
    with registrar.on_server(found.server) as source:
        end_copying(source, found.name)
        with registrar.in_database(found.server, found.name) as connection:
            run(connection, "DROP PUBLICATION IF EXISTS {}", PUBLICATION)
        if found.state is State.ACTIVE:
            open_database(source, found.name)
    change(registry, found.name, target=None, target_password=None, left_on=found.target)
    taken = look_up(registry, found.name)
    try:
        return registrar.clear(registry, taken)
    except Unreachable:
        # Listed as left there, and removed by whichever command comes next.
        return taken


def _give_up(attempt: "_Move", error: BaseException) -> None:
    found = attempt.found
    reason = first_line(error) or type(error).__name__
    try:
        taken = take_back(attempt.registrar, attempt.registry, look_up(attempt.registry, found.name))
    except (Unreachable, DBAPIError, TenantError) as trouble:
        raise TenantError(
            f"{found.name} could not be moved: {reason}. Nor could that be taken back: {first_line(trouble)}. It is on {found.server}, and "
            f"listed as on its way: move it again, or take that back with --undo, when the servers answer"
        ) from error
    left = f"; what was copied is left on {taken.left_on}, and removed by the next move" if taken.left_on else ""
    if isinstance(error, TenantError | Unreachable | DBAPIError | MigrationError | TopologyError):
        raise TenantError(
            f"{found.name} could not be moved, and is on {found.server} as before{left}: {reason}"
        ) from error


@dataclass
class _Move:
    """A move under way."""

    registrar: Registrar
    registry: Connection
    """Alone with the tenant."""
    found: Placement
    target: str
    longest_pause: float
    on_step: Callable[[str], None]
    switched: bool = False

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def source(self) -> str:
        return self.found.server

    def check(self) -> None:
        """Look at all that can be known before anything is changed."""
        with self.registrar.on_server(self.target) as there:
            if exists(there, self.name):
                raise TenantError(
                    f"{self.target} has a database or a role {database_of(self.name)} that the registry does not know of: look at what it "
                    "is, and rename or drop it"
                )
        with self.registrar.in_database(self.source, self.name) as here:
            if here.scalar(text("SHOW wal_level")) != "logical":
                raise TenantError(
                    f"{self.source} has wal_level = {here.scalar(text('SHOW wal_level'))}; a move needs `logical` there"
                )
            problems = [f"table {table}: {reason}" for table, reason in unreplicable_tables(here)]
            problems += [
                f"table {table} has no primary key: `ALTER TABLE … REPLICA IDENTITY FULL` lets it move without one"
                for table in here.scalars(text(_UNIDENTIFIED))
            ]
            if here.scalar(text("SELECT EXISTS (SELECT FROM pg_largeobject_metadata)")):
                problems.append("it has large objects, which do not come along")
            if problems:
                raise TenantError(f"{self.name} cannot be moved: {'; '.join(problems)}")

    def copy(self) -> None:
        """Let the target have all rows, and keep it up to date."""
        self.on_step("note")
        password = secrets.token_urlsafe(24)
        change(self.registry, self.name, target=self.target, target_password=password)
        self.on_step("make")
        with self.registrar.in_database(self.source, self.name) as here:
            revision = version_of(here) or "base"
            schema = read_schema(here)
        with self.registrar.on_server(self.target) as there:
            make_role(there, self.name, password)
            make_database(there, self.name)
            if self.found.state is State.SUSPENDED:
                run(there, "ALTER ROLE {} NOLOGIN", database_of(self.name))
        self.registrar.bring_to(self.target, self.name, revision)
        with self.registrar.in_database(self.target, self.name) as there:
            if unlike := differences({self.source: schema, self.target: read_schema(there)}):
                raise TenantError(f"its schema is not the one that the migrations make: {'; '.join(unlike[:5])}")
            # What migrations inserted comes with the rest.
            if tables := list(there.scalars(text(_TABLES))):
                there.exec_driver_sql(f"TRUNCATE {', '.join(tables)}")
        self.on_step("publish")
        role = copier_of(self.name)
        secret = secrets.token_urlsafe(24)
        with self.registrar.in_database(self.source, self.name) as here:
            run(
                here,
                "CREATE ROLE {} LOGIN REPLICATION PASSWORD {verifier}",
                role,
                verifier=verifier(here, role, secret),
            )
            run(here, "GRANT {} TO {}", database_of(self.name), role)
            tables = list(here.scalars(text(_TABLES)))
            here.exec_driver_sql(
                f"CREATE PUBLICATION {PUBLICATION} {'FOR TABLE ' + ', '.join(tables) if tables else ''}"
            )
            _make_slot(here, role)
            address = _address(here, self.registrar.server(self.source))
        self.on_step("copy")
        conninfo = make_conninfo(
            **address,
            dbname=database_of(self.name),
            user=role,
            password=secret,
            connect_timeout=5,
            application_name=role,
        )
        with self.registrar.in_database(self.target, self.name) as there:
            # The slot is made beforehand: two servers that copy from each other would wait for each other's, for ever.
            run(
                there,
                "CREATE SUBSCRIPTION {} CONNECTION {conninfo} PUBLICATION {} "
                "WITH (create_slot = false, slot_name = {slot}, synchronous_commit = 'local')",
                role,
                PUBLICATION,
                conninfo=conninfo,
                slot=role,
            )
            while waiting := list(there.scalars(text(_NOT_COPIED))):
                if there.scalar(text(_FAILURES), {"name": role}):
                    raise TenantError(f"{self.target} fails to copy {', '.join(waiting)}; its log has the reason")
                time.sleep(0.01)

    def switch(self) -> float:
        """Send everybody to the target; for how many seconds writers were held up."""
        engine = self.registrar.engine(self.source, self.name)
        with self.registrar.in_database(self.source, self.name) as here:
            self._fence(here, timeout=30.0)
            for _ in range(ATTEMPTS):
                self.on_step("hold")
                began = time.monotonic()
                with engine.connect() as holding:
                    if not _hold(holding, list(here.scalars(text(_TABLES)))):
                        # Let through those who waited behind.
                        holding.rollback()
                        time.sleep(0.2)
                        continue
                    try:
                        self._fence(here, timeout=max(0.0, began + self.longest_pause - time.monotonic()))
                    except TenantError:
                        holding.rollback()
                        self._fence(here, timeout=30.0)
                        continue
                    if strangers := list(here.scalars(text(_NOT_PUBLISHED), {"publication": PUBLICATION})):
                        raise TenantError(f"{', '.join(strangers)} was made while it was being copied: move it again")
                    self._copy_sequences(here)
                    self.on_step("close")
                    close_database(here, self.name)
                    self.on_step("switch")
                    change(
                        self.registry,
                        self.name,
                        server=self.target,
                        password=look_up(self.registry, self.name).target_password,
                        target=None,
                        target_password=None,
                        left_on=self.source,
                        epoch=epochs.next_value(),
                    )
                    self.switched = True
                    pause = time.monotonic() - began
                    self.on_step("release")
                    holding.rollback()
                    return pause
        raise TenantError(
            f"its transactions leave no moment to switch, of {ATTEMPTS} tries none got all its tables within {LOCK_TIMEOUT} s: look for a "
            "long one in `pg_stat_activity`"
        )

    def clean(self) -> None:
        """Remove what the tenant leaves behind."""
        with self.registrar.in_database(self.target, self.name) as there:
            role = copier_of(self.name)
            run(there, "ALTER SUBSCRIPTION {} DISABLE", role)
            run(there, "ALTER SUBSCRIPTION {} SET (slot_name = NONE)", role)
            run(there, "DROP SUBSCRIPTION {}", role)
        self.registrar.clear(self.registry, look_up(self.registry, self.name))

    def _fence(self, here: Connection, *, timeout: float) -> None:
        """Return when the target has all that was committed before the call.

        Raises:
            TenantError: not within `timeout` seconds.
            Unreachable: it does not answer.
        """
        deadline = time.monotonic() + timeout
        # Flushes what was committed without waiting for the disk: nothing else is sent.
        here.execute(text("SELECT pg_logical_emit_message(true, 'move', '')"))
        position = here.scalar(text("SELECT pg_current_wal_flush_lsn()"))
        arrived = text(
            "SELECT bool_or(replay_lsn >= :position) FROM pg_stat_replication WHERE application_name = :name"
        )
        look = time.monotonic() + 0.5
        while not here.scalar(arrived, {"position": position, "name": copier_of(self.name)}):
            now = time.monotonic()
            if now > deadline:
                raise TenantError(
                    f"{self.target} does not keep up with what is written on {self.source}; its log may say why"
                )
            if now > look:
                look = now + 0.5
                # Whether it is there at all: if not, this is no matter of waiting.
                with self.registrar.on_server(self.target) as there:
                    there.execute(text("SELECT 1"))
            time.sleep(0.001)

    def _copy_sequences(self, here: Connection) -> None:
        """Let the target's sequences go on where those of the source are: replication leaves them alone."""
        found = here.execute(text(_SEQUENCES)).all()
        if found:
            with self.registrar.in_database(self.target, self.name) as there:
                for row in found:
                    there.execute(
                        text("SELECT setval(CAST(:name AS regclass), :value)"), {"name": row.name, "value": row.value}
                    )


def _make_slot(connection: Connection, name: str) -> None:
    """Make the slot from which a copy starts, once all transactions that write at this moment have ended.

    Raises:
        TenantError: they do not end.
    """
    connection.exec_driver_sql(f"SET statement_timeout = {round(BEGINNING * 1000)}")
    connection.exec_driver_sql("SET lock_timeout = 0")
    try:
        connection.execute(text("SELECT pg_create_logical_replication_slot(:name, 'pgoutput')"), {"name": name})
    except DBAPIError as error:
        if sqlstate_of(error) != "57014":
            raise
        raise TenantError(
            f"a copy begins between transactions, and one on its server did not end within {BEGINNING:g} s: `pg_stat_activity` shows it"
        ) from error


def _hold(connection: Connection, tables: Sequence[str]) -> bool:
    """Lock all tables against writers, reading goes on; False if that would have taken too long."""
    try:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(LOCK_TIMEOUT * 1000)}")
        if tables:
            connection.exec_driver_sql(f"LOCK TABLE {', '.join(tables)} IN EXCLUSIVE MODE")
    except DBAPIError as error:
        if sqlstate_of(error) not in ("55P03", "40P01"):
            raise
        return False
    return True


def _address(connection: Connection, url: URL) -> dict[str, Any]:
    """Where the other servers find this one: as its URL has it, unless it says otherwise in its setting `peer.address`."""
    said = connection.scalar(text("SELECT current_setting('peer.address', true)"))
    host, _, port = said.rpartition(":") if said else (url.host or "", "", str(url.port or 5432))
    # Certificates are files of this machine, not of the servers.
    encrypted = (
        {"sslmode": "require"} if str(url.query.get("sslmode")) in ("require", "verify-ca", "verify-full") else {}
    )
    return {"host": host, "port": port, **encrypted}


# Every table but the one that says how far the migrations are, which the target's own have filled.
_TABLES = """
    SELECT format('%I.%I', n.nspname, c.relname)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND c.relname <> 'alembic_version'
    ORDER BY 1
"""

_NOT_PUBLISHED = f"""
    SELECT name FROM ({_TABLES}) AS own (name)
    WHERE name NOT IN (SELECT format('%I.%I', schemaname, tablename) FROM pg_publication_tables WHERE pubname = :publication)
"""  # noqa: S608 - of this file

_UNIDENTIFIED = """
    SELECT format('%I.%I', n.nspname, c.relname)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND (c.relreplident = 'n' OR (c.relreplident = 'd' AND NOT EXISTS (
        SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary
      )))
    ORDER BY 1
"""

_NOT_COPIED = "SELECT srrelid::regclass::text FROM pg_subscription_rel WHERE srsubstate <> 'r' ORDER BY 1"

# One error may be a server that restarts; a second one is the same row failing again.
_FAILURES = "SELECT coalesce(sum(apply_error_count + sync_error_count), 0) > 2 FROM pg_stat_subscription_stats WHERE subname = :name"

_SEQUENCES = """
    SELECT format('%I.%I', schemaname, sequencename) AS name, last_value AS value
    FROM pg_sequences WHERE last_value IS NOT NULL AND schemaname !~ '^pg_'
"""
