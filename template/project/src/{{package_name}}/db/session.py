"""The session of one unit of work: one transaction on one node, ended by the database that began it."""

from typing import Any, NoReturn

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .base import BaseBackend
from .errors import MisuseError
from .objects import Objects


class PinnedSession(Session):
    """A `Session` pinned to one node; only the database commits it, rolls it back and closes it."""

    def __init__(self, bind: Connection, *, node: str, readonly: bool, backend: BaseBackend[Any]) -> None:
        """Pin a session to an open connection, which the session closes."""
        self.node = node
        self.readonly = readonly
        self.committing = False  # True from the moment at which COMMIT is sent
        self.in_doubt = False  # True if an earlier attempt at this work sent a COMMIT that was not answered
        self.objects = Objects()  # objects of the caller and of the work, as they were before they joined the session
        self._backend = backend
        self._pinned = bind
        super().__init__(bind, expire_on_commit=False)

    @property
    def bind(self) -> Connection:
        """The connection of this session."""
        return self._pinned

    @bind.setter
    def bind(self, bind: object) -> None:
        """Refuse another bind: a unit of work stays on its node."""
        if bind is not self._pinned:
            raise MisuseError(
                f"session.bind cannot change: this unit of work is on {self.node} and stays there. "
                "Choose the node when you begin one, with db.using(node=…)",
                node=self.node,
            )

    def get_bind(self, mapper: Any = None, *, bind: Any = None, **_: Any) -> Connection:
        """Return the connection of this session, whatever the statement is; refuse another bind."""
        if bind is not None and bind is not self._pinned:
            raise MisuseError(
                f"this unit of work is on {self.node}, and one transaction cannot span two databases: "
                "begin another with db.using(node=…)",
                node=self.node,
            )
        return self._pinned

    def commit(self) -> NoReturn:
        """Refuse: only the database commits, because it may have to run the whole unit of work again."""
        raise self._misuse("is committed when its function returns; to commit earlier, make it two units of work")

    def rollback(self) -> NoReturn:
        """Refuse, as `commit`."""
        raise self._misuse("is rolled back when its function raises; to undo a part, use session.begin_nested()")

    def prepare(self) -> NoReturn:
        """Refuse, as `commit`: a prepared transaction keeps its locks until somebody finishes it."""
        raise self._misuse(
            "is not prepared by hand: two databases need an outbox in one and an idempotency key in the other"
        )

    def _misuse(self, rule: str) -> MisuseError:
        return MisuseError(f"a unit of work {rule}", node=self.node)

    def finish(self) -> None:
        """Flush, then send COMMIT. Called by the database that began the session."""
        self.flush()
        if self._backend.is_aborted(self._pinned):
            # PostgreSQL answers COMMIT in an aborted transaction with a rollback and no error.
            raise MisuseError(
                "a statement failed and the unit of work went on: its changes would be lost without a word. "
                "Let the error out, or contain the statement in session.begin_nested()",
                node=self.node,
            )
        with self._backend.committing(self._pinned, readonly=self.readonly, in_doubt=self.in_doubt):
            self.committing = True
            super().commit()
        self.objects.forget()

    def release(self, *, prepared: bool = False) -> None:
        """Roll back what was not committed and return the connection, or discard a broken one; called as `finish`.

        Objects are put back as they were before they joined the session, unless it was committed or is prepared.
        """
        try:
            self.close()
        except DBAPIError:
            self._pinned.invalidate()
        self._pinned.close()
        if not prepared:
            self.objects.restore()


@event.listens_for(PinnedSession, "before_attach")
def _note(session: PinnedSession, instance: object) -> None:
    session.objects.note(instance)
