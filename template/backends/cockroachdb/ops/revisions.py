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
from sqlalchemy import Connection, Integer, String, text
from sqlalchemy.types import TypeEngine

from .base import MigrationError, without_literals
from .migrate import statements_of

_REPEATABLE = re.compile(
    r"""CREATE\ (OR\ REPLACE\b|.*\bIF\ NOT\ EXISTS\b) | DROP\b.*\bIF\ EXISTS\b
    | COMMENT\ ON\b | GRANT\b | REVOKE\b
    | ALTER\ TYPE\ .*\b(ADD\ VALUE\ IF\ NOT\ EXISTS|DROP\ VALUE\ IF\ EXISTS)\b
    | ALTER\ INDEX\ .*\b(NOT\ )?VISIBLE\b
    | ALTER\ DATABASE\ .*\b(SET|PRIMARY\ REGION|SURVIVE|ADD\ REGION\ IF\ NOT\ EXISTS|DROP\ REGION\ IF\ EXISTS)\b
    | ALTER\ .*\b(CONFIGURE\ ZONE|IF\ EXISTS\ .*\bRENAME\ TO|OWNER\ TO)\b""",
    re.VERBOSE,
)
"""Statements that may run twice, in the form that `without_literals` returns."""

_ALTER_TABLE = re.compile(r"ALTER TABLE (IF EXISTS )?(ONLY )?[\w?]+( ?\. ?[\w?]+)* ")
_REPEATABLE_ACTION = re.compile(
    r"""ADD\ (COLUMN|CONSTRAINT)\ IF\ NOT\ EXISTS\b | DROP\ (COLUMN|CONSTRAINT)\ IF\ EXISTS\b | VALIDATE\ CONSTRAINT\b
    | ALTER\ (COLUMN\ )?\S+\ ((SET|DROP)\ (DEFAULT|NOT\ NULL|ON\ UPDATE)|SET\ (NOT\ )?VISIBLE|(SET\ DATA\ )?TYPE)\b
    | OWNER\ TO\b | SET\ LOCALITY\b | CONFIGURE\ ZONE\b | (SET|RESET)\ ?\(
    | (ENABLE|DISABLE|FORCE|NO\ FORCE)\ ROW\ LEVEL\ SECURITY\b""",
    re.VERBOSE,
)
"""Actions of ALTER TABLE that may run twice. A statement may have several, each of which has to."""


def refuse_unrepeatable(revision: ModuleType, *, back: bool) -> None:
    """Raise MigrationError if a revision could be neither rolled back nor run again after an interruption.

    A revision with `changes = "data"` passes, because it is one transaction.
    """
    changes = getattr(revision, "changes", "schema")
    if changes == "data":
        return
    if changes == "indexes":
        raise MigrationError(
            f"revision {revision.revision} is about indexes, and here every index is made while clients write: write "
            'op.create_index(…, if_not_exists=True) into a revision with changes = "schema"'
        )
    statements = statements_of(revision, back=back)
    for statement in statements:
        plain = without_literals(statement).rstrip("; ")
        if ";" in plain:
            raise MigrationError(
                f"refused: {shorten(statement, 80)}. Several statements in one string are one transaction, which "
                "cannot be relied on: give each an op.execute() of its own"
            )
        if len(statements) > 1 and not is_repeatable(plain):
            raise MigrationError(
                f"refused: {shorten(statement, 80)}. It cannot run twice, and revision {revision.revision} has other "
                "statements: interrupted, it could be neither rolled back nor run again. Write IF NOT EXISTS or "
                "IF EXISTS (if_not_exists=True), or give the statement a revision of its own"
            )


def is_repeatable(plain: str) -> bool:
    """Return whether a statement, as `without_literals` returns it, may run twice."""
    if _REPEATABLE.match(plain):
        return True
    table = _ALTER_TABLE.match(plain)
    return table is not None and all(_REPEATABLE_ACTION.match(one) for one in _split(plain[table.end() :]))


def _split(actions: str) -> list[str]:
    """Return the parts between the commas that are in no parentheses."""
    found, depth = [""], 0
    for character in actions:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [one.strip() for one in found]


def refuse_unique_constraints(revision: ModuleType, connection: Connection, *, back: bool) -> None:
    """Raise MigrationError if a revision drops a unique constraint as no server before 26.2 allows."""
    version = re.search(r"v(\d+)\.(\d+)", str(connection.scalar(text("SELECT version()"))))
    if version and (int(version[1]), int(version[2])) >= (26, 2):
        return
    statements = [] if getattr(revision, "changes", "schema") == "data" else statements_of(revision, back=back)
    for match in (match for statement in statements for match in _DROP_CONSTRAINT.finditer(statement)):
        name = match["name"].strip('"')
        if connection.scalar(text(_IS_UNIQUE), {"name": name}):
            raise MigrationError(
                f"refused: {match[0]}. A unique constraint is dropped with its index: "
                f"op.execute('DROP INDEX IF EXISTS {match['table']}@{match['name']} CASCADE')"
            )


_DROP_CONSTRAINT = re.compile(
    r"""ALTER\s+TABLE\s+(?:IF\s+EXISTS\s+)?(?P<table>[\w."]+)\s+
    DROP\s+CONSTRAINT\s+(?:IF\s+EXISTS\s+)?(?P<name>"[^"]+"|\w+)""",
    re.IGNORECASE | re.VERBOSE,
)
_IS_UNIQUE = "SELECT count(*) FROM pg_constraint WHERE contype = 'u' AND conname = :name"


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
