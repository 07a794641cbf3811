"""A look at the nodes and links of a cluster as they are, whichever of them answer."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError

from ...db.retry import first_line
from ..base import Link, OperationError
from ..connections import connect
from ..topology import Topology


@dataclass(frozen=True)
class Look:
    """The nodes and links at one moment."""

    nodes: Sequence[str]
    """All nodes, in the order of the settings."""
    software: Mapping[str, str]
    """Name and version of the server of each node that answers."""
    silent: Mapping[str, str]
    """Reason why each other node does not answer."""
    writers: frozenset[str] = frozenset()
    """Nodes that take writes."""
    links: list[Link] = field(default_factory=list)
    errors: Mapping[str, int] = field(default_factory=dict)
    """Changes that each link has failed to apply so far."""
    conflicts: Mapping[str, int] = field(default_factory=dict)
    """Conflicts that each node has met so far."""
    problem: str = ""
    """Reason why the links are not known."""

    def role(self, node: str) -> str:
        """Return the role of a node with its symbol; empty if the node does not answer."""
        if node in self.silent:
            return ""
        return "● writes" if node in self.writers else "○ reads"


def look_at(admin_urls: Mapping[str, URL]) -> Look:
    """Ask all nodes at once for their roles and links; see `CheckContext.admin_urls`."""
    silent: dict[str, str] = {}
    with ExitStack() as opened, ThreadPoolExecutor(len(admin_urls)) as threads:

        def ask(node: str) -> tuple[Connection, str] | None:
            try:
                connection = opened.enter_context(
                    connect(admin_urls[node], node=node, statement_timeout=3, pinned=True)
                )
                return connection, str(connection.scalar(text("SELECT version()")))
            except (OperationError, DBAPIError) as error:
                silent[node] = first_line(error).removeprefix(f"{node} cannot be reached: ")
                return None

        found = dict(zip(admin_urls, threads.map(ask, admin_urls), strict=True))
        topology = Topology({node: answer[0] for node, answer in found.items() if answer})
        software = {node: _name(answer[1]) for node, answer in found.items() if answer}
        writers: frozenset[str] = frozenset()
        with suppress(OperationError, DBAPIError):
            writers = frozenset(topology.writers())
        nodes = tuple(admin_urls)
        try:
            return Look(
                nodes, software, silent, writers, topology.links(), topology.apply_errors(), topology.conflicts()
            )
        except (OperationError, DBAPIError) as error:
            return Look(nodes, software, silent, writers, problem=first_line(error))


def _name(version: str) -> str:
    """Return the name and the number at the beginning of what a server reports."""
    return version.partition(" (")[0].partition(" on ")[0]
