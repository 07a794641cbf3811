"""Primary keys from identity columns: small numbers, counted by the one node that writes.

The position of a sequence reaches the readers with everything else, so whoever becomes the writer counts on. Numbers may be
missing: a rollback returns none, and at a failover up to 32 of each sequence are skipped.
"""

from typing import TypeAlias

from sqlalchemy import BigInteger, Connection, Identity
from sqlalchemy.orm import Mapped, MappedColumn, declared_attr, mapped_column

Key: TypeAlias = int
"""What a primary key is in Python."""


def key_column(*, primary_key: bool = True) -> MappedColumn[Key]:
    """A column filled by an identity sequence. Use it where `PrimaryKeyMixin` does not fit, as in a composite key."""
    return mapped_column(BigInteger, Identity(), primary_key=primary_key)


class PrimaryKeyMixin:
    """Gives a model its primary key: `class Account(PrimaryKeyMixin, Base)`."""

    @declared_attr
    @classmethod
    def id(cls) -> Mapped[Key]:
        """The primary key."""
        return key_column()


def set_sequence_node(connection: Connection, number: int) -> None:
    """Nothing to do: one node counts."""


def misconfigured_sequences(connection: Connection, number: int) -> list[str]:
    """The sequences that could hand out another node's keys: none, as for `set_sequence_node`."""
    return []
