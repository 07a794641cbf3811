"""The checks of this project, in the order in which they run."""

from ..check import Check
from .concurrency import KeysNeverCollide, LedgerStaysBalanced
from .databases import EveryDatabaseIsUpToDate, ServersCanPrepare
from .messages import MessagesHaveTheirEffectOnce
from .nodes import EveryNodeAnswers, SchemaIsTheSame
from .reports import ForeignQueriesAreSentAlong, TheCopyMissesNothing
from .two_phase import BothDatabasesOrNeither, MoneySurvivesALoss, NothingIsInDoubt

ALL: tuple[type[Check], ...] = (
    EveryNodeAnswers,
    ServersCanPrepare,
    EveryDatabaseIsUpToDate,
    NothingIsInDoubt,
    BothDatabasesOrNeither,
    MessagesHaveTheirEffectOnce,
    TheCopyMissesNothing,
    ForeignQueriesAreSentAlong,
    SchemaIsTheSame,
    KeysNeverCollide,
    LedgerStaysBalanced,
)

WITH_CHAOS: tuple[type[Check], ...] = (*ALL, MoneySurvivesALoss)
"""The same, followed by the checks that stop nodes of a local cluster."""
