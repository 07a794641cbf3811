"""The servers in containers, as `compose.yaml` links them."""

from .container_cluster import ContainerCluster


class Compose(ContainerCluster):
    """The servers as containers."""
