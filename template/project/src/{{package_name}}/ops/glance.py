"""Find out whether a migration has anything to do, with one look at all nodes at once."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from alembic.script import ScriptDirectory
from sqlalchemy import URL

from ..db import keys
from .connections import as_owner, connect
from .migrate import differences, read_schema, resolve, version_of
from .topology import Topology


def version_if_reached(admin_urls: Mapping[str, URL], *, owner: str, scripts: ScriptDirectory) -> str | None:
    """Return the newest revision if every node is at it, with the same schema; None if there is something to do.

    Each writer's sequences are set to its own keys, as after a migration.

    Args:
        admin_urls: the nodes, for a role that may change the schema.
        owner: the application's role.
        scripts: the revisions of the project.

    Raises:
        Unreachable: a node cannot be reached.
    """
    head = resolve(scripts, "heads")

    def look(node: str) -> dict[str, str] | None:
        with connect(admin_urls[node], node=node, statement_timeout=60, owner=owner) as connection:
            if version_of(connection) != head:
                return None
            topology = Topology({node: connection})
            if topology.writers():
                number = topology.node_number(node)
                with as_owner(connection):
                    keys.set_sequence_node(connection, number)
            return read_schema(connection)

    with ThreadPoolExecutor(len(admin_urls)) as threads:
        found = dict(zip(admin_urls, threads.map(look, admin_urls), strict=True))
    schemas = {node: schema for node, schema in found.items() if schema is not None}
    return head if len(schemas) == len(found) and not differences(schemas) else None
