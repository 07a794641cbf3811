"""A cluster on this machine, in one of two ways that look the same from outside.

`embedded` runs PostgreSQL from a Python wheel as plain processes; `compose` runs the nodes of `compose.yaml` in containers.
Either way the URLs of the nodes are written to `.cluster/env`, where the settings find them.
"""

import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from sqlalchemy.engine import URL

from ...settings import as_environment

HOME = Path(".cluster")
"""Where the local cluster keeps its state, relative to the project."""

State: TypeAlias = Literal["up", "down"]


class ClusterError(Exception):
    """The local cluster could not do what was asked; the message says why and what to do."""


@dataclass(frozen=True)
class NodeStatus:
    """One node, as seen from outside."""

    name: str
    role: str
    port: int
    state: State


class Cluster(ABC):
    """The interface that migrate, verify and the tests know."""

    kind: ClassVar[str]
    """The name by which a person asks for it."""

    def __init__(self, home: Path = HOME) -> None:
        self.home = home.resolve()

    @property
    @abstractmethod
    def announcement(self) -> str:
        """What a person must know about it before trusting it."""

    @abstractmethod
    def up(self) -> None:
        """Start what is not running, link the nodes, and write their URLs. Does nothing to a healthy cluster."""

    @abstractmethod
    def down(self) -> None:
        """Stop all nodes and keep their data."""

    @abstractmethod
    def destroy(self) -> None:
        """Stop all nodes and delete their data."""

    @abstractmethod
    def status(self) -> list[NodeStatus]:
        """Every node and whether it answers."""

    @abstractmethod
    def stop_node(self, name: str, *, kill: bool = False) -> None:
        """Stop one node; with `kill` without giving it a chance to finish anything."""

    @abstractmethod
    def start_node(self, name: str) -> None:
        """Start one node again, and write where it is now."""

    @abstractmethod
    def urls(self) -> dict[str, URL]:
        """The URL of each node for the application's role."""

    @abstractmethod
    def admin_urls(self) -> dict[str, URL]:
        """The URL of each node for the role that migrates and verifies."""

    def _publish(self) -> None:
        """Write the URLs where the settings find them: a node that was started may have another port than before."""
        write_private(self.home / "env", as_environment(self.urls(), self.admin_urls()))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other commands from changing the cluster; the kernel lifts the lock however this one ends."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.home / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner can read, all of it or nothing."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
    fresh.replace(path)
