"""The rule of SQLAlchemy's binds, for those who want it: each statement goes to the database of its model.

    with databases.per_model(readonly=True) as session:
        session.scalars(select(Order)), session.scalars(select(Account))     # two databases, read side by side

It is convenient, and says less than it seems to:

- its commit is one commit per database, one after the other: the second can fail when the first is done;
- what it reads is a moment of each database, and not the same one;
- a statement that names no model (`text`) has no database, and a join over two of them does not exist.

So a session that may write is held to the database of its first statement, and a second one is refused before anything is sent
there. `databases.two_phase(…)` writes to several, and says so.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import DeclarativeBase, Session

from .errors import MisuseError


class PerModelSession(Session):
    """A `Session` that asks each statement's model for its database, and writes to one only."""

    def __init__(
        self, models: Mapping[type[DeclarativeBase], Engine], *, names: Mapping[Engine, str], readonly: bool
    ) -> None:
        binds: Any = dict(models)
        super().__init__(binds=binds, expire_on_commit=False)
        self._names = names
        self._readonly = readonly
        self._place: str | None = None

    def get_bind(self, mapper: Any = None, **arguments: Any) -> Engine:
        """The engine for one statement.

        Raises:
            MisuseError: the statement names no model, or another database than the one this session writes to.
        """
        try:
            engine: Any = super().get_bind(mapper, **arguments)
        except UnboundExecutionError as error:
            raise MisuseError(
                "this statement names no model, so nobody can say which database it is for: use databases.session(NAME)"
            ) from error
        place = self._names[engine]
        if not self._readonly:
            if self._place not in (None, place):
                raise MisuseError(
                    f"this session writes to {self._place}, and the statement is for {place}: its commit would be two "
                    f"commits, of which one can fail. Use databases.two_phase({self._place!r}, {place!r}), or "
                    "per_model(readonly=True) to read",
                    node=place,
                )
            self._place = place
        bound: Engine = engine
        return bound
