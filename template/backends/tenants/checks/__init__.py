"""The checks of this project, in the order in which they run."""

from ..check import Check
from .availability import AMoveLosesNothing, AServerThatIsLostIsMissedByItsOwn
from .concurrency import KeysNeverCollide, LedgerStaysBalanced
from .isolation import TenantsAreKeptApart
from .nodes import EveryNodeAnswers, SchemaIsTheSame
from .registry import EveryTenantHasTheSchema, ServersAreSetUp, TheRegistryIsTrue

ALL: tuple[type[Check], ...] = (
    EveryNodeAnswers,
    ServersAreSetUp,
    TheRegistryIsTrue,
    EveryTenantHasTheSchema,
    TenantsAreKeptApart,
    AMoveLosesNothing,
    SchemaIsTheSame,
    KeysNeverCollide,
    LedgerStaysBalanced,
)

WITH_CHAOS: tuple[type[Check], ...] = (*ALL, AServerThatIsLostIsMissedByItsOwn)
"""The same, followed by the checks that stop nodes of a local cluster."""
