"""The checks of this project, in the order in which they run."""

from ..check import Check
from . import availability, concurrency, isolation, nodes, obstacles, privileges, references, registry

ALL: tuple[type[Check], ...] = (
    nodes.EveryNodeAnswers,
    registry.ServersAreSetUp,
    registry.TheRegistryIsTrue,
    registry.TheSecretIsTheirs,
    registry.EveryTenantHasTheSchema,
    registry.EveryTenantHasItsPrivileges,
    isolation.TenantsAreKeptApart,
    availability.AMoveLosesNothing,
    obstacles.NothingTakesRowsOrRights,
    nodes.SchemaIsTheSame,
    references.EveryReferenceLeadsToARow,
    nodes.ModelsAreMigrated,
    privileges.EveryRoleHasWhatItNeedsAndNoMore,
    concurrency.KeysNeverCollide,
    concurrency.LedgerStaysBalanced,
)

WITH_CHAOS: tuple[type[Check], ...] = (*ALL, availability.AServerThatIsLostIsMissedByItsOwn)
"""The same, followed by the checks that stop nodes of a local cluster."""
