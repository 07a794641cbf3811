"""The checks that only servers with a database per tenant need.

They add tenants of their own, whose names begin with `verify-`, and drop them again.
"""

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar
from uuid import uuid4

from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError

from ...db import AmbiguousCommit, DistributedSQLError, RetryPolicy, PinnedSession
from ...db.registry import Placement, State, database_of, registry_url
from ...db.tenants import Tenants, TenantSettings, is_login_refused
from ..cluster import Cluster
from ..connections import connect_all
from ..migrate import load_config, version_of
from ..moving import LONGEST_PAUSE, move
from ..provisioning import Registrar, run
from .check import Check, Finding, Status, Subject

PREFIX = "verify-"
"""Of the tenants that checks add."""

STALE = 3600
"""Seconds after which the tenants of a run that was killed may be dropped by another."""

CLOCK_SKEW = 0.5
"""Seconds by which the clocks may differ. Arbitrary: far above what NTP allows, far below what harms."""


def unproven(subject: Subject) -> Mapping[str, str]:
    """The general checks that mean nothing on this cluster, by name, each with the reason: there are none."""
    return {}


class ServersAreSetUp(Check):
    """The servers are set up for tenants.

    Correct the setting on the server that is named and restart it: without `wal_level = logical` no tenant can move away from it.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)

    def run(self, subject: Subject) -> Finding:
        """Read versions, settings and clocks."""
        wrong: list[str] = []
        versions: dict[str, str] = {}
        skews: dict[str, float] = {}
        rooms: dict[str, int] = {}
        wanted = TenantSettings().server_connections * TenantSettings().processes
        with connect_all(subject.admin_urls) as connections:
            for server, connection in connections.items():
                versions[server] = str(connection.scalar(text("SHOW server_version"))).partition(" ")[0]
                if connection.scalar(text("SHOW wal_level")) != "logical":
                    wrong.append(f"{server}: wal_level is {connection.scalar(text('SHOW wal_level'))}")
                if connection.scalar(text("SHOW password_encryption")) != "scram-sha-256":
                    wrong.append(f"{server}: password_encryption is not scram-sha-256")
                rooms[server] = int(connection.scalar(text("SELECT current_setting('max_connections')::int")) or 0)
                if wanted > rooms[server]:
                    wrong.append(f"{server}: max_connections is {rooms[server]}, and the settings allow {wanted}")
                before = time.time()
                theirs = float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())::float8")) or 0)
                skews[server] = round(theirs - (before + time.time()) / 2, 3)
        if max(skews.values()) - min(skews.values()) > CLOCK_SKEW:
            wrong.append(f"the clocks differ by more than {CLOCK_SKEW} s: {skews}")
        evidence = {"versions": versions, "max_connections": rooms, "clock_skew_s": skews}
        if wrong:
            return Finding(Status.FAIL, "; ".join(wrong), evidence)
        version = next(iter(versions.values()))
        return Finding(Status.PASS, f"PostgreSQL {version}, {wanted} of {min(rooms.values())} connections", evidence)


class TheRegistryIsTrue(Check):
    """The registry is true.

    `tenants list` shows what did not end; `tenants move`, `add` or `drop` of the same tenant ends it. A database that no tenant has is to be looked at.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)
    limit: ClassVar[float] = 30.0

    def run(self, subject: Subject) -> Finding:
        """Compare what the registry says with what every server has."""
        registrar = registrar_of(subject)
        drop_stale(registrar)
        found = registrar.all()
        wrong = []
        there: dict[str, set[str]] = {}
        closed: dict[str, set[str]] = {}
        for server in registrar.servers:
            with registrar.on_server(server) as connection:
                there[server] = set(connection.scalars(text("SELECT datname FROM pg_database")))
                closed[server] = set(connection.scalars(text("SELECT rolname FROM pg_roles WHERE NOT rolcanlogin")))
        for one in found:
            database = database_of(one.name)
            if one.server not in there:
                wrong.append(f"{one.name} is on {one.server}, which is not configured")
            elif one.state in (State.ACTIVE, State.SUSPENDED) and database not in there[one.server]:
                wrong.append(f"{one.name} has no database on {one.server}")
            elif one.state is State.ACTIVE and database in closed[one.server]:
                wrong.append(f"{one.name} is active, and {one.server} does not let it in")
            if one.target or one.left_on or one.state in (State.ADDING, State.DROPPING):
                wrong.append(f"{one.name} is unfinished: {unfinished(one)}")
        known = {(server, database_of(one.name)) for one in found for server in (one.server, one.target, one.left_on)}
        for server, databases in there.items():
            wrong += [
                f"{server} has {database}, which no tenant has"
                for database in sorted(databases)
                if database.startswith("t_") and (server, database) not in known
            ]
        evidence = {server: sum(one.server == server for one in found) for server in registrar.servers}
        if wrong:
            more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            return Finding(Status.FAIL, "; ".join(wrong[:5]) + more, {"tenants": evidence, "wrong": wrong})
        spread = ", ".join(f"{count} on {server}" for server, count in evidence.items())
        return Finding(Status.PASS, f"{len(found)} tenants: {spread}", {"tenants": evidence})


