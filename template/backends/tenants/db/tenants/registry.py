"""The registry, a small database of its own: which server holds which tenant, and in which state.

The application's role may only read it; `tenants …` changes it. A process asks once per tenant and keeps the answer.
An old answer does no harm: a database that left a server refuses its former login, and the process asks again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from pydantic import SecretStr
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Executable,
    MetaData,
    Row,
    Table,
    Text,
    func,
    schema,
    select,
)
from sqlalchemy.engine import URL, make_url

from ...limits import PoolLimits
from ..core import DatabaseCore
from ..errors import NodeUnavailable
from ..retry import first_line
from .errors import BadTenantName, UnknownTenant
from .placement import Placement, TenantState, check_name, quoted

REGISTRY_POOL = PoolLimits(size=2, max_overflow=3, ping_after=0)
"""Limits of the pool for the registry; a process asks once per tenant, and its connections are idle in between."""

metadata = MetaData()

epochs = schema.Sequence("tenant_epoch", metadata=metadata, data_type=BigInteger)
"""Numbers of the changes that processes must follow. They never go back, so a tenant added again is another one."""

tenant = Table(
    "tenant",
    metadata,
    Column("name", Text, primary_key=True),
    Column("server", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("password", Text, nullable=False),
    Column("epoch", BigInteger, epochs, server_default=epochs.next_value(), nullable=False),
    Column("revision", Text),
    Column("target", Text),
    Column("target_password", Text),
    Column("left_on", Text),
    Column("added_at", DateTime(timezone=True), server_default=func.now(), nullable=False),
    CheckConstraint(f"state IN ({', '.join(repr(state.value) for state in TenantState)})", name="ck_tenant_state"),
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
        return make_url(configured.get_secret_value())
    url = servers[min(servers)]
    return url.set(database=f"{url.database}_registry")


class Registry:
    """Read access to the registry, which is all that an application has."""

    def __init__(self, database: DatabaseCore) -> None:
        """Read from `database`, in whichever way it waits."""
        self.database = database
        """Database of the registry."""
        self._route = replace(database.route, readonly=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.database!r})"

    def find(self, name: str) -> Placement:
        """Return the placement of a tenant; a name that no tenant can have costs no connection.

        Raises:
            UnknownTenant: there is no tenant of this name.
            NodeUnavailable: the registry does not answer.
        """
        try:
            rows = self._ask(PLACEMENTS.where(tenant.c.name == check_name(name)))
        except BadTenantName as error:
            raise UnknownTenant(f"there is no tenant {quoted(name)}") from error
        if not rows:
            raise UnknownTenant(f"there is no tenant {quoted(name)}: `tenants list` shows all tenants")
        return placement_of(rows[0])

    def active(self) -> list[str]:
        """Return the names of all tenants that are served, in order.

        Raises:
            NodeUnavailable: the registry does not answer.
        """
        active = select(tenant.c.name).where(tenant.c.state == TenantState.ACTIVE).order_by(tenant.c.name)
        return [row.name for row in self._ask(active)]

    def _ask(self, statement: Executable) -> Sequence[Row[Any]]:
        # Not `run`, which refuses to run inside the unit of work that needs the answer.
        try:
            session = self.database.open_session(self._route)
        except NodeUnavailable as error:
            reason = first_line(error.failures[-1])
            raise NodeUnavailable(f"the registry cannot be reached: {reason}", failures=error.failures) from error
        try:
            return session.execute(statement).all()
        finally:
            self.database.concurrency.call(session.release)
