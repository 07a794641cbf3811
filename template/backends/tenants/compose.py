"""The servers in containers, as `compose.yaml` has them."""

from .container_cluster import ContainerCluster


class Compose(ContainerCluster):
    """The servers as containers."""

    secret_settings = ("tenant_secret",)
