"""The checks of this project, in the order in which they run."""

from ..check import Check
from .answers import EveryNodeAnswers
from .databases import EveryDatabaseIsUpToDate, ServersCanPrepare
from .keys import KeysNeverCollide
from .ledger import LedgerStaysBalanced
from .messages import MessagesHaveTheirEffectOnce
from .reports import ForeignQueriesAreSentAlong, TheCopyMissesNothing
from .schema import SchemaIsTheSame
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
