"""The rule of the tutorials, for those who want it: DML to one database, all the rest to another.

    with PerStatementSession(writer=db.engine("n1"), reader=db.engine("n2")) as session: ...

It decides by looking at each statement, and a statement does not say enough:

- a session that wrote reads on the other database, where its own rows are missing or late, even before it committed;
- `SELECT … FOR UPDATE` locks rows on the reader, or fails there; so do a function with effects, `nextval`, and a CTE that writes;
- `refresh`, lazy loads and `session.connection()` go to the reader, after a flush as well;
- a session that read and wrote holds two transactions, and its commit is two commits: one can fail after the other.

`Database` decides once for the whole unit of work instead: `db.session()` writes, `db.session(readonly=True)` reads.
"""

from typing import Any

from sqlalchemy import Engine, UpdateBase
from sqlalchemy.orm import Session


class PerStatementSession(Session):
    """A `Session` that sends flushes and DML statements to `writer` and everything else to `reader`."""

    def __init__(self, *, writer: Engine, reader: Engine, **options: Any) -> None:
        super().__init__(**options)
        self._writer = writer
        self._reader = reader

    def get_bind(self, mapper: Any = None, *, clause: Any = None, bind: Any = None, **_: Any) -> Engine:
        """The engine for one statement."""
        if bind is not None:
            engine: Engine = bind
            return engine
        return self._writer if self._flushing or isinstance(clause, UpdateBase) else self._reader
