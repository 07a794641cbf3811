"""The checks of this project, in the order in which they run."""

from ..check import Check
from .answers import EveryNodeAnswers
from .isolation import TenantsAreKeptApart
from .keys import KeysNeverCollide
from .ledger import LedgerStaysBalanced
from .moves import AMoveLosesNothing
from .registry import EveryTenantHasTheSchema, ServersAreSetUp, TheRegistryIsTrue
from .schema import SchemaIsTheSame
from .server_loss import AServerThatIsLostIsMissedByItsOwn

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
