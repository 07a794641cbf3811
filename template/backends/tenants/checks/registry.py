"""Checks of the servers and of what the registry has recorded about them."""

from collections.abc import Sequence

from alembic.script import ScriptDirectory
from sqlalchemy import text

from ....db.tenants.placement import Placement, TenantState, database_of
from ....settings import Settings
from ...migrate import load_config, version_of
from ..check import Check, CheckContext, CheckResult, failed, judge, passed
from .probes import admin_of, drop_stale
from .servers import compare_clocks, server_versions, show


class ServersAreSetUp(Check):
    """The servers are set up for tenants.

    Correct the setting on the server that is named and restart it: without `wal_level = logical` no tenant can move
    away from it.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Read the settings, the version and the clock of every server and compare them."""
        limits: dict[str, int] = {}
        settings = Settings()
        wanted = settings.server_connections * settings.pool.processes
        with context.topology() as topology:
            versions = server_versions(topology.connections)
            skews, problems = compare_clocks(topology.connections)
            for server, connection in topology.connections.items():
                limits[server] = int(show(connection, "max_connections"))
                if (level := show(connection, "wal_level")) != "logical":
                    problems.append(f"{server}: wal_level is {level}")
                if show(connection, "password_encryption") != "scram-sha-256":
                    problems.append(f"{server}: password_encryption is not scram-sha-256")
                if wanted > limits[server]:
                    problems.append(f"{server}: max_connections is {limits[server]}, and the settings allow {wanted}")
        evidence = {"versions": versions, "max_connections": limits, "clock_skew_s": skews}
        version = next(iter(versions.values()))
        return judge(problems, f"PostgreSQL {version}, {wanted} of {min(limits.values())} connections", evidence)


class TheRegistryIsTrue(Check):
    """The registry is true.

    `tenants list` shows what was not finished; `tenants move`, `add` or `drop` of the same tenant finishes it. Look
    into a database that no tenant has before you drop it.
    """

    timeout = 30.0

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the registry with the databases and roles of every server."""
        admin = admin_of(context)
        drop_stale(admin)
        tenants = admin.all()
        problems: list[str] = []
        databases: dict[str, set[str]] = {}
        closed: dict[str, set[str]] = {}
        for server in admin.servers:
            with admin.on_server(server) as connection:
                databases[server] = set(connection.scalars(text("SELECT datname FROM pg_database")))
                closed[server] = set(connection.scalars(text("SELECT rolname FROM pg_roles WHERE NOT rolcanlogin")))
        for one in tenants:
            database = database_of(one.name)
            if one.server not in databases:
                problems.append(f"{one.name} is on {one.server}, which is not configured")
            elif one.state in (TenantState.ACTIVE, TenantState.SUSPENDED) and database not in databases[one.server]:
                problems.append(f"{one.name} has no database on {one.server}")
            elif one.state is TenantState.ACTIVE and database in closed[one.server]:
                problems.append(f"{one.name} is active, and {one.server} does not let it in")
            if one.target or one.left_on or one.state in (TenantState.ADDING, TenantState.DROPPING):
                problems.append(f"{one.name} is unfinished: {_unfinished(one)}")
        known = {(server, database_of(one.name)) for one in tenants for server in (one.server, one.target, one.left_on)}
        for server, names in databases.items():
            unknown = sorted(name for name in names if name.startswith("t_") and (server, name) not in known)
            problems += [f"{server} has {name}, which no tenant has" for name in unknown]
        counts = {server: sum(one.server == server for one in tenants) for server in admin.servers}
        if problems:
            return failed(_first(problems), {"tenants": counts, "wrong": problems})
        spread = ", ".join(f"{count} on {server}" for server, count in counts.items())
        return passed(f"{len(tenants)} tenants: {spread}", {"tenants": counts})


class EveryTenantHasTheSchema(Check):
    """Every tenant has the newest schema.

    `tenants migrate` brings those that are behind to it, and names those that it cannot.
    """

    requires = ("TheRegistryIsTrue",)
    timeout = 60.0

    SAMPLE = 50
    """Databases whose revision is read; of the others the registry is believed."""

    def run(self, context: CheckContext) -> CheckResult:
        """Read the revision of every tenant from the registry, and of some from their databases."""
        head = ScriptDirectory.from_config(load_config(context.project)).get_current_head()
        admin = admin_of(context)
        served = [one for one in admin.all() if one.state in (TenantState.ACTIVE, TenantState.SUSPENDED)]
        behind = [f"{one.name} is at {one.revision or 'an unknown revision'}" for one in served if one.revision != head]
        sample = context.random("schema").sample(served, min(self.SAMPLE, len(served)))
        for one in sample:
            with admin.in_database(one.server, one.name) as connection:
                version = version_of(connection)
            if version != one.revision and one.revision is not None:
                behind.append(f"{one.name} is at {version}, and the registry says {one.revision}")
        if behind:
            return failed(f"newest is {head}: {_first(behind)}", {"behind": behind})
        return passed(f"{len(served)} tenants at {head}, {len(sample)} of them read")


def _unfinished(one: Placement) -> str:
    """Return what was begun with a tenant and not finished."""
    if one.target:
        return f"it is on its way from {one.server} to {one.target}"
    return f"an old copy is left on {one.left_on}" if one.left_on else f"it is {one.state}"


def _first(problems: Sequence[str]) -> str:
    """Return some of the problems, and how many more there are."""
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more
