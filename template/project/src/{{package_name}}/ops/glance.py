"""Find out whether a migration has anything to do, with one look at all nodes at once."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from alembic.script import ScriptDirectory
from sqlalchemy import URL

from ..db import keys
from .connections import connect
from .migrate import differences, read_schema, resolve, scratch_schemas, version_of
from .privileges import protect_version_table
from .topology import Topology


@dataclass(frozen=True)
class _State:
    """The state of a node that only the administrator may read."""

    takes_writes: bool = True
    is_clean: bool = True
    """False if a killed run of `verify` has left a schema, or a table reaches no other node."""
    number: int = 0


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

    changing = Lock()

    def look(node: str) -> _State:
        with connect(admin_urls[node], node=node, statement_timeout=60, pinned=True) as link:
            topology = Topology({node: link})
            topology.check_peers(len(owner_urls))
            if not topology.writers():
                return _State(takes_writes=False)
            is_clean = not scratch_schemas(topology) and not topology.left_out_tables()
            return _State(is_clean=is_clean, number=topology.node_number(node))

    with ThreadPoolExecutor(2 * len(owner_urls)) as threads:
        # At the same time as the owner's connections, whose answers would otherwise follow those of these.
        states = {node: threads.submit(look, node) for node in owner_urls}

        def read(node: str) -> dict[str, str] | None:
            with connect(owner_urls[node], node=node, statement_timeout=60) as connection:
                if version_of(connection) != wanted:
                    return None
                schema, state = read_schema(connection), states[node].result()
                if not state.is_clean:
                    return None
                if state.takes_writes:
                    # Several nodes may be one server, on which two could not change one object at once.
                    with changing:
                        keys.set_sequence_node(connection, state.number)
                        protect_version_table(connection)
                return schema

        found = dict(zip(owner_urls, threads.map(read, owner_urls), strict=True))
    schemas = {node: schema for node, schema in found.items() if schema is not None}
    return wanted if len(schemas) == len(found) and not differences(schemas) else None
