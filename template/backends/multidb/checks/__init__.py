"""The checks of this project, in the order in which they run."""

from ..check import Check
from . import concurrency, databases, messages, nodes, obstacles, privileges, references, reports, two_phase

ALL: tuple[type[Check], ...] = (
    nodes.EveryNodeAnswers,
    databases.ServersCanPrepare,
    databases.EveryDatabaseIsUpToDate,
    two_phase.NothingIsInDoubt,
    reports.ForeignTablesAnswer,
    reports.CopiesAreTrue,
    two_phase.BothDatabasesOrNeither,
    messages.MessagesHaveTheirEffectOnce,
    reports.TheCopyMissesNothing,
    reports.ForeignQueriesAreSentAlong,
    obstacles.NothingTakesRowsOrRights,
    nodes.SchemaIsTheSame,
    references.EveryReferenceLeadsToARow,
    nodes.ModelsAreMigrated,
    privileges.EveryRoleHasWhatItNeedsAndNoMore,
    concurrency.KeysNeverCollide,
    concurrency.LedgerStaysBalanced,
)

WITH_CHAOS: tuple[type[Check], ...] = (*ALL, two_phase.MoneySurvivesALoss)
"""The same, followed by the checks that stop nodes of a local cluster."""
