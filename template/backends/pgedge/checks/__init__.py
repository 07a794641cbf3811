"""The checks of this project, in the order in which they run."""

from ..check import Check
from . import concurrency, constraints, mesh, nodes, obstacles, privileges, references, replication

ALL: tuple[type[Check], ...] = (
    nodes.EveryNodeAnswers,
    mesh.ServersAreSetUp,
    mesh.EveryLinkReplicates,
    mesh.EveryTableIsReplicated,
    constraints.KeysAndConstraintsHoldOnManyNodes,
    obstacles.NothingTakesRowsOrRights,
    nodes.SchemaIsTheSame,
    nodes.ModelsAreMigrated,
    mesh.RowsAreTheSame,
    references.EveryReferenceLeadsToARow,
    privileges.EveryRoleHasWhatItNeedsAndNoMore,
    replication.RowsReachEveryNode,
    concurrency.KeysNeverCollide,
    concurrency.LedgerStaysBalanced,
)

WITH_CHAOS: tuple[type[Check], ...] = (*ALL, mesh.TheOthersGoOn)
"""The same, followed by the checks that stop nodes of a local cluster."""