class EveryTenantHasTheSchema(Check):
    """Every tenant has the newest schema.

    `tenants migrate` brings those that are behind to it, and names those that it cannot.
    """

    requires: ClassVar[tuple[str, ...]] = ("TheRegistryIsTrue",)
    limit: ClassVar[float] = 60.0

    SAMPLE: ClassVar[int] = 50
    """So many databases are asked themselves; of the others the registry is believed."""

    def run(self, subject: Subject) -> Finding:
        """Ask the registry of all, and some of the databases."""
        head = ScriptDirectory.from_config(load_config(subject.project)).get_current_head()
        registrar = registrar_of(subject)
        served = [one for one in registrar.all() if one.state in (State.ACTIVE, State.SUSPENDED)]
        behind = [f"{one.name} is at {one.revision or 'an unknown revision'}" for one in served if one.revision != head]
        asked = subject.random("schema").sample(served, min(self.SAMPLE, len(served)))
        for one in asked:
            with registrar.in_database(one.server, one.name) as connection:
                version = version_of(connection)
            if version != one.revision and one.revision is not None:
                behind.append(f"{one.name} is at {version}, and the registry says {one.revision}")
        if behind:
            more = f"; and {len(behind) - 5} more" if len(behind) > 5 else ""
            return Finding(Status.FAIL, f"newest is {head}: {'; '.join(behind[:5])}{more}", {"behind": behind})
        return Finding(Status.PASS, f"{len(served)} tenants at {head}, {len(asked)} of them asked")


class TenantsAreKeptApart(Check):
    """Tenants are kept apart.

    `REVOKE CONNECT ON DATABASE … FROM PUBLIC`; `tenants add` does so for the databases it makes.
    """

    requires: ClassVar[tuple[str, ...]] = ("TheRegistryIsTrue",)
    limit: ClassVar[float] = 60.0

    SAMPLE: ClassVar[int] = 20
    """To so many databases of each server the role tries to connect; of all others the server is asked whether it may."""

    def run(self, subject: Subject) -> Finding:
        """Let a tenant's role try the other databases of its server; then open one, to show that this would be seen."""
        registrar = registrar_of(subject)
        opened: list[str] = []
        tried = asked = 0
        with probes(registrar, *registrar.servers) as found:
            for probe in found:
                url = probe.url(registrar.servers[probe.server])
                if not _may_connect(url):
                    return Finding(
                        Status.FAIL, f"the role of a tenant may not connect to its own database on {probe.server}"
                    )
                with registrar.on_server(probe.server) as connection:
                    rows = connection.execute(text(_RIGHTS), {"own": database_of(probe.name)})
                    rights = {str(database): bool(may) for database, may in rows}
                sample = subject.random("apart", probe.server).sample(sorted(rights), min(self.SAMPLE, len(rights)))
                asked, tried = asked + len(rights), tried + len(sample)
                entered = {database for database in sample if _may_connect(url.set(database=database))}
                entered |= {database for database, may in rights.items() if may}
                opened += [f"{database} on {probe.server}" for database in sorted(entered)]
            last = database_of(found[-1].name)
            with registrar.on_server(found[-1].server) as connection:
                # The connection itself is refused as long as this is so, and not for another reason.
                run(connection, "REVOKE CONNECT ON DATABASE {} FROM {}", last, last)
                refused = not _may_connect(url)
                run(connection, "GRANT CONNECT ON DATABASE {} TO PUBLIC", last)
                seen = refused and _may_connect(url)
        evidence = {"asked": asked, "tried": tried, "opened": opened}
        if opened:
            return Finding(Status.FAIL, f"the role of a tenant may connect to {', '.join(opened)}", evidence)
        if not seen:
            return Finding(
                Status.FAIL, "a database that was opened on purpose was not seen: this proves nothing", evidence
            )
        return Finding(Status.PASS, f"refused at all {asked} other databases, {tried} of them tried", evidence)


