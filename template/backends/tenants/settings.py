"""Settings that only this backend has; durations are in seconds."""

from typing import Annotated

from pydantic import AfterValidator, PositiveInt, SecretStr
from pydantic_settings import BaseSettings

from .limits import RetryPolicy
from .urls import parse_url


def _check_url(secret: SecretStr) -> SecretStr:
    parse_url(secret.get_secret_value())
    return secret


SecretUrl = Annotated[SecretStr, AfterValidator(_check_url)]


class BackendSettings(BaseSettings):
    """Part of `Settings`."""

    preferred_node: str | None = None
    """Node for work that names none; None: the first one."""
    retry: RetryPolicy = RetryPolicy()
    """Retries: `…_RETRY_DEADLINE` and so on."""
    registry: SecretUrl | None = None
    """URL of the registry for the application's role; None: `…_registry` on the first server by name."""
    admin_registry: SecretUrl | None = None
    """URL of the registry for the role that may change it; None: as for the application's role."""
    tenant_secret: SecretStr | None = None
    """Secret from which the passwords of the tenants' roles are derived; the registry has none of them."""
    tenant_connections: PositiveInt = 50
    """Connections that one tenant may have on its server, of all processes: half of PostgreSQL's default limit."""
    server_connections: PositiveInt = 20
    """Connections of one process to each server, however many tenants are there."""
    open_tenants: PositiveInt = 500
    """Number of tenants whose engines are kept; a thousand take about 20 MB."""
