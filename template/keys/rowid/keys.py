"""Primary keys made by the node that takes the row: 64 bits, ordered by time, unique over all nodes without talking to them.

`unique_rowid()` puts 48 bits of time before 15 of the node's number. The migrations name it; the models call the column one that counts
by itself, which is what CockroachDB makes of SERIAL too, and what lets SQLAlchemy insert a thousand new objects at once. Keys that grow with time have a price: new rows
of a table all go to its last range, and one node decides for it. For a table that takes thousands of rows a second use UUIDs.
"""

from typing import TypeAlias

from sqlalchemy import BigInteger, Connection
from sqlalchemy.orm import Mapped, MappedColumn, declared_attr, mapped_column

Key: TypeAlias = int
"""What a primary key is in Python; beyond 2**53, so send it to JavaScript as a string."""


def key_column(*, primary_key: bool = True) -> MappedColumn[Key]:
    """A column filled with `unique_rowid()`. Use it where `PrimaryKeyMixin` does not fit, as in a composite key."""
    return mapped_column(BigInteger, autoincrement=True, primary_key=primary_key)


class PrimaryKeyMixin:
    """Gives a model its primary key: `class Account(PrimaryKeyMixin, Base)`."""

    @declared_attr
    @classmethod
    def id(cls) -> Mapped[Key]:
        """The primary key."""
        return key_column()


def set_sequence_node(connection: Connection, number: int) -> None:
    """Nothing to do: the node puts its own number into every key."""


def misconfigured_sequences(connection: Connection, number: int) -> list[str]:
    """The sequences that could hand out another node's keys: there are no sequences."""
    return []
