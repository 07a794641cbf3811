"""Primary keys that the application makes itself: random UUIDs (version 4), unique without asking anyone.

Known before the INSERT, so a parent and its children are written without a round trip in between. Random on purpose: rows are kept in
the order of their keys, in ranges that each have one node to decide. Keys that grow with time, such as UUIDs of version 7, would
send every INSERT to the same range, and so to the same node.
"""

from typing import TypeAlias
from uuid import UUID, uuid4

from sqlalchemy import Connection, Uuid, func
from sqlalchemy.orm import Mapped, MappedColumn, declared_attr, mapped_column

Key: TypeAlias = UUID
"""What a primary key is in Python."""


def key_column(*, primary_key: bool = True) -> MappedColumn[Key]:
    """A column filled with random UUIDs, by SQL as well. Use it where `PrimaryKeyMixin` does not fit, as in a composite key."""
    # Without `insert_sentinel` SQLAlchemy takes the server's default for what tells new rows apart, and inserts them one by one.
    default = func.gen_random_uuid()
    return mapped_column(Uuid, default=uuid4, insert_sentinel=True, server_default=default, primary_key=primary_key)


class PrimaryKeyMixin:
    """Gives a model its primary key: `class Account(PrimaryKeyMixin, Base)`."""

    @declared_attr
    @classmethod
    def id(cls) -> Mapped[Key]:
        """The primary key."""
        return key_column()


def set_sequence_node(connection: Connection, number: int) -> None:
    """Nothing to do: no node takes part in making a key."""


def misconfigured_sequences(connection: Connection, number: int) -> list[str]:
    """The sequences that could hand out another node's keys: there are no sequences."""
    return []