class AMoveLosesNothing(Check):
    """A tenant moves while it is used, and loses nothing.

    The servers must reach each other: by the addresses in their URLs, or by what each says in its setting `peer.address`.
    """

    requires: ClassVar[tuple[str, ...]] = ("ServersAreSetUp", "TheRegistryIsTrue")
    limit: ClassVar[float] = 120.0

    WRITERS: ClassVar[int] = 3

    def run(self, subject: Subject) -> Finding:
        """Write without a break while a tenant goes from server to server, then look for every row."""
        registrar = registrar_of(subject)
        servers = list(registrar.servers)
        if len(servers) == 1:
            return Finding(Status.SKIP, "there is no other server")
        route = [*servers[1:], servers[0]]
        with probes(registrar, servers[0]) as (probe,), tenants_of(subject) as db:
            load = Load(db, probe.name, self.WRITERS)
            with load:
                pauses = {server: move(registrar, probe.name, server).pause for server in route}
            found = db.using(tenant=probe.name).read(_names)
            lost = load.acknowledged - found
            # The control: what is not there is missed.
            db.using(tenant=probe.name).run(_forget, next(iter(load.acknowledged), ""))
            seen = load.acknowledged - db.using(tenant=probe.name).read(_names)
        evidence = {
            "acknowledged": len(load.acknowledged),
            "ambiguous": len(load.doubtful),
            "failed": load.failed[:5],
            "pause_ms": {server: round(1000 * pause, 1) for server, pause in pauses.items()},
        }
        if lost or load.failed:
            what = f"{len(lost)} of {len(load.acknowledged)} acknowledged writes lost, {len(load.failed)} failed"
            return Finding(Status.FAIL, f"{what}{': ' + load.failed[0] if load.failed else ''}", evidence)
        if not seen:
            return Finding(
                Status.FAIL, "a row that was taken away on purpose was not missed: this proves nothing", evidence
            )
        longest = max(pauses.values())
        status = Status.PASS if longest < LONGEST_PAUSE else Status.WARN
        said = f"{len(route)} moves, {len(load.acknowledged)} acknowledged writes, none lost, longest pause {1000 * longest:.0f} ms"
        return Finding(status, said, evidence)


class AServerThatIsLostIsMissedByItsOwn(Check):
    """The loss of a server is felt by its own tenants only, and they lose nothing.

    The log of the server that was killed has the reason.
    """

    requires: ClassVar[tuple[str, ...]] = ("ServersAreSetUp", "TheRegistryIsTrue")
    limit: ClassVar[float] = 120.0

    WRITERS: ClassVar[int] = 2
    AWAY: ClassVar[float] = 1.0
    """Seconds for which the server is gone."""

    def run(self, subject: Subject) -> Finding:
        """Kill a server under the load of a tenant there and of one elsewhere; start it again and look for every row."""
        cluster: Cluster | None = subject.cluster
        if cluster is None:
            return Finding(Status.SKIP, "only a local cluster can be hurt")
        registrar = registrar_of(subject)
        # Not the one with the registry, which is known by then but asked in the end.
        elsewhere, lost = min(registrar.servers), max(registrar.servers)
        with probes(registrar, elsewhere, lost) as (other, own), tenants_of(subject, deadline=60.0) as db:
            loads = [Load(db, probe.name, self.WRITERS) for probe in (other, own)]
            with loads[0], loads[1]:
                time.sleep(0.5)
                cluster.stop_node(lost, kill=True)
                gone = [len(load.acknowledged) for load in loads]
                time.sleep(self.AWAY)
                meanwhile = [len(load.acknowledged) - before for load, before in zip(loads, gone, strict=True)]
                cluster.start_node(lost)
                deadline = time.monotonic() + 30
                while len(loads[1].acknowledged) <= gone[1] + meanwhile[1] and time.monotonic() < deadline:
                    time.sleep(0.05)
                time.sleep(0.5)
            missing = sum(len(load.acknowledged - db.using(tenant=load.tenant).read(_names)) for load in loads)
        failed = [reason for load in loads for reason in load.failed]
        evidence = {
            "acknowledged": sum(len(load.acknowledged) for load in loads),
            "ambiguous": sum(len(load.doubtful) for load in loads),
            "failed": failed[:5],
            "elsewhere_meanwhile": meanwhile[0],
        }
        if missing:
            return Finding(Status.FAIL, f"{lost} killed; {missing} acknowledged writes are missing", evidence)
        if failed:
            return Finding(Status.FAIL, f"{lost} killed; {len(failed)} writes failed: {failed[0]}", evidence)
        if not meanwhile[0]:
            return Finding(Status.FAIL, f"{lost} killed, and nobody could write on {elsewhere} either", evidence)
        return Finding(
            Status.PASS,
            f"{lost} killed for {self.AWAY:.0f} s; {meanwhile[0]} writes elsewhere meanwhile, "
            f"{evidence['acknowledged']} acknowledged in all, none lost",
            evidence,
        )


