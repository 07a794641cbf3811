"""Errors between the application and its database.

    DistributedSQLError
    ├── NoNodes, NodeUnavailable, WrongNode    no node can do the work
    ├── RetriesExhausted                       every attempt failed
    ├── AmbiguousCommit                        the transaction may have happened
    ├── MisuseError                            the call cannot work
    └── BadRow, LoadChanged                    a bulk load cannot go on

Other modules may derive more. Everything else (a broken constraint, a mistake in SQL) is as SQLAlchemy raised it.
"""

from collections.abc import Sequence


class DistributedSQLError(Exception):
    """Base of these errors."""

    def __init__(
        self, message: str, *, node: str | None = None, sqlstate: str | None = None, failures: Sequence[Exception] = ()
    ) -> None:
        """Create an error; `failures` has the error of each attempt, oldest first."""
        super().__init__(message)
        self.node = node
        self.sqlstate = sqlstate
        self.failures = tuple(failures)

    @property
    def attempts(self) -> int:
        """Number of attempts at the unit of work, this failure included."""
        return max(1, len(self.failures))


class NoNodes(DistributedSQLError):
    """No node is configured."""


class NodeUnavailable(DistributedSQLError):
    """No node that may do this work can be reached."""


class WrongNode(DistributedSQLError):
    """The chosen node cannot do this work: it refuses writes, or it does not exist."""


class RetriesExhausted(DistributedSQLError):
    """Every attempt failed for a reason that may pass; `failures` has all of them, oldest first."""


class AmbiguousCommit(DistributedSQLError):
    """The answer to COMMIT was lost, so the transaction may have happened. Look for its effect before you repeat it."""


class MisuseError(DistributedSQLError):
    """The library was called in a way that cannot work; the message names the right way."""
