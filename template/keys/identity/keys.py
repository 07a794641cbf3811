"""Primary keys from identity columns: small numbers, counted by the one node that writes.

The position of a sequence is replicated like everything else, so a reader that is promoted continues it. Numbers may be
missing: a rollback returns none, and a failover skips up to 32 numbers of each sequence.
"""

from typing import Any, TypeAlias

from sqlalchemy import BigInteger, Connection, Identity
from sqlalchemy.orm import Mapped, MappedAsDataclass, MappedColumn, declared_attr, mapped_column

Key: TypeAlias = int
"""Type of a primary key in Python."""


def key_column(*, primary_key: bool = True, **options: Any) -> MappedColumn[Key]:
    """Return a column that an identity sequence fills, for example in a composite key; options: see `mapped_column`."""
    return mapped_column(BigInteger, Identity(), primary_key=primary_key, **options)


class PrimaryKeyMixin:
    """Gives a model its primary key: `class Account(PrimaryKeyMixin, Base)`."""

    @declared_attr
    @classmethod
    def id(cls) -> Mapped[Key]:
        """Declare the primary key."""
        return key_column()


class DataclassPrimaryKeyMixin(MappedAsDataclass):
    """Gives a model that is a dataclass its primary key, which is no argument of the constructor."""

    @declared_attr
    @classmethod
    def id(cls) -> Mapped[Key]:
        """Declare the primary key."""
        return key_column(init=False)


def set_sequence_node(connection: Connection, number: int, schema: str | None = None) -> None:
    """Do nothing: one node counts."""


def misconfigured_sequences(connection: Connection, number: int) -> list[str]:
    """Return the sequences that could hand out keys of another node: none."""
    return []
