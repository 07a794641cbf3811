"""Rows that know which transaction changed them last, so that a copy elsewhere can ask for what is new and miss nothing.

Neither a timestamp nor the highest key can say what is new: a transaction that began earlier may commit later, with an older time and
a smaller key than rows that were copied long ago. The number of the transaction can, together with the server's word on which of them
are still running: below the oldest running one nothing is ever added.

Triggers keep `changed_in` and note what was deleted (`install`), whoever writes. TRUNCATE is refused: it names no rows.
"""

from typing import Any

from sqlalchemy import Column, MetaData, PrimaryKeyConstraint, Table, Text, text
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.orm import Mapped, declared_attr, mapped_column
from sqlalchemy.types import UserDefinedType


class TransactionNumber(UserDefinedType[str]):
    """PostgreSQL's `xid8`: 64 bits, never used twice by a server. The driver shows it as text."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Its name in SQL."""
        return "xid8"


# What Alembic reads back from the database is then compared by type, like any other column.
ischema_names["xid8"] = TransactionNumber


class Changing:
    """Gives a model the number of the transaction that changed a row last: `class Order(PrimaryKeyMixin, Changing, Base)`."""

    @declared_attr
    @classmethod
    def changed_in(cls) -> Mapped[str]:
        """Kept by a trigger."""
        return mapped_column(TransactionNumber, server_default=text("pg_current_xact_id()"), index=True)


metadata = MetaData()

deletions = Table(
    "deletion",
    metadata,
    Column("relation", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("changed_in", TransactionNumber, server_default=text("pg_current_xact_id()"), nullable=False),
    PrimaryKeyConstraint("relation", "key", name="pk_deletion"),
)
"""The keys of rows that are gone, each with the transaction that took it last."""

FUNCTIONS = """
    CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.changed_in := pg_current_xact_id();
        RETURN NEW;
    END $$;

    CREATE FUNCTION note_deletion() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO deletion (relation, key) VALUES (TG_TABLE_NAME, OLD.id::text)
        ON CONFLICT (relation, key) DO UPDATE SET changed_in = pg_current_xact_id();
        RETURN NULL;
    END $$;

    CREATE FUNCTION refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'rows of % are copied elsewhere, and TRUNCATE says nothing of them: use DELETE', TG_TABLE_NAME;
    END $$;
"""
"""Once for a database, in a migration, after the table of deletions."""

REMOVE_FUNCTIONS = "DROP FUNCTION note_change(), note_deletion(), refuse_truncate()"


def triggers(table: str) -> str:
    """The statements that keep the changes of one table, in a migration.

    Args:
        table: a name that needs no quotes, of a table with a key `id`.
    """
    return f"""
        CREATE TRIGGER note_change BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION note_change();
        CREATE TRIGGER note_deletion AFTER DELETE OR UPDATE OF id ON {table}
            FOR EACH ROW EXECUTE FUNCTION note_deletion();
        CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON {table} EXECUTE FUNCTION refuse_truncate();
    """
