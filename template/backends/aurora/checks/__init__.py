"""The checks of this project, in the order in which they run."""

from ..check import Check
from .answers import EveryNodeAnswers
from .failover import ANewWriterTakesOver
from .keys import KeysNeverCollide
from .ledger import LedgerStaysBalanced
from .readers import (
    CommitsWaitForAReader,
    EveryReaderStreams,
    EveryTableIsReplicated,
    ExactlyOneNodeWrites,
    ServersAreSetUp,
)
from .replication import RowsReachEveryNode
from .routing import NobodyMissesTheirOwnWrites, ReadersRefuseWrites
from .schema import SchemaIsTheSame

ALL: tuple[type[Check], ...] = (
    EveryNodeAnswers,
    ServersAreSetUp,
    ExactlyOneNodeWrites,
    EveryReaderStreams,
    EveryTableIsReplicated,
    CommitsWaitForAReader,
    ReadersRefuseWrites,
    NobodyMissesTheirOwnWrites,
    SchemaIsTheSame,
    RowsReachEveryNode,
    KeysNeverCollide,
    LedgerStaysBalanced,
)

WITH_CHAOS: tuple[type[Check], ...] = (*ALL, ANewWriterTakesOver)
"""The same, followed by the checks that stop nodes of a local cluster."""
