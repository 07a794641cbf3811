"""What a revision may consist of where none of its statements can be rolled back, and how a new one is written.

CockroachDB changes a schema in the background, in steps that others can see, and in a transaction it does not do so as a whole:
https://www.cockroachlabs.com/docs/stable/online-schema-changes. So each statement stands alone, and what makes a revision whole is that it can
be run again from its beginning.
"""

import re
from collections.abc import Iterable
from typing import Any

from alembic.operations import Operations, ops
from alembic.runtime.migration import MigrationContext
from alembic.script import Script
from sqlalchemy import Integer, String
from sqlalchemy.dialects import registry
from sqlalchemy.types import TypeEngine

from ..settings import URL_SCHEME
from .statements import MigrationError, short, without_literals

_REPEATABLE = re.compile(
    r"""CREATE\ (OR\ REPLACE\b|.*\bIF\ NOT\ EXISTS\b) | DROP\b.*\bIF\ EXISTS\b | COMMENT\ ON\b | GRANT\b | REVOKE\b
    | ALTER\ TYPE\ .*\bADD\ VALUE\ IF\ NOT\ EXISTS\b
    | ALTER\ TABLE\ .*\b(ADD\ (COLUMN|CONSTRAINT)\ IF\ NOT\ EXISTS|DROP\ (COLUMN|CONSTRAINT)\ IF\ EXISTS|VALIDATE\ CONSTRAINT
        |ALTER\ COLUMN\ \S+\ ((SET|DROP)\ (DEFAULT|NOT\ NULL)|(SET\ DATA\ )?TYPE)|OWNER\ TO|SET\ LOCALITY)\b
    | ALTER\ .*\b(CONFIGURE\ ZONE|IF\ EXISTS\ .*\bRENAME\ TO)\b""",
    re.VERBOSE,
)
"""What may run twice; in upper case, as `without_literals` leaves it."""


def refuse_what_cannot_be_repeated(script: Script, *, back: bool) -> None:
    """Look at a revision before any of it runs.

    Raises:
        MigrationError: if it were interrupted it could be neither rolled back nor run again.
    """
    if getattr(script.module, "changes", "schema") == "data":
        return
    statements = _statements(script, back=back)
    for statement in statements:
        plain = without_literals(statement).rstrip("; ")
        if ";" in plain:
            raise MigrationError(
                f"refused: {short(statement)}. Several statements in one string are one transaction, which cannot be relied on: give "
                "each an op.execute() of its own"
            )
        if len(statements) > 1 and not _REPEATABLE.match(plain):
            raise MigrationError(
                f"refused: {short(statement)}. It cannot run twice, and revision {script.revision} has other statements: interrupted, it "
                "could be neither rolled back nor run again. Write IF NOT EXISTS or IF EXISTS (if_not_exists=True), or give the "
                "statement a revision of its own"
            )


def differ(
    _context: object, _inspected: object, _column: object, found: TypeEngine[Any], wanted: TypeEngine[Any]
) -> bool | None:
    """For Alembic: whether two types are not the same; None: it may decide itself.

    TEXT, STRING and VARCHAR are one type, with or without a length. Integers are told apart by nobody: the dialect reports all as INT.
    """
    if isinstance(found, String) and isinstance(wanted, String):
        return found.length != wanted.length
    if isinstance(found, Integer) and isinstance(wanted, Integer):
        return False
    return None


def make_repeatable(_context: object, _revision: object, directives: list[ops.MigrationScript]) -> None:
    """For Alembic: let a new revision be one that may run twice."""
    for directive in directives:
        for operation in _flat(directive.upgrade_ops.ops if directive.upgrade_ops else ()):
            _say_exists(operation)
        for operation in _flat(directive.downgrade_ops.ops if directive.downgrade_ops else ()):
            _say_exists(operation)


def _say_exists(operation: Any) -> None:
    for name in ("if_not_exists", "if_exists"):
        if hasattr(operation, name):
            setattr(operation, name, True)


def _flat(operations: Iterable[Any]) -> Iterable[Any]:
    for operation in operations:
        if isinstance(operation, ops.OpContainer):
            yield from _flat(operation.ops)
        else:
            yield operation


class _Collected:
    """Takes what Alembic would write into a file of SQL."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def write(self, text: str) -> None:
        """One statement."""
        if text.strip():
            self.statements.append(text.strip())

    def flush(self) -> None:
        """Nothing is held back."""


def _statements(script: Script, *, back: bool) -> list[str]:
    """What a revision would send, without a server."""
    collected: Any = _Collected()
    dialect = registry.load(URL_SCHEME.replace("+", "."))()
    context = MigrationContext.configure(dialect=dialect, opts={"as_sql": True, "output_buffer": collected})
    try:
        with Operations.context(context):
            (script.module.downgrade if back else script.module.upgrade)()
    except Exception as error:
        raise MigrationError(
            f"revision {script.revision} cannot be read without a database ({type(error).__name__}: {error}). What it asks the "
            'database belongs into a revision of its own with changes = "data"'
        ) from error
    found: list[str] = collected.statements
    return found
