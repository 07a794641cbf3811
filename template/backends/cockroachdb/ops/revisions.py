"""Check that a revision can run again from its beginning, and write new revisions that can.

CockroachDB changes a schema in the background, in steps that others can see, and a transaction does not make several
changes one: https://www.cockroachlabs.com/docs/stable/online-schema-changes. So each statement is a transaction of its
own, and an interrupted revision is completed by running it again.
"""

import re
import warnings
from functools import partial
from importlib import import_module
from textwrap import shorten
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from alembic import op
from alembic.operations import ops
from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    Connection,
    Enum,
    Index,
    Integer,
    LargeBinary,
    String,
    TypeDecorator,
    text,
)
from sqlalchemy.dialects.postgresql import ENUM
from sqlalchemy.schema import AddConstraint, CreateIndex
from sqlalchemy.types import NullType, TypeEngine

from .autogenerate import Comparison, Statement, as_text
from .base import MigrationError, without_literals
from .migrate import statements_of

# It registers a comparison of its own with Alembic, which the class below then replaces.
import_module("sqlalchemy_cockroachdb")

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


class CockroachComparison(Comparison):
    """The models compared with a database of CockroachDB; what is written may run twice, or stands alone."""

    __dialect__ = "cockroachdb"
    transactional_ddl = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # `autogen_column_reflect` adds what the dialect warns that it cannot read.
        warnings.filterwarnings("ignore", "Could not parse type name 'USER-DEFINED'|Did not recognize type")

    def autogen_column_reflect(self, inspector: Any, table: Any, column_info: Any) -> None:
        """Give a column of an enum type its type, which the dialect does not read."""
        super().autogen_column_reflect(inspector, table, column_info)
        type_ = column_info["type"]
        if isinstance(type_.item_type if isinstance(type_, ARRAY) else type_, NullType):
            name = self.dialect.identifier_preparer.format_table(table)
            values = {"table": name, "column": column_info["name"]}
            found = cast(Connection, self.connection).execute(text(_ENUM), values).one_or_none()
            for enum in inspector.get_enums("*"):
                if found is not None and (enum["schema"], enum["name"]) == tuple(found):
                    is_own = enum["schema"] == self.dialect.default_schema_name
                    made = ENUM(*enum["labels"], name=enum["name"], schema=None if is_own else enum["schema"])
                    column_info["type"] = ARRAY(made) if isinstance(type_, ARRAY) else made

    def compare_type(self, inspector_column: Any, metadata_column: Any) -> bool:
        """Return whether two types differ.

        TEXT, STRING and VARCHAR are one type, with or without a length. The dialect reports every integer type as INT,
        and BYTES as BLOB.
        """
        found, wanted = inspector_column.type, metadata_column.type.dialect_impl(self.dialect)
        while isinstance(wanted, TypeDecorator):
            wanted = wanted.impl_instance
        if isinstance(found, ARRAY) and isinstance(wanted, ARRAY):
            found, wanted = found.item_type, wanted.item_type
        if isinstance(found, String) and isinstance(wanted, String) and not isinstance(wanted, Enum):
            return found.length != wanted.length
        if any(isinstance(found, kind) and isinstance(wanted, kind) for kind in (Integer, LargeBinary)):
            return False
        return super().compare_type(inspector_column, metadata_column)

    def compare_server_default(
        self, inspector_column: Any, metadata_column: Any, rendered: str | None, found: str | None
    ) -> bool:
        """Return whether a default differs; a column that numbers itself has `unique_rowid()` without a word of it."""
        if found == "unique_rowid()" and metadata_column.server_default is None:
            return metadata_column.autoincrement is not True
        return super().compare_server_default(inspector_column, metadata_column, rendered, found)

    def is_same_expression(self, found: str, wanted: str, type_: TypeEngine[Any]) -> bool:
        """Return whether two expressions of one type are the same but for casts, case, blanks and parentheses."""
        return _plain(found) == _plain(wanted)

    def is_same_index(self, wanted: Index, found: Index) -> bool:
        """Return whether two indexes are the same in that sense; the server cannot be asked without making one."""
        query = text("SELECT pg_get_indexdef(to_regclass(:name))")
        quote, schema = self.dialect.identifier_preparer.quote, cast(Any, found.table).schema
        name = f"{quote(schema)}.{quote(str(found.name))}" if schema else quote(str(found.name))
        there = str(cast(Connection, self.connection).scalar(query, {"name": name}))
        asked = str(CreateIndex(wanted).compile(dialect=self.dialect)).replace("%%", "%")
        return _plain(_keys(there)) == _plain(_keys(asked))

    def is_same_check(self, wanted: CheckConstraint, found: str, table: str) -> bool:
        """Return whether two CHECKs name the same values; the server cannot be asked without making one."""
        return _values(found) == _values(str(wanted.sqltext))

    def undoable(self, operation: Any) -> Any:
        """Return an operation that can be undone; a unique constraint is dropped with its index."""
        if isinstance(operation, ops.DropConstraintOp) and operation.constraint_type == "unique":
            return self.undoable(operation.reverse()).reverse()
        if not isinstance(operation, ops.CreateUniqueConstraintOp):
            return super().undoable(operation)
        constraint = operation.to_constraint()
        table = self.dialect.identifier_preparer.format_table(constraint.table)
        name = self.dialect.identifier_preparer.quote(str(constraint.name))
        create = str(AddConstraint(constraint).compile(dialect=self.dialect)).replace("%%", "%")
        return Statement(as_text(create), as_text(f"DROP INDEX IF EXISTS {table}@{name} CASCADE"))

    def adapt(self, operation: Any) -> None:
        """Write IF NOT EXISTS or IF EXISTS into an operation."""
        for name in ("if_not_exists", "if_exists"):
            if hasattr(operation, name):
                setattr(operation, name, True)
        if isinstance(operation, Statement):
            create = re.sub(
                r"^(CREATE (?:SCHEMA|SEQUENCE|(?:UNIQUE )?INDEX)) (?!IF )", r"\1 IF NOT EXISTS ", str(operation.sqltext)
            )
            drop = re.sub(r"^(DROP \w+) (?!IF )", r"\1 IF EXISTS ", create)
            operation.sqltext = re.sub(r"^(ALTER TABLE .+ DROP CONSTRAINT) (?!IF )", r"\1 IF EXISTS ", drop)

    def stands_alone(self, operation: Any) -> bool:
        """Return whether an operation cannot run twice."""
        revision = SimpleNamespace(revision="of one operation", upgrade=partial(op.invoke, operation))
        self.adapt(operation)
        sent = map(without_literals, statements_of(cast(ModuleType, revision), back=False))
        # A table is written without its types, which have statements of their own.
        is_type = not isinstance(operation, Statement)
        return not all(is_repeatable(sql) or (is_type and sql.startswith("CREATE TYPE ")) for sql in sent)


