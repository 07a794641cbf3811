"""Check that a revision can run again from its beginning, and write new revisions that can.

CockroachDB changes a schema in the background, in steps that others can see, and a transaction does not make several
changes one: https://www.cockroachlabs.com/docs/stable/online-schema-changes. So each statement is a transaction of its
own, and an interrupted revision is completed by running it again.
"""

import re
from textwrap import shorten
from types import ModuleType
from typing import Any

from alembic.operations import ops
from sqlalchemy import Integer, String
from sqlalchemy.types import TypeEngine

from .base import MigrationError, without_literals
from .migrate import statements_of

_REPEATABLE = re.compile(
    r"""CREATE\ (OR\ REPLACE\b|.*\bIF\ NOT\ EXISTS\b) | DROP\b.*\bIF\ EXISTS\b
    | COMMENT\ ON\b | GRANT\b | REVOKE\b
    | ALTER\ TYPE\ .*\bADD\ VALUE\ IF\ NOT\ EXISTS\b
    | ALTER\ TABLE\ .*\b(ADD\ (COLUMN|CONSTRAINT)\ IF\ NOT\ EXISTS|DROP\ (COLUMN|CONSTRAINT)\ IF\ EXISTS
        |VALIDATE\ CONSTRAINT|ALTER\ COLUMN\ \S+\ ((SET|DROP)\ (DEFAULT|NOT\ NULL)|(SET\ DATA\ )?TYPE)
        |OWNER\ TO|SET\ LOCALITY)\b
    | ALTER\ .*\b(CONFIGURE\ ZONE|IF\ EXISTS\ .*\bRENAME\ TO)\b""",
    re.VERBOSE,
)
"""Statements that may run twice, in the form that `without_literals` returns."""


def refuse_unrepeatable(revision: ModuleType, *, back: bool) -> None:
    """Raise MigrationError if a revision could be neither rolled back nor run again after an interruption.

    A revision with `changes = "data"` passes, because it is one transaction.
    """
    if getattr(revision, "changes", "schema") == "data":
        return
    statements = statements_of(revision, back=back)
    for statement in statements:
        plain = without_literals(statement).rstrip("; ")
        if ";" in plain:
            raise MigrationError(
                f"refused: {shorten(statement, 80)}. Several statements in one string are one transaction, which "
                "cannot be relied on: give each an op.execute() of its own"
            )
        if len(statements) > 1 and not _REPEATABLE.match(plain):
            raise MigrationError(
                f"refused: {shorten(statement, 80)}. It cannot run twice, and revision {revision.revision} has other "
                "statements: interrupted, it could be neither rolled back nor run again. Write IF NOT EXISTS or "
                "IF EXISTS (if_not_exists=True), or give the statement a revision of its own"
            )


def compare_type(
    _context: object, _inspected: object, _column: object, found: TypeEngine[Any], wanted: TypeEngine[Any]
) -> bool | None:
    """Return whether two types differ, as a hook of Alembic; None lets Alembic decide.

    TEXT, STRING and VARCHAR are one type, with or without a length. The dialect reports every integer type as INT.
    """
    if isinstance(found, String) and isinstance(wanted, String):
        return found.length != wanted.length
    if isinstance(found, Integer) and isinstance(wanted, Integer):
        return False
    return None


def make_repeatable(_context: object, _revision: object, directives: list[ops.MigrationScript]) -> None:
    """Write IF NOT EXISTS or IF EXISTS into every operation of a new revision, as a hook of Alembic."""
    for directive in directives:
        _make_repeatable(directive.upgrade_ops)
        _make_repeatable(directive.downgrade_ops)


def _make_repeatable(operation: Any) -> None:
    for name in ("if_not_exists", "if_exists"):
        if hasattr(operation, name):
            setattr(operation, name, True)
    for inner in getattr(operation, "ops", ()):
        _make_repeatable(inner)
