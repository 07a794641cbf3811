{% if profile.replication == 'multi-master' %}
"""Primary keys from pgEdge's `snowflake` extension: 64 bits, ordered by time, unique over all nodes without talking to them.
{% else %}
"""Snowflake ids as primary keys: 64 bits, ordered by time, made by the functions in `migrations/snowflake.sql`.
{% endif %}

Bits, from the top: sign, 41 of milliseconds since 2023-01-01 UTC, 10 of node, 12 of counter. The textbook column,
`server_default=text("snowflake.nextval(…)")`, makes the ORM insert one row per round trip; here the sequence is known to
SQLAlchemy as one that only grows, so that a thousand new objects are still one INSERT.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from sqlalchemy import BigInteger, Connection, Sequence
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapped, MappedColumn, declared_attr, mapped_column
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import next_value

Key: TypeAlias = int
"""What a primary key is in Python; beyond 2**53, so send it to JavaScript as a string."""

EPOCH = datetime(2023, 1, 1, tzinfo=UTC)


class SnowflakeSequence(Sequence):
    """A sequence read with `snowflake.nextval` instead of `nextval`, wherever SQLAlchemy would read it."""

    def next_value(self) -> "next_snowflake":
        """The SQL expression for the next id."""
        return next_snowflake(self)


class next_snowflake(next_value):  # noqa: N801 - SQL functions are lower case in SQLAlchemy
    """`snowflake.nextval('…'::regclass)`, as a column default and in DDL."""

    inherit_cache = True


@compiles(SnowflakeSequence)
def _sequence(element: SnowflakeSequence, compiler: SQLCompiler, **_: Any) -> str:
    name = compiler.preparer.format_sequence(element).replace("'", "''")
    return f"snowflake.nextval('{name}'::regclass)"


@compiles(next_snowflake)
def _next_value(element: next_snowflake, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.sequence, **options)


def key_column(sequence: str, *, primary_key: bool = True) -> MappedColumn[Key]:
    """A column filled with snowflake ids from `sequence`, by the ORM, by Core and by plain SQL alike.

    Use it where `PrimaryKeyMixin` does not fit, as in a composite key.
    """
    source = SnowflakeSequence(sequence, data_type=BigInteger)
    return mapped_column(
        BigInteger, source, primary_key=primary_key, insert_sentinel=True, server_default=source.next_value()
    )


class PrimaryKeyMixin:
    """Gives a model its primary key: `class Account(PrimaryKeyMixin, Base)`."""

    @declared_attr
    @classmethod
    def id(cls) -> Mapped[Key]:
        """The primary key, from the sequence `<table>_id_seq`."""
        table: str = cls.__tablename__  # type: ignore[attr-defined]
        return key_column(f"{table}_id_seq")


@dataclass(frozen=True)
class Snowflake:
    """What an id says about itself."""

    at: datetime
    node: int
    count: int

    @classmethod
    def decode(cls, key: Key) -> "Snowflake":
        """Take `key` apart: the moment to the millisecond, the node (1 to 1023), the counter within that millisecond."""
        return cls(at=EPOCH + timedelta(milliseconds=key >> 22), node=key >> 12 & 1023, count=key & 4095)


def set_sequence_node(connection: Connection, number: int) -> None:
{% if profile.replication == 'multi-master' %}
    """Nothing to do: the server puts its own number into every id."""
{% else %}
    """Nothing to do: one node makes keys."""
{% endif %}


def misconfigured_sequences(connection: Connection, number: int) -> list[str]:
    """The sequences that could hand out another node's keys: none, as for `set_sequence_node`."""
    return []
