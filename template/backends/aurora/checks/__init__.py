"""The checks of this project, in the order in which they run."""

from ..check import Check
from .concurrency import KeysNeverCollide, LedgerStaysBalanced
from .nodes import EveryNodeAnswers, SchemaIsTheSame
from .readers import (
    ANewWriterTakesOver,
    CommitsWaitForAReader,
    EveryReaderStreams,
    EveryTableIsReplicated,
    ExactlyOneNodeWrites,
    ServersAreSetUp,
)
from .replication import RowsReachEveryNode
from .routing import NobodyMissesTheirOwnWrites, ReadersRefuseWrites

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
