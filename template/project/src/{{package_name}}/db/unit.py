"""The session of one unit of work: one transaction on one node, ended by the database that began it."""

from collections.abc import Mapping
from typing import Any, NoReturn

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from . import backend
from .errors import MisuseError


class UnitOfWork(Session):
    """A `Session` pinned to its node; commit, rollback and a change of node are the database's business.

    Objects that leave it are detached: what was loaded stays readable, nothing more is fetched.
    """

    def __init__(self, bind: Connection, *, node: str, readonly: bool, **options: Any) -> None:
        self.node = node
        """Where it runs."""
        self.readonly = readonly
        """Whether the server refuses its writes."""
        self.committing = False
        """Whether COMMIT has been sent."""
        self._pinned = bind
        super().__init__(bind, expire_on_commit=False, **options)

    @property
    def bind(self) -> Connection:
        """The connection it is pinned to."""
        return self._pinned

    @bind.setter
    def bind(self, bind: object) -> None:
        """Refused: a unit of work stays where it began."""
        if bind is not self._pinned:
            raise MisuseError(
                f"session.bind cannot change: this unit of work is on {self.node} and stays there. "
                "Choose the node when you begin one, with db.session(node=…) or db.options(node=…)",
                node=self.node,
            )

    def get_bind(self, mapper: Any = None, *, bind: Any = None, **_: Any) -> Connection:
        """The connection of this unit of work, whatever is asked.

        Raises:
            MisuseError: another database was asked for.
        """
        if bind is not None and bind is not self._pinned:
            raise MisuseError(
                f"this unit of work is on {self.node}, and one transaction cannot span two databases: "
                "begin another with db.session(node=…) or db.options(node=…)",
                node=self.node,
            )
        return self._pinned

    def commit(self) -> NoReturn:
        """Refused: only the whole unit of work can be committed, and only by who may have to run it again."""
        raise MisuseError(
            "a unit of work is committed when its function returns; to commit earlier, make it two units of work",
            node=self.node,
        )

    def rollback(self) -> NoReturn:
        """Refused, as `commit`."""
        raise MisuseError(
            "a unit of work is rolled back when its function raises; to undo a part, use session.begin_nested()",
            node=self.node,
        )

    def finish(self) -> None:
        """Send what is pending, then COMMIT. For the database that began it."""
        self.flush()
        if backend.is_aborted(self._pinned):
            # PostgreSQL answers COMMIT in an aborted transaction with a rollback and no error.
            raise MisuseError(
                "a statement failed and the unit of work went on: its changes would be lost without a word. "
                "Let the error out, or contain the statement in session.begin_nested()",
                node=self.node,
            )
        self.committing = True
        super().commit()

    def end(self) -> None:
        """Roll back what was not committed and return the connection; a broken one is thrown away.

        For the database that began it.
        """
        try:
            self.close()
        except DBAPIError:
            self._pinned.invalidate()
        self._pinned.close()


def connection_options(standing: Mapping[str, Any], isolation: str | None) -> dict[str, Any]:
    """The execution options of a unit of work's connection."""
    return {**standing, "isolation_level": isolation} if isolation else dict(standing)
