"""The nodes in containers, with certificates and passwords."""

from pathlib import Path

from sqlalchemy.engine import URL

from . import write_private
from .container_cluster import ContainerCluster, Containers
from .nodes import NODES


class Compose(ContainerCluster):
    """The nodes as containers, whose clients verify them by the certificate of their authority."""

    superuser = "operations"

    def destroy(self) -> None:
        """Remove the containers, their data, the passwords and the certificate."""
        super().destroy()
        self._authority.unlink(missing_ok=True)

    @property
    def _authority(self) -> Path:
        return self._secrets["app_password"].with_name("ca.crt")

    def _log_in(self) -> None:
        """Fetch the authority's certificate, which verifies the nodes, and log in."""
        write_private(self._authority, self._docker("compose", "exec", "-T", NODES[0].name, "cat", "/certs/ca.crt"))
        super()._log_in()

    def _urls(self, username: str, password: str | None, containers: Containers, **query: str) -> dict[str, URL]:
        verified = {"sslmode": "verify-full", "sslrootcert": str(self._authority)}
        return super()._urls(username, password, containers, **query, **verified)
