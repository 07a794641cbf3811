"""The name of a tenant, and the place where its database is."""

import hmac
import re
from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy.engine import URL

from .errors import BadTenantName, TenantSuspended, UnknownTenant

NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*", re.ASCII)
MAX_NAME_LENGTH = 40
"""Length limit of a name in characters: with the prefix well below the 63 bytes that PostgreSQL allows."""

PREFIX = "t_"
"""Prefix of a tenant's database and role; no name has a meaning for PostgreSQL then, as `postgres` or `public` have."""


class TenantState(StrEnum):
    """State of a tenant; only an active one is served."""

    ADDING = "adding"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    DROPPING = "dropping"


def check_name(name: str) -> str:
    """Return `name` if a tenant can have it, or raise `BadTenantName`."""
    if not NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
        raise BadTenantName(
            f"{quoted(name)} is no name for a tenant: use lower-case ASCII letters, digits and single '-' or '_', "
            f"{MAX_NAME_LENGTH} characters at most, and begin with a letter"
        )
    return name


def quoted(name: str) -> str:
    """Return a name from outside in a form that fits into a message."""
    return repr(name) if len(name) <= MAX_NAME_LENGTH else repr(f"{name[:MAX_NAME_LENGTH]}…")


def database_of(name: str) -> str:
    """Return the name of a tenant's database, and of the role that reads and writes its rows and enters no other."""
    return PREFIX + check_name(name)


def password_of(name: str, salt: str, secret: str) -> str:
    """Return the password of a tenant's role. The registry stores the salt, and not the secret.

    Args:
        name: name of the tenant.
        salt: random text, another one on each server.
        secret: a secret that is in no database.
    """
    return hmac.new(secret.encode(), f"{database_of(name)}:{salt}".encode(), "sha256").hexdigest()


@dataclass(frozen=True)
class Placement:
    """Place and state of a tenant, as the registry has them."""

    name: str
    server: str
    state: TenantState
    epoch: int
    """Number of the last change that processes must follow; a larger one is newer."""
    salt: str = field(repr=False)
    """Random text, from which `password_of` derives the password of the tenant's role on `server`."""
    revision: str | None = None
    """Revision of the schema; None while it changes."""
    target: str | None = None
    """Server to which a move, running or interrupted, copies the tenant."""
    target_salt: str | None = field(default=None, repr=False)
    left_on: str | None = None
    """Server with remains of the tenant that have to be removed."""

    def url(self, server: URL, secret: str) -> URL:
        """Return the URL of the tenant's database for its own role.

        Args:
            server: any URL of the tenant's server.
            secret: the secret of `password_of`.
        """
        name = database_of(self.name)
        return server.set(username=name, password=password_of(self.name, self.salt, secret), database=name)

    def check_served(self) -> None:
        """Raise `TenantSuspended` or `UnknownTenant` if the tenant is not served."""
        if self.state is TenantState.SUSPENDED:
            raise TenantSuspended(f"{self.name} is suspended: `tenants resume {self.name}` ends that")
        if self.state is TenantState.ADDING:
            raise TenantSuspended(f"{self.name} is being added; it is served as soon as that is done")
        if self.state is TenantState.DROPPING:
            raise UnknownTenant(f"there is no tenant {self.name} any more: it is being dropped")
