"""Checks of the servers and of what the registry has recorded about them."""

import random

from sqlalchemy import text

from ....db.tenants.placement import TenantState, database_of
from ....settings import PREFIX, Settings
from ...migrate import load_config, load_scripts, resolve, version_of, waiting_contract
from ...privileges import quoted
from ..check import Check, CheckContext, CheckResult, judge
from .obstacles import find_obstacles
from .privileges import compare
from .probes import admin_of, drop_stale
from .servers import compare_clocks, read_settings


class ServersAreSetUp(Check):
    """The servers are set up for tenants.

    Correct the setting on the server that is named and restart it: without `wal_level = logical` no tenant can move
    away from it.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Read the settings, the version and the clock of every server and compare them."""
        settings = Settings()
        wanted = settings.server_connections * settings.pool.processes
        with context.topology() as topology:
            servers = read_settings(topology.connections)
            skews, problems = compare_clocks(topology.connections)
        versions = {server: found["server_version"].partition(" ")[0] for server, found in servers.items()}
        limits = {server: int(found["max_connections"]) for server, found in servers.items()}
        for server, found in servers.items():
            if found["wal_level"] != "logical":
                problems.append(f"{server}: wal_level is {found['wal_level']}")
            if found["password_encryption"] != "scram-sha-256":  # noqa: S105
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
        if not context.read_only:
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
                mend = f"ALTER ROLE {quoted(database)} LOGIN"
                problems.append(f"{one.name} is active, and does not get in; on {one.server}: {mend}")
            if one.target:
                problems.append(f"{one.name} is unfinished: it is on its way from {one.server} to {one.target}")
            elif one.left_on:
                problems.append(f"{one.name} is unfinished: an old copy is left on {one.left_on}")
            elif one.state in (TenantState.ADDING, TenantState.DROPPING):
                problems.append(f"{one.name} is unfinished: it is {one.state}")
        known = {(server, database_of(one.name)) for one in tenants for server in (one.server, one.target, one.left_on)}
        for server, names in databases.items():
            unknown = sorted(name for name in names if name.startswith("t_") and (server, name) not in known)
            problems += [f"{server} has {name}, which no tenant has" for name in unknown]
        counts = {server: sum(one.server == server for one in tenants) for server in admin.servers}
        spread = ", ".join(f"{count} on {server}" for server, count in counts.items())
        return judge(problems, f"{len(tenants)} tenants: {spread}", {"tenants": counts})


class TheSecretIsTheirs(Check):
    """The secret gives tenants their passwords.

    Set the secret with which the passwords were made. If you have changed it, run `tenants rotate --new-secret`.
    """

    requires = ("TheRegistryIsTrue",)
    SAMPLE = 20  # tenants as which the check logs in

    def run(self, context: CheckContext) -> CheckResult:
        """Log in as some tenants."""
        admin = admin_of(context)
        served = [one for one in admin.all() if one.state in (TenantState.ACTIVE, TenantState.SUSPENDED)]
        sample = random.Random(context.seed).sample(served, min(self.SAMPLE, len(served)))  # noqa: S311
        refused = [
            f"{one.name} cannot log in with the password that {PREFIX}TENANT_SECRET gives"
            for one in sample
            if not admin.has_password(one)
        ]
        return judge(refused, f"{len(sample)} of {len(served)} tenants tried", {"tried": len(sample)})


class EveryTenantHasItsPrivileges(Check):
    """The role of every tenant has what it needs and no more, and nothing takes its rows.

    Run the statement of each line in the database of the tenant, as an administrator.
    """

    requires = ("TheRegistryIsTrue",)
    timeout = 60.0
    SAMPLE = 20  # databases whose privileges are read

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the privileges of the roles of some tenants with those that they should have."""
        admin = admin_of(context)
        served = [one for one in admin.all() if one.state in (TenantState.ACTIVE, TenantState.SUSPENDED)]
        sample = random.Random(context.seed).sample(served, min(self.SAMPLE, len(served)))  # noqa: S311
        excess: list[str] = []
        lacking: list[str] = []
        for one in sample:
            roles = {"application": database_of(one.name), "owner": admin.owners[one.server].username or ""}
            with admin.in_database(one.server, one.name) as connection:
                too_much, too_little = compare(connection, roles)
                limit = connection.scalar(text(_LIMIT), {"role": roles["application"]})
                # The number of connections of each tenant is limited on purpose.
                found = find_obstacles(connection, roles["application"], roles["owner"], (), connections=1)
            hidden = [row for row in found if row.place == "database"]
            excess += [f"{one.name}: {row.cause}: {row.mend}" for row in hidden if row.level == "problem"]
            lacking += [f"{one.name}: {row.cause}: {row.mend}" for row in hidden if row.level == "doubt"]
            excess += [f"{one.name}: {line}" for line in too_much]
            lacking += [f"{one.name}: {line}" for line in too_little]
            if limit == -1:
                excess.append(f"{one.name} may take every connection of {one.server}: `tenants rotate {one.name}`")
        for server in admin.servers:
            with admin.on_server(server) as connection:
                for database, role in connection.execute(text(_FOREIGN)):
                    mend = f"REVOKE CONNECT ON DATABASE {quoted(database)} FROM {quoted(role)}"
                    excess.append(f"{role} may connect to {database}, too much; on {server}: {mend}")
        evidence = {"too_much": excess, "too_little": lacking}
        return judge(excess, f"{len(sample)} of {len(served)} tenants read", evidence, lacking)


# The roles of other tenants that may connect to the database of a tenant, whose role has its name.
_FOREIGN = """
    SELECT datname::text, rolname::text
    FROM pg_database CROSS JOIN aclexplode(datacl) AS a JOIN pg_roles AS r ON r.oid = a.grantee
    WHERE privilege_type = 'CONNECT' AND starts_with(datname::text, 't_') AND starts_with(rolname::text, 't_')
      AND rolname <> datname
    ORDER BY 1, 2
"""

_LIMIT = "SELECT rolconnlimit FROM pg_roles WHERE rolname = :role"


class EveryTenantHasTheSchema(Check):
    """Every tenant has the newest schema.

    `tenants migrate` brings those that are behind to it, and names those that it cannot.
    """

    requires = ("TheRegistryIsTrue",)
    timeout = 60.0
    SAMPLE = 50  # databases whose revision is read; of the others the registry is believed

    def run(self, context: CheckContext) -> CheckResult:
        """Read the revision of every tenant from the registry, and of some from their databases."""
        scripts = load_scripts(load_config(context.project))
        head = resolve(scripts, "heads")
        admin = admin_of(context)
        served = [one for one in admin.all() if one.state in (TenantState.ACTIVE, TenantState.SUSPENDED)]
        waits = waiting_contract(scripts, [one.revision for one in served])
        doubts = [waits] if waits else []
        late = [one for one in served if one.revision != head]
        behind = [] if waits else [f"{one.name} is at {one.revision or 'unknown'}, not {head}" for one in late]
        sample = random.Random(context.seed).sample(served, min(self.SAMPLE, len(served)))  # noqa: S311
        for one in sample:
            with admin.as_owner(one.server, one.name) as connection:
                version = version_of(connection)
            if version != one.revision and one.revision is not None:
                behind.append(f"{one.name} is at {version}, and the registry says {one.revision}")
        return judge(behind, f"{len(served)} tenants at {head}, {len(sample)} of them read", {"head": head}, doubts)
