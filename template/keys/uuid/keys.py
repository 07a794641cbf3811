"""Primary keys that the application makes: UUIDs of version 7, ordered by time, unique without coordination.

The key is known before the INSERT, so a parent and its children are written without a round trip in between.
"""

import os
import time
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Connection, Uuid
from sqlalchemy.orm import Mapped, MappedAsDataclass, MappedColumn, declared_attr, mapped_column

Key: TypeAlias = UUID
"""Type of a primary key in Python."""


def uuid7() -> UUID:
    """Return a UUID of version 7.

    It has 48 bits of Unix milliseconds, 12 bits of the fraction below, and 62 random bits: RFC 9562, section 6.2,
    method 3.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = (rest << 12) // 1_000_000
    random = int.from_bytes(os.urandom(8)) >> 2
    return UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | random)


def key_column(*, primary_key: bool = True, **options: Any) -> MappedColumn[Key]:
    """Return a column with UUIDs of version 7, for example in a composite key; options: see `mapped_column`."""
    return mapped_column(Uuid, insert_default=uuid7, primary_key=primary_key, **options)


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
