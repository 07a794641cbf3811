"""The ways to have a local cluster, by name, and which one this project uses."""

from collections.abc import Callable
from pathlib import Path

from . import HOME, Cluster, ClusterError, write_private
from .compose import Compose
from .embedded import Embedded

KINDS: dict[str, Callable[[Path], Cluster]] = {Embedded.kind: Embedded, Compose.kind: Compose}


def open_cluster(kind: str | None = None, home: Path = HOME) -> Cluster:
    """The local cluster: of the kind asked for, or of the kind that was started last, or embedded.

    Raises:
        ClusterError: there is no such kind, or one of another kind is in use.
    """
    note = home / "kind"
    in_use = note.read_text().strip() if note.exists() else None
    chosen = kind or in_use or Embedded.kind
    if chosen not in KINDS:
        raise ClusterError(f"There is no cluster of kind {chosen!r}: choose {' or '.join(KINDS)}.")
    if in_use and chosen != in_use:
        raise ClusterError(f"This project uses its {in_use} cluster. Remove that first with `destroy`.")
    return KINDS[chosen](home)


def remember(cluster: Cluster, home: Path = HOME) -> None:
    """Let later commands find the cluster without being told its kind."""
    write_private(home / "kind", cluster.kind + "\n")
