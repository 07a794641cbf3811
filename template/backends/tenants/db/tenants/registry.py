"""The registry, a small database of its own: which server holds which tenant, and in which state.

The application's role may only read it; `tenants …` changes it. It holds no passwords. A process asks once per tenant
and keeps the answer. An old answer does no harm: a database that left a server refuses its former login, and the
process asks again.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from pydantic import SecretStr
from sqlalchemy import BigInteger, DateTime, Executable, Row, Text, func, schema, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ...limits import PoolLimits
from ...settings import PREFIX, Settings
from ...urls import parse_url
from ..database import DatabaseCore
from ..errors import MisuseError, NodeUnavailable
from ..retry import first_line
from .errors import BadTenantName, UnknownTenant
from .placement import Placement, TenantState, check_name, quoted

REGISTRY_POOL = PoolLimits(size=2, max_overflow=3, ping_after=0)
"""Limits of the pool for the registry; a process asks once per tenant, and its connections are idle in between."""

epochs = schema.Sequence("tenant_epoch", data_type=BigInteger)
"""Numbers of the changes that processes must follow. They never go back, so a tenant added again is another one."""

tenant = schema.Table(
    "tenant",
    schema.MetaData(),
    schema.Column("name", Text, primary_key=True),
    schema.Column("server", Text, nullable=False),
    schema.Column("state", Text, nullable=False),
    schema.Column("salt", Text, nullable=False),
    schema.Column("epoch", BigInteger, epochs, server_default=epochs.next_value(), nullable=False),
    schema.Column("revision", Text),
    schema.Column("target", Text),
    schema.Column("target_salt", Text),
    schema.Column("left_on", Text),
    schema.Column("added_at", DateTime(timezone=True), server_default=func.now(), nullable=False),
    schema.CheckConstraint(f"state IN {tuple(map(str, TenantState))}", name="ck_tenant_state"),
)
"""The table of the registry; `Placement` describes its columns."""

PLACEMENTS = select(*[tenant.c[field.name] for field in fields(Placement)])
"""Query for the rows that `placement_of` takes."""


def placement_of(row: Row[Any]) -> Placement:
    """Return a row of `PLACEMENTS` as a placement."""
    values = row._asdict()
    return Placement(**values | {"state": TenantState(values["state"])})


def registry_url(servers: Mapping[str, URL], configured: SecretStr | None = None) -> URL:
    """Return the URL of the registry.

    Args:
        servers: URL of the application's own database on each server.
        configured: the URL; None: that of `…_registry` on the first server by name.
    """
    if configured is not None:
        return parse_url(configured.get_secret_value())
    url = servers[min(servers)]
    return url.set(database=f"{url.database}_registry")


def configured_secret(settings: Settings) -> str:
    """Return the secret that the tenants' passwords are derived from, or raise `MisuseError`."""
    if settings.tenant_secret is None:
        raise MisuseError(
            f"{PREFIX}TENANT_SECRET is not set: the passwords of the tenants' roles are derived from it, and the same "
            "one has to be set wherever tenants are added or served"
        )
    return settings.tenant_secret.get_secret_value()


class Registry:
    """Read access to the registry; raises `NodeUnavailable` if the registry does not answer."""

    def __init__(self, database: DatabaseCore) -> None:
        """Read from `database`, in whichever way it waits."""
        self.database = database
        """Database of the registry."""

    def find(self, name: str) -> Placement:
        """Return the placement of a tenant, or raise `UnknownTenant`; an impossible name costs no connection."""
        try:
            rows = self._ask(PLACEMENTS.where(tenant.c.name == check_name(name)))
        except BadTenantName as error:
            raise UnknownTenant(f"there is no tenant {quoted(name)}") from error
        if not rows:
            raise UnknownTenant(f"there is no tenant {quoted(name)}: `tenants list` shows all tenants")
        return placement_of(rows[0])

    def active(self) -> list[str]:
        """Return the names of all tenants that are served, in order."""
        active = select(tenant.c.name).where(tenant.c.state == TenantState.ACTIVE).order_by(tenant.c.name)
        return [row.name for row in self._ask(active)]

    def _ask(self, statement: Executable) -> Sequence[Row[Any]]:
        # Not `run`, which refuses to run inside the unit of work that needs the answer.
        try:
            session = self.database.open_session(replace(self.database.route, readonly=True))
            try:
                return session.execute(statement).all()
            except DBAPIError as error:
                self.database.translate_error(error, session)
                raise
            finally:
                self.database.concurrency.call(session.release)
        except NodeUnavailable as error:
            reason = first_line(error.failures[-1])
            raise NodeUnavailable(f"the registry cannot be reached: {reason}", failures=error.failures) from error
        except DBAPIError as error:
            # The server reports a missing table or database; both are there after the first `tenants add`.
            if not re.search('(relation|database) ".*" does not exist', reason := first_line(error)):
                raise
            raise MisuseError(f"there is no registry of tenants: {reason}. `tenants add NAME` creates it") from error
