"""Snowflake ids as primary keys: 64 bits, ordered by time, unique without coordination.

Bits, from the top: sign, 41 of milliseconds since 2023-01-01 UTC, 10 of node, 12 of counter. The textbook column,
`server_default=text("snowflake.nextval(…)")`, makes the ORM insert one row per round trip. This one declares a sequence
that only grows, so that a thousand new objects are one INSERT.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeAlias

from sqlalchemy import BigInteger, Connection, Sequence
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapped, MappedAsDataclass, MappedColumn, declared_attr, mapped_column
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import next_value

Key: TypeAlias = int
"""Type of a primary key in Python; larger than 2**53, so send it to JavaScript as a string."""

EPOCH = datetime(2023, 1, 1, tzinfo=UTC)
"""Start of the milliseconds in a key."""


class SnowflakeSequence(Sequence):
    """A sequence read with `snowflake.nextval` instead of `nextval`, wherever SQLAlchemy would read it."""

    def next_value(self) -> "next_snowflake":
        """Return the SQL expression of the next key."""
        return next_snowflake(self)


class next_snowflake(next_value):  # noqa: N801 - SQL functions are lower case in SQLAlchemy
    """`snowflake.nextval('…'::regclass)`, as a column default and in DDL."""

    inherit_cache = True


@compiles(SnowflakeSequence)
@compiles(next_snowflake)
def _nextval(element: SnowflakeSequence | next_snowflake, compiler: SQLCompiler, **_: Any) -> str:
    sequence = element.sequence if isinstance(element, next_snowflake) else element
    name = compiler.preparer.format_sequence(sequence).replace("'", "''")
    return f"snowflake.nextval('{name}'::regclass)"


def key_column(sequence: str, *, primary_key: bool = True, **options: Any) -> MappedColumn[Key]:
    """Return a column with ids from `sequence`, for example in a composite key; options: see `mapped_column`."""
    source = SnowflakeSequence(sequence, data_type=BigInteger)
    return mapped_column(
        BigInteger, source, primary_key=primary_key, insert_sentinel=True, server_default=source.next_value(), **options
    )


class PrimaryKeyMixin:
    """Gives a model its primary key: `class Account(PrimaryKeyMixin, Base)`."""

    @declared_attr
    @classmethod
    def id(cls) -> Mapped[Key]:
        """Declare the primary key, with the sequence `<table>_id_seq`."""
        return key_column(f"{cls.__tablename__}_id_seq")  # type: ignore[attr-defined]


class DataclassPrimaryKeyMixin(MappedAsDataclass):
    """Gives a model that is a dataclass its primary key, which is no argument of the constructor."""

    @declared_attr
    @classmethod
    def id(cls) -> Mapped[Key]:
        """Declare the primary key, with the sequence `<table>_id_seq`."""
        return key_column(f"{cls.__tablename__}_id_seq", init=False)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Snowflake:
    """Parts of a key: the time to the millisecond, the node's number (1 to 1023), and the counter within that time."""

    at: datetime
    node: int
    count: int

    @classmethod
    def decode(cls, key: Key) -> Self:
        """Return the parts of `key`."""
        return cls(at=EPOCH + timedelta(milliseconds=key >> 22), node=key >> 12 & 1023, count=key & 4095)


def set_sequence_node(connection: Connection, number: int, schema: str | None = None) -> None:
    """Do nothing: the server puts the number of its node into every key."""


def misconfigured_sequences(connection: Connection, number: int) -> list[str]:
    """Return the sequences that could hand out keys of another node: none."""
    return []
