"""Show the revisions of every database, and what differs between the models, the revisions and the databases."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from alembic.script import ScriptDirectory
from sqlalchemy import URL

from .autogenerate import missing_operations
from .base import MigrationError
from .connections import Unreachable, connect, connect_all, engine_for
from .migrate import (
    applied,
    differences,
    load_config,
    load_scripts,
    node_to_compare,
    read_schema,
    resolve,
    version_of,
    waiting_contract,
)
from .topology import Topology


@dataclass(frozen=True)
class Place:
    """A database with its revisions and the one that it is at."""

    name: str
    scripts: ScriptDirectory
    version: str
    """Version as `version_of` returns it, `base` before the first; empty if it is unknown."""
    problem: str | None = None
    """Reason why the version is unknown."""

    @property
    def head(self) -> str:
        """The newest revision."""
        return resolve(self.scripts, "heads")

    def has(self, revision: str) -> bool:
        """Return whether the database has a revision."""
        return revision in applied(self.scripts, self.version)

    @property
    def is_at_head(self) -> bool:
        """True if the database is known to be at the newest revision."""
        return self.problem is None and self.version == self.head

    def __str__(self) -> str:
        """Return where the database is, and where it should be if that is elsewhere."""
        if self.problem is not None:
            return self.problem if self.problem.startswith(self.name) else f"{self.name}: {self.problem}"
        if self.is_at_head:
            return f"{self.name} is at {self.version}"
        waits = waiting_contract(self.scripts, [self.version])
        return f"{self.name} is at {self.version}, not at {self.head}" + (waits and f": {waits}")


def places(owner_urls: Mapping[str, URL], *, project: Path = Path()) -> list[Place]:
    """Return the version of every node with the models' tables, and of the other databases, asked all at once.

    Args:
        owner_urls: the nodes, for the role that owns the tables.
        project: a folder with an `alembic.ini` for this program; else the revisions are those of the package.
    """
    scripts = load_scripts(load_config(project))
    nodes = {node: url for node, url in owner_urls.items() if node not in Topology.nodes_without_models}

    def look(node: str) -> Place:
        try:
            with connect(nodes[node], node=node) as connection:
                return Place(node, scripts, version_of(connection) or "base")
        except Unreachable as error:
            return Place(node, scripts, "", str(error))

    with ThreadPoolExecutor(len(nodes)) as threads:
        found = list(threads.map(look, nodes))
    others = Topology.versions_of_other_databases(owner_urls, project=project)
    return found + [Place(name, *place) for name, place in others.items()]


def drift(admin_urls: Mapping[str, URL], *, owner_urls: Mapping[str, URL], project: Path = Path()) -> list[str]:
    """Return what differs: databases from their newest revision, nodes from each other, the models from the nodes.

    The models are compared once every node is at the newest revision.
    """
    try:
        problems = [str(place) for place in places(owner_urls, project=project) if not place.is_at_head]
    except MigrationError as error:
        return [str(error)]
    nodes = {node: url for node, url in owner_urls.items() if node not in Topology.nodes_without_models}
    with connect_all(nodes) as connections:
        problems += differences({node: read_schema(connection) for node, connection in connections.items()})
    return problems or compare_models(nodes[node_to_compare(admin_urls)], project=project)


def compare_models(url: URL, *, project: Path = Path()) -> list[str]:
    """Return the operations that `revision` would write for a node at the newest revision; the URL is the owner's."""
    with engine_for(url).connect() as connection:
        operations = missing_operations(connection, project)
        connection.rollback()
    return [f"the models need {operation}" for operation in operations]
