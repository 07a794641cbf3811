"""Find out whether a migration has anything to do, with one look at all nodes at once."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from alembic.script import ScriptDirectory
from sqlalchemy import URL

from ..db import keys
from .connections import connect
from .migrate import differences, read_schema, resolve, scratch_schemas, version_of
from .privileges import protect_version_table
from .topology import Topology


def version_if_reached(
    admin_urls: Mapping[str, URL], *, owner_urls: Mapping[str, URL], scripts: ScriptDirectory, target: str
) -> str | None:
    """Return the target's revision if every node is at it, with the same schema; otherwise None.

    Each writer's sequences and version table are set as after a migration.

    Args:
        admin_urls: the nodes with the models' tables, for a role that may read the state of replication.
        owner_urls: the same nodes, for the role that owns these tables.
        scripts: the revisions of the project.
        target: the target of `migrate`.

    Raises:
        MigrationError: there is no such target.
        Unreachable: a node cannot be reached.
    """
    if target.startswith(("+", "-")):
        return None
    wanted = resolve(scripts, target)

    def look(node: str) -> dict[str, str] | None:
        with ExitStack() as stack:
            connection = stack.enter_context(connect(owner_urls[node], node=node, statement_timeout=60))
            if version_of(connection) != wanted:
                return None
            link = stack.enter_context(connect(admin_urls[node], node=node, statement_timeout=60, pinned=True))
            topology = Topology({node: link})
            topology.check_peers(len(owner_urls))
            if topology.writers():
                if scratch_schemas(topology) or topology.left_out_tables():
                    return None
                keys.set_sequence_node(connection, topology.node_number(node))
                protect_version_table(connection)
            return read_schema(connection)

    with ThreadPoolExecutor(len(owner_urls)) as threads:
        found = dict(zip(owner_urls, threads.map(look, owner_urls), strict=True))
    schemas = {node: schema for node, schema in found.items() if schema is not None}
    return wanted if len(schemas) == len(found) and not differences(schemas) else None
