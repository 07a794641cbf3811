"""Errors between the application and its database, from `run`, `read` and `session()` alike.

    DistributedSQLError
    ├── NodeUnavailable             nothing was committed: no node can do the work now, or it was lost in a session
    ├── RetriesExhausted            nothing was committed: every attempt failed; a session has one
    ├── AmbiguousCommit             the transaction may have happened
    ├── NoNodes, WrongNode          no node can ever do the work
    ├── MisuseError                 the call cannot work
    └── BadRow, LoadChanged         a bulk load cannot go on

Other modules may derive more. Everything else (a broken constraint, a mistake in SQL, a statement that took too long, a
refused login) is as SQLAlchemy raised it.
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
    """No node that may do this work can be reached or has a free connection, or the node was lost in a session."""


class WrongNode(DistributedSQLError):
    """The chosen node cannot do this work: it refuses writes, or it does not exist."""


class RetriesExhausted(DistributedSQLError):
    """Every attempt failed for a reason that may pass; a session has one. `failures` has all of them, oldest first."""


class AmbiguousCommit(DistributedSQLError):
    """The answer to COMMIT was lost, so the transaction may have happened. Look for its effect before you repeat it."""


class MisuseError(DistributedSQLError):
    """The library was called in a way that cannot work; the message names the right way."""
