"""Primary keys from identity columns that step past each other: node k hands out k, k + 64, and so on.

The DDL is the same on every node; `migrate` sets each sequence to its node's number, which is `snowflake.node` of that
server. A sequence's position is not replicated, so nodes never see each other's.
"""

from typing import TypeAlias

from sqlalchemy import BigInteger, Connection, Identity, text
from sqlalchemy.orm import Mapped, MappedColumn, declared_attr, mapped_column

from .errors import WrongNode

Key: TypeAlias = int
"""What a primary key is in Python."""

STRIDE = 64
"""The most nodes there can ever be: a key carries its node in `key % STRIDE`. 2**63 / 64 ids remain for each."""


def key_column(*, primary_key: bool = True) -> MappedColumn[Key]:
    """A column filled by an identity sequence. Use it where `PrimaryKeyMixin` does not fit, as in a composite key."""
    return mapped_column(BigInteger, Identity(start=1, increment=STRIDE), primary_key=primary_key)


class PrimaryKeyMixin:
    """Gives a model its primary key: `class Account(PrimaryKeyMixin, Base)`."""

    @declared_attr
    @classmethod
    def id(cls) -> Mapped[Key]:
        """The primary key."""
        return key_column()


def set_sequence_node(connection: Connection, number: int) -> None:
    """Set every stepped sequence of this node to the node's own numbers; one that is there already is left alone.

    Args:
        connection: to the node, as a role that may set its sequences.
        number: of the node, from 1 to `STRIDE - 1`.

    Raises:
        WrongNode: the node has no such number.
    """
    if not 0 < number < STRIDE:
        raise WrongNode(
            f"snowflake.node is {number} on this node; identity keys need a number from 1 to {STRIDE - 1} on each node"
        )
    for sequence, upcoming in _upcoming(connection).items():
        # The first of our numbers that was not handed out here.
        ours = upcoming + (number - upcoming) % STRIDE
        if ours != upcoming:
            connection.execute(
                text("SELECT setval(CAST(:sequence AS regclass), :value, false)"), {"sequence": sequence, "value": ours}
            )


def misconfigured_sequences(connection: Connection, number: int) -> list[str]:
    """The sequences that would hand out another node's keys."""
    return [sequence for sequence, upcoming in _upcoming(connection).items() if upcoming % STRIDE != number]


def _upcoming(connection: Connection) -> dict[str, int]:
    """What each stepped sequence hands out next."""
    names = text("SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences WHERE increment_by = :stride")
    upcoming = {}
    for name in connection.scalars(names, {"stride": STRIDE}).all():
        # The sequence itself is asked: pg_sequences shows no position before the first number is taken.
        query = f"SELECT last_value + CASE WHEN is_called THEN {STRIDE} ELSE 0 END FROM {name}"  # noqa: S608 - quoted by %I
        upcoming[name] = int(connection.exec_driver_sql(query).scalar_one())
    return upcoming
