"""Move a tenant to another server while it is used.

Its rows are copied by logical replication and compared with the source, which may take long and stops nobody. Then, for
a moment:

1. writers wait: every table is locked, as soon as the transactions that write have committed;
2. the last of their rows arrive on the other server;
3. the old database refuses its tenant's logins, and ends its sessions, which have nothing to lose;
4. the registry gets the other server as the tenant's place. This one commit decides the move.

So no two places ever take writes, and an acknowledged write is in the place that goes on. If a move is interrupted, the
registry has the tenant's place and shows that the move did not end: the same command starts it anew, `--undo` takes it
back, and after the decision only the old copy is left to remove.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ..db.retry import first_line, sqlstate_of
from ..db.tenants.placement import Placement, TenantState, check_name, database_of
from ..db.tenants.registry import epochs, tenant
from . import tenant_server
from .connections import Unreachable, connect_all, engine_for, unlogged, verification
from .migrate import differences, read_schema, version_of
from .provisioning import DATABASE_TIMEOUT, FAILURES, TenantAdmin, change, drop_subscription, look_up
from .rows import Comparer, Comparison, ComparisonError
from .tenant_server import TenantError, run
from .topology import Topology

PUBLICATION = "move"

MAX_PAUSE = 3.0
"""Longest time that writers wait, in seconds; the `lock_timeout` of an application is 5 s."""

LOCK_TIMEOUT = 0.8
"""Seconds that the locks may take: less than `deadlock_timeout` (1 s), so that the move gives way in a deadlock."""

SLOT_TIMEOUT = 60.0
"""Seconds that a copy waits for the transactions that began before it. Arbitrary."""

CATCHUP_TIMEOUT = 30.0
"""Seconds within which the copy has to catch up while writers do not wait. Arbitrary."""

SWITCH_ATTEMPTS = 20
"""Number of attempts at the last step; with the pauses between them they take about half a minute."""

STEPS = ("record", "create", "publish", "copy", "compare", "lock", "close", "switch", "release", "clean")
"""Steps of a move, in order; each is reported before it is taken."""


@dataclass(frozen=True)
class Moved:
    """A move that was made; durations are in seconds."""

    name: str
    source: str
    target: str
    seconds: float
    pause: float
    """Time from the lock to the change of the registry, in which writers waited."""
    left: str | None = None
    """Reason why the old copy could not be removed; None if it was."""


def move(
    admin: TenantAdmin,
    name: str,
    target: str,
    *,
    max_pause: float = MAX_PAUSE,
    on_step: Callable[[str], None] = lambda step: None,
) -> Moved:
    """Move a tenant to another server, or finish a move that was interrupted.

    Args:
        admin: the tenants' admin.
        name: name of the tenant.
        target: name of the server.
        max_pause: longest time that writers wait, in seconds; a switch that would take longer is tried again later.
        on_step: called with each of `STEPS` before it is taken.

    Raises:
        TenantError: the tenant cannot be moved, and is where it was.
        Unreachable: a server does not answer, and nothing has changed.
    """
    started = time.monotonic()
    check_name(name)
    admin.server(target)
    with admin.lock(name) as registry:
        found = look_up(registry, name)
        if found.state not in (TenantState.ACTIVE, TenantState.SUSPENDED):
            raise TenantError(f"{name} is {found.state}: only a tenant that was added completely can move")
        was_unfinished = found.target is not None or found.left_on is not None
        found = _end_earlier_move(admin, registry, found)
        if found.server == target:
            if was_unfinished:
                return Moved(name, target, target, time.monotonic() - started, 0.0)
            raise TenantError(f"{name} is on {target} already")
        attempt = _Move(admin, registry, found, target, max_pause, on_step)
        attempt.check()
        try:
            attempt.copy()
            attempt.compare()
            pause = attempt.switch()
        except BaseException as error:
            if not attempt.is_decided:
                _give_up(attempt, error)
            raise
        left = None
        try:
            on_step("clean")
            attempt.clean()
        except FAILURES as error:
            left = first_line(error)
        return Moved(name, found.server, target, time.monotonic() - started, pause, left)


def undo(admin: TenantAdmin, name: str) -> Placement:
    """Take back a move that did not end; if it was decided, remove what is left on the old server."""
    with admin.lock(name) as registry:
        found = look_up(registry, name)
        if found.target is None and found.left_on is None:
            raise TenantError(f"no move of {name} is unfinished: it is on {found.server}")
        return _end_earlier_move(admin, registry, found)


def _end_earlier_move(admin: TenantAdmin, registry: Connection, found: Placement) -> Placement:
    return admin.remove_leftovers(registry, _take_back(admin, registry, found) if found.target else found)


def _take_back(admin: TenantAdmin, registry: Connection, found: Placement) -> Placement:
    """Serve a tenant where it was before a move that was not decided; the target need not answer."""
    with admin.on_server(found.server) as source:
        tenant_server.remove_copier(source, found.name)
        with admin.in_database(found.server, found.name) as connection:
            run(connection, "DROP PUBLICATION IF EXISTS {}", PUBLICATION)
        if found.state is TenantState.ACTIVE:
            tenant_server.open_database(source, found.name)
    taken = change(registry, found.name, target=None, target_salt=None, left_on=found.target)
    try:
        return admin.remove_leftovers(registry, taken)
    except Unreachable:
        # The next command on the tenant removes what is left there.
        return taken


def _give_up(attempt: "_Move", error: BaseException) -> None:
    name, server, reason = attempt.name, attempt.source, first_line(error) or type(error).__name__
    try:
        found = look_up(attempt.registry, name)
        taken = _take_back(attempt.admin, attempt.registry, found) if found.target else found
    except FAILURES as trouble:
        raise TenantError(
            f"{name} could not be moved: {reason}. Nor could that be taken back: {first_line(trouble)}. It is on "
            f"{server}, and listed as on its way: move it again, or take the move back with --undo, when the servers "
            "answer"
        ) from error
    if isinstance(error, FAILURES):
        left = f"; what was copied is left on {taken.left_on}, and removed by the next move" if taken.left_on else ""
        raise TenantError(f"{name} could not be moved, and is on {server} as before{left}: {reason}") from error


@dataclass
class _Move:
    admin: TenantAdmin
    registry: Connection
    """Connection to the registry, with the tenant's lock."""
    found: Placement
    target: str
    max_pause: float
    on_step: Callable[[str], None]
    is_decided: bool = False

    def __post_init__(self) -> None:
        self.name, self.source = self.found.name, self.found.server
        self.copier = tenant_server.copier_of(self.name)
        self.tables: list[str] = []
        self.undecided: list[str] = []

    def check(self) -> None:
        """Refuse a move that cannot succeed, before anything changes."""
        with self.admin.on_server(self.target) as there:
            tenant_server.refuse_unknown(there, self.target, self.name)
        self.admin.check_secret(self.found)
        with self.admin.in_database(self.source, self.name) as here:
            if (level := here.scalar(text("SHOW wal_level"))) != "logical":
                raise TenantError(f"{self.source} has wal_level = {level}; a move needs `logical` there")
            unreplicable = Topology({self.source: here}).unreplicable_tables(here)
            problems = [f"table {table}: {reason}" for table, reason in unreplicable]
            problems += [
                f"table {table} has no primary key: `ALTER TABLE … REPLICA IDENTITY FULL` lets it move without one"
                for table, is_identified in here.execute(text(_TABLES))
                if not is_identified
            ]
            if here.scalar(text("SELECT EXISTS (SELECT FROM pg_largeobject_metadata)")):
                problems.append("it has large objects, which logical replication does not copy")
            if problems:
                raise TenantError(f"{self.name} cannot be moved: {'; '.join(problems)}")

    def copy(self) -> None:
        """Copy all rows to the target, and keep the copy up to date."""
        self.on_step("record")
        salt = secrets.token_urlsafe(24)
        change(self.registry, self.name, target=self.target, target_salt=salt)
        self.on_step("create")
        self._create_target(salt)
        self.on_step("publish")
        conninfo = self._publish()
        self.on_step("copy")
        self._subscribe(conninfo)

    def _create_target(self, salt: str) -> None:
        with self.admin.as_owner(self.source, self.name) as here:
            revision = version_of(here) or "base"
            schema = read_schema(here)
        with self.admin.on_server(self.target) as there:
            self.admin.create(there, self.target, self.name, salt)
            if self.found.state is TenantState.SUSPENDED:
                tenant_server.close_database(there, self.name)
        self.admin.migrate(self.target, self.name, revision)
        with self.admin.as_owner(self.target, self.name) as there:
            if unlike := differences({self.source: schema, self.target: read_schema(there)}):
                raise TenantError(f"its schema is not the one that the migrations make: {'; '.join(unlike[:5])}")
            # The copy brings what migrations inserted.
            if tables := _tables(there):
                there.exec_driver_sql(f"TRUNCATE {', '.join(tables)}")

    def _publish(self) -> str:
        """Let the target copy all tables; return the connection string for it."""
        password = secrets.token_urlsafe(24)
        with self.admin.in_database(self.source, self.name) as here:
            secret = tenant_server.verifier(here, self.copier, password)
            run(here, "CREATE ROLE {} LOGIN REPLICATION PASSWORD {secret}", self.copier, secret=secret)
            run(here, "GRANT {} TO {}", database_of(self.name), self.copier)
            self.tables = _tables(here)
            published = f"FOR TABLE {', '.join(self.tables)}" if self.tables else ""
            here.exec_driver_sql(f"CREATE PUBLICATION {PUBLICATION} {published}")
            _create_slot(here, self.copier)
            login = {"user": self.copier, "password": password, "application_name": self.copier, "connect_timeout": "5"}
            with self.admin.on_server(self.target) as there:
                address = _address(self.admin.server(self.source), here, there)
            return make_conninfo(dbname=database_of(self.name), **address, **login)

    def _subscribe(self, conninfo: str) -> None:
        """Start the copy, and wait until all rows have arrived once."""
        with self.admin.in_database(self.target, self.name) as there:
            # The slot exists already: two servers that copy from each other would wait for each other's, for ever.
            names = map(sql.Identifier, (self.copier, PUBLICATION))
            driver: Any = there.connection.driver_connection
            statement = sql.SQL(_SUBSCRIBE).format(*names, conninfo=conninfo, slot=self.copier)
            try:
                # Past SQLAlchemy, whose errors quote the statement.
                with unlogged(driver):
                    driver.execute(statement)
            except psycopg.Error as error:
                advice = ""
                if "certificate" in str(error):
                    advice = f"; `peer.sslrootcert` of {self.target} names the root certificate there"
                raise TenantError(
                    f"{self.target} cannot copy from {self.source}: {first_line(error)}{advice}"
                ) from None
            while waiting := list(there.scalars(text(_NOT_COPIED))):
                if there.scalar(text(_FAILS), {"name": self.copier}):
                    raise TenantError(f"{self.target} fails to copy {', '.join(waiting)}; its log file has the reason")
                time.sleep(0.01)

    def compare(self) -> None:
        """Refuse a copy whose rows are not those of the source; writers go on, and what they write follows."""
        self.on_step("compare")
        with self.admin.in_database(self.source, self.name) as here:
            results = self._compare(here, timeout=DATABASE_TIMEOUT)
        self._refuse([result for result in results if result.differences])
        # Rows without a key cannot be looked at again one by one, so these are compared while writers wait.
        self.undecided = [result.table for result in results if result.problem]

    def _compare(self, here: Connection, names: Sequence[str] = (), *, timeout: float) -> list[Comparison]:
        """Compare tables, by default all; `timeout` is the time limit of a statement in seconds."""
        urls = {server: self.admin.owner_url(server, self.name) for server in (self.source, self.target)}
        wait = partial(self._wait_for_catchup, here, timeout=CATCHUP_TIMEOUT)
        try:
            with connect_all(urls, statement_timeout=timeout) as connections:
                comparer = Comparer(connections, wait_for_catchup=wait, most=5)
                return [comparer.compare(table) for table in comparer.tables(names)]
        except ComparisonError as error:
            raise TenantError(f"its copy cannot be compared: {error}") from error

    def _refuse(self, results: Sequence[Comparison]) -> None:
        if lines := [line for result in results for line in result.findings]:
            raise TenantError(f"its copy is not the same: {'; '.join(lines)}")

    def switch(self) -> float:
        """Make the target the tenant's place; return the seconds for which writers waited."""
        engine = engine_for(self.admin.owner_url(self.source, self.name), statement_timeout=0)
        with self.admin.in_database(self.source, self.name) as here:
            self._wait_for_catchup(here, timeout=CATCHUP_TIMEOUT)
            for _ in range(SWITCH_ATTEMPTS):
                self.on_step("lock")
                began = time.monotonic()
                with engine.connect() as locking:
                    if not _lock_tables(locking, _tables(here)):
                        # Writers that queue behind the lock come first.
                        locking.rollback()
                        time.sleep(0.2)
                        continue
                    try:
                        self._wait_for_catchup(here, timeout=max(0.0, began + self.max_pause - time.monotonic()))
                    except TenantError:
                        locking.rollback()
                        self._wait_for_catchup(here, timeout=CATCHUP_TIMEOUT)
                        continue
                    self._decide(here)
                    pause = time.monotonic() - began
                    self.on_step("release")
                return pause
        raise TenantError(
            f"its transactions leave no moment to switch, of {SWITCH_ATTEMPTS} tries none got all its tables within "
            f"{LOCK_TIMEOUT} s: look for a long one in `pg_stat_activity`"
        )

    def _decide(self, here: Connection) -> None:
        """Close the database on the source and record the target as its place, while writers wait."""
        if late := sorted({*_tables(here)} - {*self.tables}):
            raise TenantError(f"{', '.join(late)} was made while it was being copied: move it again")
        if self.undecided:
            self._refuse(self._compare(here, self.undecided, timeout=self.max_pause))
        # Replication leaves sequences alone.
        if sequences := here.execute(text(_SEQUENCES)).all():
            with self.admin.as_owner(self.target, self.name) as there:
                for sequence in sequences:
                    there.execute(text("SELECT setval(CAST(:name AS regclass), :value)"), sequence._asdict())
        self.on_step("close")
        tenant_server.close_database(here, self.name)
        self.on_step("switch")
        place = {"server": self.target, "salt": tenant.c.target_salt, "left_on": self.source}
        change(self.registry, self.name, **place, target=None, target_salt=None, epoch=epochs.next_value())
        self.is_decided = True

    def clean(self) -> None:
        """Remove the copy's subscription and everything that the source has of the tenant."""
        with self.admin.in_database(self.target, self.name) as there:
            drop_subscription(there, self.copier)
        self.admin.remove_leftovers(self.registry, look_up(self.registry, self.name))

    def _wait_for_catchup(self, here: Connection, *, timeout: float) -> None:
        """Wait until the target has all that was committed before the call, or raise after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        # Flushes commits that did not wait for the disk, because only flushed WAL is sent.
        here.execute(text("SELECT pg_logical_emit_message(true, 'move', '')"))
        sent = {"position": here.scalar(text("SELECT pg_current_wal_flush_lsn()")), "name": self.copier}
        next_ping = time.monotonic() + 0.5
        while not here.scalar(text(_HAS_ARRIVED), sent):
            now = time.monotonic()
            if now > deadline:
                raise TenantError(f"{self.target} does not keep up with {self.source}; its log file may say why")
            if now > next_ping:
                next_ping = now + 0.5
                with self.admin.on_server(self.target) as there:
                    there.execute(text("SELECT 1"))
            time.sleep(0.001)


def _tables(connection: Connection) -> list[str]:
    return list(connection.scalars(text(_TABLES)))


def _create_slot(connection: Connection, name: str) -> None:
    """Create the slot from which a copy starts; it waits for the transactions that write at this moment."""
    connection.exec_driver_sql(f"SET statement_timeout = {round(SLOT_TIMEOUT * 1000)}")
    connection.exec_driver_sql("SET lock_timeout = 0")
    try:
        connection.execute(text("SELECT pg_create_logical_replication_slot(:name, 'pgoutput')"), {"name": name})
    except DBAPIError as error:
        if sqlstate_of(error) != "57014":
            raise
        raise TenantError(
            f"a copy begins between transactions, and one on its server did not end within {SLOT_TIMEOUT:g} s: "
            "`pg_stat_activity` shows it"
        ) from error


def _lock_tables(connection: Connection, tables: Sequence[str]) -> bool:
    """Lock all tables against writers, not readers; return False if that takes too long."""
    try:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(LOCK_TIMEOUT * 1000)}")
        if tables:
            connection.exec_driver_sql(f"LOCK TABLE {', '.join(tables)} IN EXCLUSIVE MODE")
    except DBAPIError as error:
        if sqlstate_of(error) not in ("55P03", "40P01"):
            raise
        return False
    return True


def _address(url: URL, here: Connection, there: Connection) -> dict[str, str]:
    """Return the parameters with which the server `there` reaches the server `here`, and verifies it as `url` asks.

    The address is that of the URL, or `here` of the setting `peer.address`; the file with the root certificate is that
    of the URL, or `there` of the setting `peer.sslrootcert`.
    """
    address = here.scalar(text("SELECT current_setting('peer.address', true)"))
    host, _, port = address.rpartition(":") if address else (url.host or "", "", str(url.port or 5432))
    driver: Any = there.connection.driver_connection
    return {"host": host, "port": port, **verification(url, driver)}


# All tables but Alembic's, which the target's own migrations fill; and whether a row can be identified.
_TABLES = """
    SELECT format('%I.%I', n.nspname, c.relname), c.relreplident NOT IN ('n', 'd') OR c.relreplident = 'd' AND EXISTS (
        SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary
    )
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND c.relname <> 'alembic_version'
    ORDER BY 1
"""

_SUBSCRIBE = """
    CREATE SUBSCRIPTION {} CONNECTION {conninfo} PUBLICATION {}
    WITH (create_slot = false, slot_name = {slot}, synchronous_commit = 'local')
"""

_NOT_COPIED = "SELECT srrelid::regclass::text FROM pg_subscription_rel WHERE srsubstate <> 'r' ORDER BY 1"

# Two errors may come from a server that restarts; a third one is the same row failing again.
_FAILS = """
    SELECT coalesce(sum(apply_error_count + sync_error_count), 0) > 2 FROM pg_stat_subscription_stats
    WHERE subname = :name
"""

_HAS_ARRIVED = "SELECT bool_or(replay_lsn >= :position) FROM pg_stat_replication WHERE application_name = :name"

_SEQUENCES = """
    SELECT format('%I.%I', schemaname, sequencename) AS name, last_value AS value
    FROM pg_sequences WHERE last_value IS NOT NULL AND schemaname !~ '^pg_'
"""
