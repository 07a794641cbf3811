"""The checks of this project, in the order in which they run."""

from ..check import Check
from .concurrency import KeysNeverCollide, LedgerStaysBalanced
from .mesh import EveryLinkReplicates, EveryTableIsReplicated, ServersAreSetUp, TheOthersGoOn
from .nodes import EveryNodeAnswers, SchemaIsTheSame
from .replication import RowsReachEveryNode

ALL: tuple[type[Check], ...] = (
    EveryNodeAnswers,
    ServersAreSetUp,
    EveryLinkReplicates,
    EveryTableIsReplicated,
    SchemaIsTheSame,
    RowsReachEveryNode,
    KeysNeverCollide,
    LedgerStaysBalanced,
)

WITH_CHAOS: tuple[type[Check], ...] = (*ALL, TheOthersGoOn)
"""The same, followed by the checks that stop nodes of a local cluster."""
