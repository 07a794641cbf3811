"""The servers in containers, unrelated to each other."""

from .container_cluster import ContainerCluster


class Compose(ContainerCluster):
    """The servers as containers."""
