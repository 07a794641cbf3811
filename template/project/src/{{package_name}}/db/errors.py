"""Errors between the application and its database.

    DistributedSQLError
    ├── NoNodes              nothing to connect to
    ├── NodeUnavailable      no node that may do this work answers
    ├── WrongNode            the node is a replica, or no such node exists
    ├── RetriesExhausted     every attempt failed for a passing reason
    ├── AmbiguousCommit      the answer to COMMIT was lost: it may have happened
    └── MisuseError          the call itself is wrong, whatever the database does

Every other error (a broken constraint, a typing mistake in SQL) reaches the caller as SQLAlchemy raised it.
"""

from collections.abc import Sequence


class DistributedSQLError(Exception):
    """Base of this module's errors."""

    def __init__(
        self,
        message: str,
        *,
        node: str | None = None,
        sqlstate: str | None = None,
        failures: Sequence[BaseException] = (),
    ) -> None:
        """Create an error.

        Args:
            message: one or two sentences: what happened, why, what to do next.
            node: name of the node concerned.
            sqlstate: the server's SQLSTATE.
            failures: the error of each attempt, oldest first.
        """
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
    """The answer to COMMIT was lost: the transaction may or may not have happened.

    Running it again could repeat its effect. Look for the effect first (an idempotency key), or declare the unit of
    work idempotent with `db.using(idempotent=True)`.
    """


class MisuseError(DistributedSQLError):
    """The library was called in a way that cannot work; the message names the right way."""
