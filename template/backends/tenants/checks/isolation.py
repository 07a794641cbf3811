"""Check that no tenant can reach the database of another."""

import random

from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from ....db.tenants.core import is_login_refused
from ....db.tenants.placement import database_of
from ...connections import engine_for
from ...tenant_server import run
from ..check import Check, CheckContext, CheckResult, failed, passed
from .probes import admin_of, probes


class TenantsAreKeptApart(Check):
    """Tenants are kept apart.

    `REVOKE CONNECT ON DATABASE … FROM PUBLIC`; `tenants add` does so for the databases it creates.
    """

    requires = ("TheRegistryIsTrue",)
    timeout = 60.0
    SAMPLE = 20  # databases of each server that the role tries to connect to; of the others its rights are read

    def run(self, context: CheckContext) -> CheckResult:
        """Let a tenant's role try the other databases of its server; then open one, to show that this is detected."""
        admin = admin_of(context)
        rng = random.Random(context.seed)  # noqa: S311
        opened: list[str] = []
        tried = asked = 0
        with probes(admin, *admin.servers) as tenants:
            for tenant in tenants:
                url = tenant.url(admin.servers[tenant.server], admin.secret)
                if not _may_connect(url):
                    return failed(f"the role of a tenant may not connect to its own database on {tenant.server}")
                with admin.on_server(tenant.server) as connection:
                    rows = connection.execute(text(_RIGHTS), {"own": database_of(tenant.name)})
                    rights = {str(database): bool(may) for database, may in rows}
                sample = rng.sample(sorted(rights), min(self.SAMPLE, len(rights)))
                asked, tried = asked + len(rights), tried + len(sample)
                entered = {database for database in sample if _may_connect(url.set(database=database))}
                entered |= {database for database, may in rights.items() if may}
                opened += [f"{database} on {tenant.server}" for database in sorted(entered)]
            last = database_of(tenants[-1].name)
            with admin.on_server(tenants[-1].server) as connection:
                # The refusal of the first connection shows that the GRANT is what lets the second one in.
                run(connection, "REVOKE CONNECT ON DATABASE {} FROM {}", last, last)
                is_refused = not _may_connect(url)
                run(connection, "GRANT CONNECT ON DATABASE {} TO PUBLIC", last)
                is_detected = is_refused and _may_connect(url)
        evidence = {"asked": asked, "tried": tried, "opened": opened}
        if opened:
            return failed(f"the role of a tenant may connect to {', '.join(opened)}", evidence)
        if not is_detected:
            return failed("a database that was opened on purpose was not detected: this check proves nothing", evidence)
        return passed(f"refused at all {asked} other databases, {tried} of them tried", evidence)


def _may_connect(url: URL) -> bool:
    try:
        with engine_for(url).connect():
            return True
    except OperationalError as error:
        if not is_login_refused(error):
            raise
        return False


_RIGHTS = """
    SELECT datname, has_database_privilege(:own, oid, 'CONNECT')
    FROM pg_database WHERE datallowconn AND datname <> :own ORDER BY 1
"""
