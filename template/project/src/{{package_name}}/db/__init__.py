"""How this application talks to its database: what an application author types, and nothing else."""

from .database import Database, UnitOfWork
from .errors import (
    AmbiguousCommit,
    DatabaseError,
    MisuseError,
    NodeUnavailable,
    NoNodes,
    RetriesExhausted,
    WrongNode,
)
from .keys import Key, Keyed, key_column
from .retry import RetryPolicy

__all__ = [
    "AmbiguousCommit",
    "Database",
    "DatabaseError",
    "Key",
    "Keyed",
    "MisuseError",
    "NoNodes",
    "NodeUnavailable",
    "RetriesExhausted",
    "RetryPolicy",
    "UnitOfWork",
    "WrongNode",
    "key_column",
]
