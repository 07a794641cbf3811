"""The nodes in containers, without certificates and passwords, as chosen for this project."""

from sqlalchemy.engine import URL

from .container_cluster import ContainerCluster, Containers


class Compose(ContainerCluster):
    """The nodes as containers with `--insecure`: whoever reaches their ports may do everything."""

    superuser = "root"

    def _role_urls(self, role: str) -> dict[str, URL]:
        return self.admin_urls()

    def _urls(self, username: str, password: str | None, containers: Containers, **query: str) -> dict[str, URL]:
        return super()._urls(username, password, containers, **query, sslmode="disable")

    def _password(self, name: str) -> None:
        """Return no password, because root needs none."""
