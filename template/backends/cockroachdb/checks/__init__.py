"""The checks of this project, in the order in which they run."""

from ..check import Check
from . import cluster, concurrency, indexes, nodes, privileges, stand_in, transactions

ALL: tuple[type[Check], ...] = (
    nodes.EveryNodeAnswers,
    cluster.ItIsCockroachDB,
    cluster.EveryNodeIsLive,
    cluster.EveryRangeHasItsReplicas,
    cluster.ClocksAgree,
    cluster.TheLicenceLasts,
    transactions.InjectedRaceIsSurvived,
    transactions.LostUpdateIsNoticed,
    nodes.SchemaIsTheSame,
    nodes.ModelsAreMigrated,
    indexes.IndexesAreTrue,
    privileges.EveryRoleHasWhatItNeedsAndNoMore,
    stand_in.RowsReachEveryNode,
    stand_in.KeysNeverCollide,
    concurrency.LedgerStaysBalanced,
)

WITH_CHAOS: tuple[type[Check], ...] = (*ALL, stand_in.TheOthersGoOn)
"""The same, followed by the checks that stop nodes of a local cluster."""
