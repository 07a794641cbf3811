"""Refuse models that a mesh cannot hold before a revision is written from them."""

from collections.abc import Iterator, Sequence

from sqlalchemy import Identity, MetaData, PrimaryKeyConstraint, Table, UniqueConstraint
from sqlalchemy.dialects.postgresql import ExcludeConstraint

from .base import MigrationError
from .topology import Topology


def refuse_models(models: Sequence[MetaData]) -> None:
    """Raise MigrationError if the mesh cannot hold a table of the models."""
    for metadata in models:
        for table in metadata.sorted_tables:
            for kind, name in problems(table):
                reason = Topology.refused_effects.get(
                    kind, "UPDATE and DELETE are not replicated. Give it a primary key"
                )
                raise MigrationError(f"refused: model table {table.fullname}: {kind} ({name}). {reason}")


def problems(table: Table) -> Iterator[tuple[str, str]]:
    """Yield the kind of each problem, one of `refused_effects` or "no primary key", and the name of its object."""
    if not table.primary_key.columns:
        yield "no primary key", table.name
    for constraint in table.constraints:
        if isinstance(constraint, ExcludeConstraint):
            yield "exclusion", str(constraint.name)
        elif isinstance(constraint, PrimaryKeyConstraint | UniqueConstraint) and constraint.deferrable:
            yield "deferrable key", str(constraint.name)
        elif isinstance(constraint, UniqueConstraint):
            yield "unique", str(constraint.name)
    for index in table.indexes:
        if index.unique:
            yield "unique", str(index.name)
    for column in table.primary_key.columns:
        steps = column.identity.increment if isinstance(column.identity, Identity) else None
        is_serial = column is table.autoincrement_column and column.default is None and column.server_default is None
        if is_serial or (column.identity is not None and (steps or 1) == 1):
            yield "local keys", column.name
