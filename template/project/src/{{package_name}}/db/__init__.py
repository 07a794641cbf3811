"""Access to the database: everything that an application author imports, and nothing else."""

from ..limits import PoolLimits, Retry, RetryPolicy, Timeouts
from .backend import Backend, IsolationLevel, Route, RouteOptions
from .base import BaseBackend
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
from .keys import DataclassPrimaryKeyMixin, Key, PrimaryKeyMixin, key_column
from .retry import Counters, Threads
from .routing import Route as BaseRoute
from .routing import Router
from .session import PinnedSession

__all__ = [
    "AmbiguousCommit",
    "Backend",
    "BadRow",
    "BaseBackend",
    "BaseRoute",
    "Counters",
    "Database",
    "DataclassPrimaryKeyMixin",
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
    "Router",
    "Threads",
    "Timeouts",
    "WrongNode",
    "bulk_load",
    "forget_load",
    "key_column",
]
