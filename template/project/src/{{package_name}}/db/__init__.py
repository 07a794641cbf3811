"""How this application talks to its database: what an application author imports, and nothing else."""

from ..limits import PoolLimits, Retry, RetryPolicy, Timeouts
from .backend import Backend, IsolationLevel, Route, RouteOptions
from .bulk import BadRow, LoadChanged, Loaded, Progress, bulk_load, forget_load
from .database import Database
from .errors import (
    AmbiguousCommit,
    DistributedSQLError,
    MisuseError,
    NodeUnavailable,
    NoNodes,
    RetriesExhausted,
    WrongNode,
)
from .keys import Key, PrimaryKeyMixin, key_column
from .retry import Counters
from .session import PinnedSession

__all__ = [
    "AmbiguousCommit",
    "Backend",
    "BadRow",
    "Counters",
    "Database",
    "DistributedSQLError",
    "IsolationLevel",
    "Key",
    "LoadChanged",
    "Loaded",
    "MisuseError",
    "NoNodes",
    "NodeUnavailable",
    "PinnedSession",
    "PoolLimits",
    "PrimaryKeyMixin",
    "Progress",
    "RetriesExhausted",
    "Retry",
    "RetryPolicy",
    "Route",
    "RouteOptions",
    "Timeouts",
    "WrongNode",
    "bulk_load",
    "forget_load",
    "key_column",
]
