"""The checks of this project, in the order in which they run."""

from ..check import Check
from . import concurrency, nodes, obstacles, privileges, readers, references, replication, routing, rows

ALL: tuple[type[Check], ...] = (
    nodes.EveryNodeAnswers,
    readers.ServersAreSetUp,
    readers.ExactlyOneNodeWrites,
    readers.EveryReaderStreams,
    readers.EveryTableIsReplicated,
    readers.CommitsWaitForAReader,
    routing.ReadersRefuseWrites,
    routing.NobodyMissesTheirOwnWrites,
    obstacles.NothingTakesRowsOrRights,
    nodes.SchemaIsTheSame,
    nodes.ModelsAreMigrated,
    rows.RowsAreTheSame,
    references.EveryReferenceLeadsToARow,
    privileges.EveryRoleHasWhatItNeedsAndNoMore,
    replication.RowsReachEveryNode,
    concurrency.KeysNeverCollide,
    concurrency.LedgerStaysBalanced,
)

WITH_CHAOS: tuple[type[Check], ...] = (*ALL, readers.ANewWriterTakesOver)
"""The same, followed by the checks that stop nodes of a local cluster."""
