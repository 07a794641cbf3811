"""The writer and its readers in containers. The nodes report their roles, because a failover changes them."""

import time

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ..connections import Unreachable, connect
from . import ClusterError, NodeState
from .container_cluster import START_TIMEOUT, ContainerCluster, Containers
from .nodes import Node, find_node


class Compose(ContainerCluster):
    """The writer and its readers as containers."""

    def start_node(self, name: str) -> None:
        """Start one node, wait until it answers, and write the URLs again."""
        self._docker("compose", "up", "--detach", "--no-deps", "--no-recreate", self._existing(name))
        deadline = time.monotonic() + START_TIMEOUT
        # A reader without a writer is not healthy, but it may be the one to promote.
        while self._role(find_node(name), self._containers()) is None:
            if time.monotonic() > deadline:
                raise ClusterError(self._failed_service({name}) or f"{name} does not answer. Its log may say why.")
            time.sleep(0.1)
        self._write_env()

    def rejoin_node(self, name: str) -> None:
        """Make one node a reader of the present writer; the writes that only this node has are lost."""
        # Without the note that `give-up` writes, a node that was promoted last would start as the writer.
        self._docker("compose", "run", "--rm", "--no-deps", self._existing(name), "bash", "/setup/node.sh", "give-up")
        self._docker("compose", "stop", name)
        super().start_node(name)

    def _role_and_state(self, node: Node, containers: Containers) -> tuple[str, NodeState]:
        role = self._role(node, containers)
        return (role, "up") if role else ("unknown", "down")

    def _role(self, node: Node, containers: Containers) -> str | None:
        """Return the present role of a node; None if the node does not answer."""
        if node.name not in containers or not containers[node.name]["State"]["Running"]:
            return None
        url = self._urls(self.superuser, self._password("admin_password"), containers)[node.name]
        try:
            with connect(url, node=node.name, pinned=True) as connection:
                return "reader" if connection.scalar(text("SELECT pg_is_in_recovery()")) else "writer"
        except (Unreachable, DBAPIError):
            return None
