"""Let a read of one query do without a transaction.

BEGIN and COMMIT cost a round trip each. A query that stands alone has its own snapshot at READ COMMITTED whether it is
in a transaction or not, so the transaction begins with the second statement, or with the first one if that is anything
but a plain query: what it sets or locks, and its cursor, lasts as long as the transaction.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Select, TextClause, event
from sqlalchemy.engine.interfaces import Compiled
from sqlalchemy.sql.elements import ColumnClause
from sqlalchemy.sql.functions import Function, FunctionElement, GenericFunction
from sqlalchemy.sql.selectable import ForUpdateArg
from sqlalchemy.sql.visitors import iterate

OPTION = "reading"
"""Execution option of a connection that carries its `Reading`."""

_PURE_FUNCTIONS = frozenset({"avg", "coalesce", "count", "lower", "max", "min", "sum", "upper"})
"""Functions whose effect is their result; of any other one that is not known here."""

_verdicts: WeakKeyDictionary[Compiled, bool] = WeakKeyDictionary()


@dataclass
class Reading:
    """Progress of one read."""

    is_first: bool = True  # no statement has been sent
    has_begun: bool = False  # BEGIN has been sent


def begin_when_needed(engine: Engine) -> None:
    """Prepare an engine whose connections are in autocommit, for connections with a `Reading`."""

    # Events of the dialect: an event of the connection would make each of its calls look for listeners.
    @event.listens_for(engine, "do_execute")
    @event.listens_for(engine, "do_execute_no_params")
    @event.listens_for(engine, "do_executemany")
    def begin(*arguments: Any) -> None:
        context = arguments[-1]
        connection: Connection = context.root_connection
        reading: Reading | None = connection.get_execution_options().get(OPTION)
        if reading is None or reading.has_begun:
            return
        if reading.is_first and stands_alone(context):
            reading.is_first = False
            return
        reading.has_begun = True
        # The driver's commit and rollback end it, although the connection is in autocommit.
        connection.exec_driver_sql("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")


def stands_alone(context: Any) -> bool:
    """Return whether a statement has the same meaning outside a transaction."""
    compiled: Compiled | None = context.compiled
    options = context.execution_options
    if compiled is None or options.get("stream_results") or options.get("yield_per"):
        return False
    if (verdict := _verdicts.get(compiled)) is None:
        # The statement that an ORM query was turned into has the expressions behind its attributes.
        statement = getattr(compiled.compile_state, "statement", compiled.statement)
        _verdicts[compiled] = verdict = isinstance(statement, Select) and all(map(_is_pure, iterate(statement)))
    return verdict


def _is_pure(element: Any) -> bool:
    if isinstance(element, Function | GenericFunction):
        return element.name.lower() in _PURE_FUNCTIONS and not element.packagenames
    is_opaque = isinstance(element, FunctionElement | TextClause | ForUpdateArg) or (
        isinstance(element, ColumnClause) and element.is_literal
    )
    # An element of somebody else's class may compile to anything.
    return not is_opaque and type(element).__module__.partition(".")[0] == "sqlalchemy"
