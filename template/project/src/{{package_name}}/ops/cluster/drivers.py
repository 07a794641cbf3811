"""The drivers of local clusters by name, and the cluster that this project uses."""

from pathlib import Path

from . import HOME, Cluster, ClusterError, check_owner
from .compose import Compose
from .embedded import Embedded

CLUSTERS: tuple[type[Cluster], ...] = (*Embedded.preferred, Embedded, Compose)
"""Classes of clusters; the first that is available is the default."""

DRIVERS = {cluster.driver: cluster for cluster in CLUSTERS}


def open_cluster(driver: str | None = None, home: Path = HOME) -> Cluster:
    """Return the local cluster: by `driver`, else the one started last, else the first that this machine can run.

    Raises:
        ClusterError: there is no such driver, or the project uses a cluster of another one or of another user.
    """
    check_owner(home.resolve())
    note = home / "driver"
    in_use = note.read_text().strip() if note.exists() else None
    chosen = driver or in_use or next(cluster.driver for cluster in CLUSTERS if cluster.is_available())
    if chosen not in DRIVERS:
        raise ClusterError(f"There is no {chosen!r} cluster: choose {' or '.join(DRIVERS)}.")
    if in_use and chosen != in_use:
        raise ClusterError(f"This project uses its {in_use} cluster. Remove that first with `destroy`.")
    return DRIVERS[chosen](home)
