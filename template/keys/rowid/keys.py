"""Primary keys from `unique_rowid()`: 64 bits, ordered by time, unique over all nodes without coordination.

The node that receives the row makes the key: 48 bits of time, then 15 of the node's number. The migrations name the
function. The models declare an autoincrement column, as CockroachDB's SERIAL is one, so that SQLAlchemy inserts a
thousand new objects at once. Keys that grow with time have a price: new rows of a table all go to its last range, which
one node coordinates. For a table that takes thousands of rows a second use UUIDs.
"""

from typing import Any, TypeAlias

from sqlalchemy import BigInteger, Connection
from sqlalchemy.orm import Mapped, MappedAsDataclass, MappedColumn, declared_attr, mapped_column

Key: TypeAlias = int
"""Type of a primary key in Python; larger than 2**53, so send it to JavaScript as a string."""


def key_column(*, primary_key: bool = True, **options: Any) -> MappedColumn[Key]:
    """Return a column that `unique_rowid()` fills, for example in a composite key; options: see `mapped_column`."""
    return mapped_column(BigInteger, autoincrement=True, primary_key=primary_key, **options)


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
    """Do nothing: the node puts its own number into every key."""


def misconfigured_sequences(connection: Connection, number: int) -> list[str]:
    """Return the sequences that could hand out keys of another node: none."""
    return []
