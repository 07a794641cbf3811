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
        if lacking and lacking != missing.get(f"table {_table_of(name)}"):
            having = ", ".join(node for node in schemas if node not in lacking)
            found.append(f"{name} is missing on {', '.join(lacking)} and exists on {having}")
        elif not lacking and len({schema[name] for schema in schemas.values()}) > 1:
            definitions = "; ".join(f"{node} has {schema[name]}" for node, schema in schemas.items())
            found.append(f"{name} differs: {definitions}")
    return found


def _table_of(name: str) -> str:
    """Return the table of a column, or of an object on a table; of anything else, its own name."""
    if name.startswith("column "):
        return name.removeprefix("column ").rpartition(".")[0]
    return name.rpartition(" on ")[2]