def _keys(definition: str) -> str:
    """Return the part of CREATE INDEX that follows the name of the table, without the default method."""
    rest = re.sub(r"^.*? ON (?:[^\s(]|\"[^\"]*\")+ ?", "", definition)
    return re.sub(r"^USING btree ", "", rest)


def _values(expression: str) -> list[str]:
    """Return the texts and numbers in an expression."""
    return sorted(re.findall(r"'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b", _CAST.sub("", expression)))


def _plain(expression: str) -> str:
    """Return an expression without casts, quoted names, case, blanks and parentheses, to compare it with another."""
    return re.sub(r"[\s()\"]", "", _CAST.sub("", expression)).lower()


_CAST = re.compile(
    r""":::?\s*("[^"]+" | [a-z_]\w*(\.\w+)?(\ varying|\ precision|\ with(out)?\ time\ zone)?) (\([\d,\ ]+\))?(\[\])?""",
    re.IGNORECASE | re.VERBOSE,
)
"""A cast, which the server adds to what it stores."""

_ENUM = """
    SELECT nspname::text, e.typname::text FROM pg_attribute JOIN pg_type AS t ON t.oid = atttypid
    JOIN pg_type AS e ON e.oid = CASE WHEN t.typelem = 0 THEN t.oid ELSE t.typelem END
    JOIN pg_namespace AS n ON n.oid = e.typnamespace
    WHERE attrelid = CAST(:table AS regclass) AND attname = :column AND e.typtype = 'e'
"""
