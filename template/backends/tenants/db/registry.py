"""The registry: which server holds which tenant, and in which state. A small database of its own.

The application's role may read it and nothing else; `tenants …` changes it. What a process knows from it may be kept for as long
as it serves: a database that is no longer where it was refuses its former login, and whoever is refused asks again.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

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
    select,
)
from sqlalchemy import Sequence as Counter
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from .database import Database
from .engines import PoolLimits, Timeouts
from .errors import DistributedSQLError, NodeUnavailable
from .retry import first_line

metadata = MetaData()

epochs = Counter("tenant_epoch", metadata=metadata, data_type=BigInteger)
"""Counts the changes that a process must learn of. Never goes back, so a tenant that was dropped and added again is another."""


class State(StrEnum):
    """Whether a tenant is served."""

    ADDING = "adding"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    DROPPING = "dropping"


tenant = Table(
    "tenant",
    metadata,
    Column("name", Text, primary_key=True),
    Column("server", Text, nullable=False),
    Column("state", Text, nullable=False),
    # Of its role on that server.
    Column("password", Text, nullable=False),
    Column("epoch", BigInteger, epochs, server_default=epochs.next_value(), nullable=False),
    # What its schema was brought to last; NULL while that changes.
    Column("revision", Text),
    # The server that it is being copied to, and the password of its role there.
    Column("target", Text),
    Column("target_password", Text),
    # A server on which something of it is left that has to be removed.
    Column("left_on", Text),
    Column("added_at", DateTime(timezone=True), server_default=func.now(), nullable=False),
    CheckConstraint(f"state IN ({', '.join(repr(state.value) for state in State)})", name="ck_tenant_state"),
)

NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*", re.ASCII)
LONGEST_NAME = 40
"""Characters; with its prefix well below the 63 bytes after which PostgreSQL cuts a name off."""

PREFIX = "t_"
"""Of a tenant's database and role, so that no name of a tenant means anything else to PostgreSQL: `postgres`, `public`, `user`."""


class BadTenantName(DistributedSQLError):
    """No tenant can have this name."""


class UnknownTenant(DistributedSQLError):
    """The registry has no such tenant."""


class TenantSuspended(DistributedSQLError):
    """The tenant exists, and is not served: suspended, or not yet added, or about to be dropped."""


def checked_name(name: str) -> str:
    """The name, if a tenant can have it.

    Raises:
        BadTenantName: it cannot.
    """
    if not NAME.fullmatch(name):
        raise BadTenantName(
            f"{shown(name)} is no name for a tenant: it is lower-case ASCII letters, digits, single '-' or '_', and starts with a letter"
        )
    if len(name) > LONGEST_NAME:
        raise BadTenantName(
            f"{shown(name)} is no name for a tenant: it has {len(name)} characters, {LONGEST_NAME} at most"
        )
    return name


def shown(name: str) -> str:
    """A name that somebody gave, as a message can hold it."""
    return repr(name) if len(name) <= LONGEST_NAME else repr(f"{name[:LONGEST_NAME]}…")


def database_of(name: str) -> str:
    """The name of a tenant's database, and of the role that owns it and may connect to it and to nothing else."""
    return PREFIX + checked_name(name)


@dataclass(frozen=True)
class Placement:
    """Where a tenant is, as the registry has it."""

    name: str
    server: str
    state: State
    epoch: int
    password: str = field(repr=False)
    revision: str | None = None
    target: str | None = None
    target_password: str | None = field(default=None, repr=False)
    left_on: str | None = None

    @classmethod
    def of(cls, row: Row[Any]) -> "Placement":
        """From a row of the registry."""
        values: dict[str, Any] = row._asdict()
        values["state"] = State(values["state"])
        return cls(**values)

    def url(self, server: URL) -> URL:
        """The URL of its database, for its own role.

        Args:
            server: any URL of the server that it is on.
        """
        name = database_of(self.name)
        return server.set(username=name, password=self.password, database=name)


PLACEMENTS = select(*[tenant.c[name] for name in Placement.__dataclass_fields__])


def registry_url(servers: Mapping[str, URL]) -> URL:
    """Where the registry is if no setting says so: on the first server by name, beside the application's own database."""
    url = servers[min(servers)]
    return url.set(database=f"{url.database}_registry")


ACTIVE = select(tenant.c.name).where(tenant.c.state == State.ACTIVE).order_by(tenant.c.name)

REGISTRY_POOL = PoolLimits(size=2, max_overflow=3)
"""A tenant is asked for once per process, so few connections are enough."""


def question(name: str) -> Executable:
    """What is asked to find a tenant.

    Raises:
        UnknownTenant: there can be none of that name.
    """
    try:
        return PLACEMENTS.where(tenant.c.name == checked_name(name))
    except BadTenantName as error:
        raise UnknownTenant(f"there is no tenant {shown(name)}") from error


def answer(name: str, rows: Iterable[Row[Any]]) -> Placement:
    """What the answer says.

    Raises:
        UnknownTenant: there is no such tenant.
    """
    for row in rows:
        return Placement.of(row)
    raise UnknownTenant(f"there is no tenant {shown(name)}: `tenants list` shows which there are")


def silent(error: NodeUnavailable) -> NodeUnavailable:
    """The error that says that it is the registry which does not answer."""
    return NodeUnavailable(f"the registry cannot be reached: {first_line(error.failures[-1])}", failures=error.failures)


class Registry:
    """What an application asks: where is this tenant?"""

    def __init__(self, url: URL, *, timeouts: Timeouts | None = None, application_name: str = "") -> None:
        self._database = Database(
            {"registry": url}, pool=REGISTRY_POOL, timeouts=timeouts, application_name=application_name
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._database!r})"

    def find(self, name: str) -> Placement:
        """Where a tenant is; at no connection for a name that none can have.

        Raises:
            UnknownTenant: there is none of that name.
            NodeUnavailable: the registry does not answer.
        """
        return answer(name, self._ask(question(name)))

    def active(self) -> list[str]:
        """The names of all tenants that are served, in order.

        Raises:
            NodeUnavailable: the registry does not answer.
        """
        return [row.name for row in self._ask(ACTIVE)]

    def dispose(self) -> None:
        """Close every pooled connection."""
        self._database.dispose()

    def _ask(self, statement: Executable) -> Sequence[Row[Any]]:
        # Not as a retried unit of work, of which there may be one around this already. Twice, for a pooled connection can be
        # dead while its server lives.
        for is_last in (False, True):
            try:
                with self._database.session(readonly=True) as session:
                    return session.execute(statement).all()
            except NodeUnavailable as error:
                raise silent(error) from error
            except DBAPIError as error:
                if is_last or not error.connection_invalidated:
                    raise
        raise AssertionError