class Load:
    """Clients that write to a tenant until the block ends, and what they were told."""

    def __init__(self, db: Tenants, tenant: str, clients: int) -> None:
        self.tenant = tenant
        self.acknowledged: set[str] = set()
        self.doubtful: list[str] = []
        self.failed: list[str] = []
        self._finished = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(db,), daemon=True) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        for thread in self._threads:
            thread.join()

    def _write(self, db: Tenants) -> None:
        while not self._finished.is_set():
            name = str(uuid4())
            try:
                db.using(tenant=self.tenant).run(_note, name)
            except AmbiguousCommit:
                self.doubtful.append(name)
            except (DistributedSQLError, DBAPIError) as error:
                self.failed.append(f"{type(error).__name__}: {error}".partition("\n")[0])
            else:
                self.acknowledged.add(name)
            time.sleep(0.001)


def registrar_of(subject: Subject) -> Registrar:
    """Whoever may add tenants to the servers in question."""
    settings = TenantSettings()
    if settings.nodes and settings.urls() == dict(subject.urls):
        return Registrar.from_settings(settings, subject.project)
    return Registrar(subject.admin_urls, registry_url(subject.admin_urls), subject.owner, subject.project)


def tenants_of(subject: Subject, *, deadline: float = 20.0) -> Tenants:
    """What an application on the servers in question would hold."""
    settings = TenantSettings()
    given = settings.nodes and settings.urls() == dict(subject.urls)
    url = settings.registry_url() if given else registry_url(subject.urls)
    return Tenants(subject.urls, url, retry=RetryPolicy(attempts=1000, deadline=deadline), application_name="verify")


@contextmanager
def probes(registrar: Registrar, *servers: str) -> Iterator[list[Placement]]:
    """Tenants that are there for as long as the block takes, one on each of `servers`."""
    run = f"{PREFIX}{int(time.time())}-{secrets.token_hex(2)}"
    names = [f"{run}-{number}" for number in range(len(servers))]
    try:
        yield [registrar.add(name, server) for name, server in zip(names, servers, strict=True)]
    finally:
        there = {one.name for one in registrar.all()}
        for name in names:
            if name in there:
                registrar.drop(name, force=True)


def drop_stale(registrar: Registrar) -> None:
    """Drop the tenants of a run that was killed."""
    for one in registrar.all():
        born = one.name.removeprefix(PREFIX).partition("-")[0]
        if one.name.startswith(PREFIX) and born.isdigit() and int(born) < time.time() - STALE and one.target is None:
            registrar.drop(one.name, force=True)


def unfinished(one: Placement) -> str:
    """What was begun with a tenant and did not end."""
    if one.target:
        return f"it is on its way from {one.server} to {one.target}"
    return f"an old copy is left on {one.left_on}" if one.left_on else f"it is {one.state}"


def _may_connect(url: URL) -> bool:
    try:
        with create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 3}).connect():
            return True
    except OperationalError as error:
        if not is_login_refused(error):
            raise
        return False


def _note(unit: PinnedSession, name: str) -> None:
    unit.execute(_RECORD, {"load": name})


def _names(unit: PinnedSession) -> set[str]:
    return set(unit.scalars(text("SELECT load FROM bulk_load_chunk")))


def _forget(unit: PinnedSession, name: str) -> None:
    unit.execute(text("DELETE FROM bulk_load_chunk WHERE load = :load"), {"load": name})


_RIGHTS = """
    SELECT datname, has_database_privilege(:own, oid, 'CONNECT')
    FROM pg_database WHERE datallowconn AND datname <> :own ORDER BY 1
"""

# The records of bulk loads are a table that every project has, whatever becomes of its models.
_RECORD = text("INSERT INTO bulk_load_chunk (load, chunk, target, rows, node) VALUES (:load, 1, 'verify', 0, 'verify')")

CHECKS: tuple[type[Check], ...] = (
    ServersAreSetUp,
    TheRegistryIsTrue,
    EveryTenantHasTheSchema,
    TenantsAreKeptApart,
    AMoveLosesNothing,
)

CHAOS: tuple[type[Check], ...] = (AServerThatIsLostIsMissedByItsOwn,)
