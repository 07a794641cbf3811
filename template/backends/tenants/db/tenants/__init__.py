"""The databases of all tenants behind one object: what an application author imports, and nothing else."""

from .current import current_tenant, use_tenant
from .database import Tenants
from .errors import BadTenantName, SomeTenantsFailed, TenantSuspended, UnknownTenant

__all__ = [
    "BadTenantName",
    "SomeTenantsFailed",
    "TenantSuspended",
    "Tenants",
    "UnknownTenant",
    "current_tenant",
    "use_tenant",
]
