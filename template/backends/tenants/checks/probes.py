"""Tenants for checks to work with, whose names begin with `verify-`: added, written to, and dropped again."""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from ....db import PinnedSession, RetryPolicy
from ....db.tenants import Tenants
from ....db.tenants.placement import Placement
from ....db.tenants.registry import configured_secret, registry_url
from ....settings import Settings
from ...moving import undo
from ...provisioning import TenantAdmin
from ..check import CheckContext
from ..scratch import Load

PREFIX = "verify-"
"""Beginning of the names of tenants that checks add."""


def admin_of(context: CheckContext) -> TenantAdmin:
    """Return the tenants' admin for the servers to check."""
    settings = Settings()
    if settings.nodes and settings.urls() == dict(context.urls):
        return TenantAdmin.from_settings(settings, context.project)
    return TenantAdmin(
        *(context.admin_urls, registry_url(context.admin_urls), context.application, context.project),
        owners=context.owner_urls,
        secret=_secret(context),
    )


def tenants_of(context: CheckContext, *, deadline: float = 20.0) -> Tenants:
    """Return the object that an application on the servers to check would use; it retries for `deadline` seconds."""
    settings = Settings()
    is_configured = settings.nodes and settings.urls() == dict(context.urls)
    url = registry_url(context.urls, settings.registry if is_configured else None)
    retry = RetryPolicy(attempts=1000, deadline=deadline)
    pooler = context.transaction_pooler
    secret = configured_secret(settings) if is_configured else _secret(context)
    return Tenants(context.urls, url, secret=secret, retry=retry, application_name="verify", transaction_pooler=pooler)


def _secret(context: CheckContext) -> str:
    """Return a secret for the tenants of checks: that of the settings, or of the local cluster."""
    if configured := Settings().tenant_secret:
        return configured.get_secret_value()
    if context.cluster is not None:
        return context.cluster.derived("tenant_secret")
    return str(next(iter(context.admin_urls.values())).password)


@contextmanager
def probes(admin: TenantAdmin, *servers: str) -> Iterator[list[Placement]]:
    """Add a tenant on each of `servers`, and drop them when the block ends."""
    run = f"{PREFIX}{int(time.time())}-{secrets.token_hex(2)}"
    try:
        yield [admin.add(f"{run}-{number}", server) for number, server in enumerate(servers)]
    finally:
        for one in admin.all():
            if one.name.startswith(run):
                admin.drop(one.name, force=True)


def drop_stale(admin: TenantAdmin) -> None:
    """Drop the tenants that killed runs left behind; the caller keeps other runs away."""
    for one in admin.all():
        born = one.name.removeprefix(PREFIX).partition("-")[0]
        if one.name.startswith(PREFIX) and born.isdigit():
            if one.target is not None:
                undo(admin, one.name)
            admin.drop(one.name, force=True)


def load_on(db: Tenants, tenant: str, clients: int) -> Load:
    """Return a load of that many clients on a tenant."""
    return Load([lambda name: db.using(tenant=tenant).run(_execute, _RECORD, name)] * clients)


def recorded(db: Tenants, tenant: str) -> set[str]:
    """Return the texts that a tenant's database has of its loads."""
    return db.using(tenant=tenant).read(lambda session: set(session.scalars(text("SELECT load FROM bulk_load_chunk"))))


def forget(db: Tenants, tenant: str, name: str) -> None:
    """Delete a text of a load from a tenant's database."""
    db.using(tenant=tenant).run(_execute, "DELETE FROM bulk_load_chunk WHERE load = :load", name)


def _execute(session: PinnedSession, statement: str, name: str) -> None:
    session.execute(text(statement), {"load": name})


# Every project has the table of bulk loads, whatever its models are.
_RECORD = "INSERT INTO bulk_load_chunk (load, chunk, target, rows, node) VALUES (:load, 1, 'verify', 0, 'verify')"
