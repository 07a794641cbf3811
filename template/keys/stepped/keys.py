"""Primary keys from identity columns that step past each other: node k hands out k, k + 64, and so on.

The DDL is the same on every node; `migrate` sets each sequence to the number of its node, the server's
`snowflake.node`. The position of a sequence is not replicated, so each node has its own.
"""

from typing import Any, TypeAlias

from sqlalchemy import BigInteger, Connection, Identity, text
from sqlalchemy.orm import Mapped, MappedAsDataclass, MappedColumn, declared_attr, mapped_column

from .errors import WrongNode

Key: TypeAlias = int
"""Type of a primary key in Python."""

STRIDE = 64
"""Largest number of nodes, plus one: `key % STRIDE` is the number of its node. Each node has 2**63 / 64 keys."""


def key_column(*, primary_key: bool = True, **options: Any) -> MappedColumn[Key]:
    """Return a column that an identity sequence fills, for example in a composite key; options: see `mapped_column`."""
    return mapped_column(BigInteger, Identity(start=1, increment=STRIDE), primary_key=primary_key, **options)


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
    """Set every stepped sequence of a node to the node's own keys, unless it is there already.

    Args:
        connection: a connection to the node, as a role that may set its sequences.
        number: number of the node, from 1 to `STRIDE - 1`.
        schema: schema of the sequences; None: every schema.

    Raises:
        WrongNode: the number is out of range.
    """
    if not 0 < number < STRIDE:
        raise WrongNode(
            f"snowflake.node is {number} on this node; identity keys need a number from 1 to {STRIDE - 1} on each node"
        )
    for sequence, upcoming in _upcoming(connection, schema).items():
        # The first key of this node that was not handed out yet.
        ours = upcoming + (number - upcoming) % STRIDE
        if ours != upcoming:
            connection.execute(
                text("SELECT setval(CAST(:sequence AS regclass), :value, false)"), {"sequence": sequence, "value": ours}
            )


def misconfigured_sequences(connection: Connection, number: int) -> list[str]:
    """Return the sequences that would hand out keys of another node."""
    return [sequence for sequence, upcoming in _upcoming(connection).items() if upcoming % STRIDE != number]


def _upcoming(connection: Connection, schema: str | None = None) -> dict[str, int]:
    """Return the next key of each stepped sequence that this role may set."""
    upcoming = {}
    for name in connection.scalars(text(_SEQUENCES), {"stride": STRIDE, "schema": schema}).all():
        # Not from pg_sequences, which shows no position before the first key is taken. %I has quoted the name.
        query = f"SELECT last_value + CASE WHEN is_called THEN {STRIDE} ELSE 0 END FROM {name}"  # noqa: S608
        upcoming[name] = int(connection.exec_driver_sql(query).scalar_one())
    return upcoming


_SEQUENCES = """
    SELECT format('%I.%I', nspname, relname)
    FROM pg_sequence JOIN pg_class AS c ON c.oid = seqrelid JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE seqincrement = :stride AND nspname = coalesce(:schema, nspname)
      AND has_schema_privilege(n.oid, 'USAGE') AND has_sequence_privilege(seqrelid, 'UPDATE')
"""
