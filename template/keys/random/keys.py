"""Primary keys that the application makes: random UUIDs (version 4), unique without coordination.

The key is known before the INSERT, so a parent and its children are written without a round trip in between. Rows are
kept in the order of their keys, in ranges, and one node coordinates each range. Random keys spread over all ranges;
keys that grow with time, such as UUIDs of version 7, would send every INSERT to the same range and so to the same node.
"""

from typing import Any, TypeAlias
from uuid import UUID, uuid4

from sqlalchemy import Connection, Uuid, func
from sqlalchemy.orm import Mapped, MappedAsDataclass, MappedColumn, declared_attr, mapped_column

Key: TypeAlias = UUID
"""Type of a primary key in Python."""


def key_column(*, primary_key: bool = True, **options: Any) -> MappedColumn[Key]:
    """Return a column with random UUIDs, where `PrimaryKeyMixin` does not fit, as in a composite key.

    The application makes the UUIDs; the server does for plain SQL that gives none. Options: see `mapped_column`.
    """
    # Without `insert_sentinel` SQLAlchemy tells new rows apart by the server's default, and inserts them one by one.
    default = func.gen_random_uuid()
    return mapped_column(
        Uuid,
        insert_default=uuid4,
        insert_sentinel=True,
        server_default=default,
        primary_key=primary_key,
        **options,
    )


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
    """Do nothing: no node takes part in making a key."""


def misconfigured_sequences(connection: Connection, number: int) -> list[str]:
    """Return the sequences that could hand out keys of another node: none."""
    return []
