"""The local cluster, run in one of several ways behind one interface.

`embedded` runs the PostgreSQL of a Python wheel as plain processes; `compose` runs the nodes of `compose.yaml` in
containers. Both write the URLs of the nodes to `.cluster/env`, where the settings read them.
"""

import fcntl
import os
import pwd
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from sqlalchemy.engine import URL

from ...settings import as_environment
from ..base import OperationError

HOME = Path(".cluster")
"""Folder with the state of the local cluster, relative to the project."""

NodeState: TypeAlias = Literal["up", "down"]


class ClusterError(OperationError):
    """A local cluster cannot be read or changed; the message says why and what to do next."""


@dataclass(frozen=True)
class NodeStatus:
    """Role, port and state of one node."""

    name: str
    role: str
    port: int
    state: NodeState


class Cluster(ABC):
    """Interface of a local cluster, as the commands, `verify` and the tests use it.

    Args:
        home: folder with its state.
    """

    driver: ClassVar[str]
    """Name for `up --cluster`."""

    def __init__(self, home: Path = HOME) -> None:
        self.home = home.resolve()

    @classmethod
    def is_available(cls) -> bool:
        """Return whether `up` without `--cluster` may choose this driver."""
        return True

    @property
    @abstractmethod
    def announcement(self) -> str:
        """Description for the user: what the nodes are, and what they stand in for."""

    @abstractmethod
    def up(self) -> None:
        """Start the nodes that are down, link all nodes, and write their URLs."""

    @abstractmethod
    def down(self) -> None:
        """Stop all nodes and keep their data."""

    @abstractmethod
    def destroy(self) -> None:
        """Stop all nodes and delete their data."""

    @abstractmethod
    def status(self) -> list[NodeStatus]:
        """Return role, port and state of every node."""

    @abstractmethod
    def stop_node(self, name: str, *, kill: bool = False) -> None:
        """Stop one node: with `kill` at once, as a power cut would; otherwise by an orderly shutdown."""

    @abstractmethod
    def start_node(self, name: str) -> None:
        """Start one node and write the URLs again, because its port may have changed."""

    @abstractmethod
    def urls(self) -> dict[str, URL]:
        """Return the URL of each node for the application's role."""

    @abstractmethod
    def admin_urls(self) -> dict[str, URL]:
        """Return the URL of each node for the role that migrates and verifies."""

    def _write_env(self) -> None:
        write_private(self.home / "env", as_environment(self.urls(), self.admin_urls()))

    def _delete_files(self) -> None:
        """Delete all files in the cluster's folder, whoever wrote them, except the lock."""
        for path in self.home.iterdir():
            if path.is_file() and path.name != "lock":
                path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold a lock against other commands that change the cluster. The kernel releases it when the process ends."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.home / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def write_private(path: Path, content: str, *, owner: pwd.struct_passwd | None = None) -> None:
    """Replace a file atomically by one that only its owner can read; None: the current user."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.touch(mode=0o600)
    fresh.write_text(content)
    if owner is not None:
        os.chown(fresh, owner.pw_uid, owner.pw_gid)
    fresh.replace(path)
