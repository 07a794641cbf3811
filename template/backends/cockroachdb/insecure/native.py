"""Real nodes without certificates and passwords, as chosen for this project."""

from urllib.request import urlopen

import psycopg
from sqlalchemy.engine import URL

from .native_cluster import NativeCluster
from .nodes import node_urls
from .process_cluster import ClusterState


class Native(NativeCluster):
    """CockroachDB's own nodes with `--insecure`: whoever reaches this machine's loopback may do everything."""

    security = "INSECURE: whoever reaches this machine's loopback may do everything"

    def admin_urls(self) -> dict[str, URL]:
        """Return the URL of each node for root."""
        return node_urls(self._existing().ports, "root", None, self._root_parameters())

    def _role_urls(self, role: str) -> dict[str, URL]:
        return self.admin_urls()

    @property
    def _flags(self) -> tuple[str, ...]:
        return ("--insecure",)

    def _root_parameters(self) -> dict[str, str]:
        return {"sslmode": "disable"}

    def _grant(self, connection: psycopg.Connection[tuple[object, ...]], state: ClusterState) -> None:
        """Create no role, because everybody is root."""

    def _health(self, port: int) -> int:
        url = f"http://127.0.0.1:{port}/health?ready=1"
        with urlopen(url, timeout=2) as answer:
            return int(answer.status)
