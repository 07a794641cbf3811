"""The checks of this project, in the order in which they run."""

from ..check import Check
from .cluster import ClocksAgree, EveryNodeIsLive, EveryRangeHasItsReplicas, ItIsCockroachDB, TheLicenceLasts
from .concurrency import LedgerStaysBalanced
from .nodes import EveryNodeAnswers, SchemaIsTheSame
from .stand_in import KeysNeverCollide, RowsReachEveryNode, TheOthersGoOn
from .transactions import InjectedRaceIsSurvived, LostUpdateIsNoticed

ALL: tuple[type[Check], ...] = (
    EveryNodeAnswers,
    ItIsCockroachDB,
    EveryNodeIsLive,
    EveryRangeHasItsReplicas,
    ClocksAgree,
    TheLicenceLasts,
    InjectedRaceIsSurvived,
    LostUpdateIsNoticed,
    SchemaIsTheSame,
    RowsReachEveryNode,
    KeysNeverCollide,
    LedgerStaysBalanced,
)

WITH_CHAOS: tuple[type[Check], ...] = (*ALL, TheOthersGoOn)
"""The same, followed by the checks that stop nodes of a local cluster."""
