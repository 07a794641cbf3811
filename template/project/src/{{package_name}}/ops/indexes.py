"""Revisions with `changes = "indexes"`: indexes that are built while clients write, outside of a transaction.

PostgreSQL builds an index CONCURRENTLY in several transactions and waits between them for older ones to end. An attempt
that fails leaves an INVALID index, which costs every write and serves no query, and which IF NOT EXISTS would take for
the index itself. So the leftovers of an earlier attempt are dropped first, and a revision may run again.
"""

import re
from collections.abc import Collection

from sqlalchemy import Connection, text

ALLOWED = re.compile(
    r"CREATE (UNIQUE )?INDEX CONCURRENTLY IF NOT EXISTS\b|DROP INDEX CONCURRENTLY IF EXISTS\b"
    r"|REINDEX .*\bCONCURRENTLY\b|SELECT\b|SHOW\b"
)
"""Statements of such a revision, in the form that `without_literals` returns. Alembic itself looks tables up."""

NOT_ALLOWED = (
    "a revision of indexes holds CREATE INDEX CONCURRENTLY IF NOT EXISTS, DROP INDEX CONCURRENTLY IF EXISTS and "
    "REINDEX … CONCURRENTLY, which may run again, and nothing else"
)


def drop_leftovers(connection: Connection, statements: Collection[str]) -> list[str]:
    """Drop the INVALID indexes that these statements left when they failed before; return their names.

    Args:
        connection: a connection in autocommit, as the owner of the tables.
        statements: the statements of the revision.
    """
    words = {word for statement in statements for word in re.findall(r"\w+", statement)}
    dropped = []
    for schema, name in connection.execute(text(_INVALID)).all():
        # REINDEX builds the new index beside the old one, under the same name with this suffix.
        is_rebuilt = re.search(r"_cc(new|old)\d*$", name) and "REINDEX" in {word.upper() for word in words}
        if name in words or is_rebuilt:
            quote = connection.dialect.identifier_preparer.quote
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {quote(schema)}.{quote(name)}")
            dropped.append(name)
    return dropped


_INVALID = """
    SELECT nspname, relname FROM pg_index JOIN pg_class AS c ON c.oid = indexrelid
    JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE NOT indisvalid AND relkind = 'i' AND pg_has_role(relowner, 'USAGE')
      AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index WHERE index_relid = indexrelid)
"""
