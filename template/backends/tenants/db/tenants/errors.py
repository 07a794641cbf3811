"""Errors about tenants, beside those of `db.errors`."""

from collections.abc import Mapping

from ..errors import DistributedSQLError
from ..retry import first_line


class BadTenantName(DistributedSQLError):
    """No tenant can have this name."""


class UnknownTenant(DistributedSQLError):
    """The registry has no tenant of this name."""


class TenantSuspended(DistributedSQLError):
    """The tenant exists and is not served: it is suspended, or not yet added completely."""


class SomeTenantsFailed(DistributedSQLError):
    """Work over all tenants failed for some of them; the answers of the others came before this error."""

    def __init__(self, failures: Mapping[str, Exception], asked: int) -> None:
        """Describe the failures of some of the tenants that were asked."""
        first = "; ".join(f"{name}: {first_line(error)}" for name, error in list(failures.items())[:3])
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        super().__init__(
            f"{len(failures)} of {asked} tenants did not answer: {first}{more}", failures=list(failures.values())
        )
        self.by_tenant = dict(failures)
        """Error of each tenant that failed."""
