"""The schema of a node as a catalogue of definitions, and how it differs from those of other nodes."""

from collections.abc import Mapping

from sqlalchemy import Connection, text

from .catalogue import OBJECTS
from .topology import Topology

SCRATCH_PREFIX = "_verify_"
"""Prefix of the schemas that `verify` makes and drops; they belong to no migration."""


def read_schema(connection: Connection) -> dict[str, str]:
    """Return the definition of every object of the application by name, without those of the cluster's software."""
    return {
        name: definition
        for schema, name, definition in connection.execute(text(OBJECTS))
        if schema not in Topology.system_schemas and not schema.startswith(SCRATCH_PREFIX)
    }


def differences(schemas: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a line for each object that the nodes do not agree on, naming the nodes; empty if they agree.

    An object that is missing because its table is missing has no line of its own.
    """
    every = sorted({name for schema in schemas.values() for name in schema})
    missing = {name: [node for node, schema in schemas.items() if name not in schema] for name in every}
    found = []
    for name, lacking in missing.items():
        definitions = {schema[name] for schema in schemas.values() if name in schema}
        if lacking:
            if lacking == missing.get(f"table {_table_of(name)}"):
                continue
            having = [node for node in schemas if node not in lacking]
            found.append(f"{name} is missing on {', '.join(lacking)} and exists on {', '.join(having)}")
        elif len(definitions) > 1:
            found.append(
                f"{name} differs: " + "; ".join(f"{node} has {schema[name]}" for node, schema in schemas.items())
            )
    return found


def _table_of(name: str) -> str:
    """Return the table that a column, or an object on a table, belongs to; empty for anything else."""
    kind, _, rest = name.partition(" ")
    if kind == "column":
        return rest.rpartition(".")[0]
    _, on, table = rest.rpartition(" on ")
    return table if on else ""
