"""The local cluster, run in one of several ways behind one interface.

`embedded` runs the PostgreSQL of a Python wheel as plain processes; `compose` runs the nodes of `compose.yaml` in
containers. Both write the URLs of the nodes to `.cluster/env`, where the settings read them.
"""

import fcntl
import hmac
import os
import pwd
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from sqlalchemy.engine import URL

from ...settings import PREFIX, as_environment
from ..base import OperationError

HOME = Path(".cluster")
"""Folder with the state of the local cluster, relative to the project."""

NodeState: TypeAlias = Literal["up", "down", "paused"]
"""A paused node has a process that was stopped by a signal, as a debugger does, and answers nobody."""


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

    secret_settings: ClassVar[tuple[str, ...]] = ()
    """Names of settings with secrets that the application needs beside its URLs."""

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

    def urls(self) -> dict[str, URL]:
        """Return the URL of each node for the application's role."""
        return self._role_urls("application")

    def owner_urls(self) -> dict[str, URL]:
        """Return the URL of each node for the role that owns the tables and runs the migrations."""
        return self._role_urls("owner")

    def reader_urls(self) -> dict[str, URL]:
        """Return the URL of each node for the role that may only read."""
        return self._role_urls("reader")

    def monitor_urls(self) -> dict[str, URL]:
        """Return the URL of each node for the role that may only look at the servers."""
        return self._role_urls("monitor")

    @abstractmethod
    def admin_urls(self) -> dict[str, URL]:
        """Return the URL of each node for the administrator."""

    def environment(self) -> str:
        """Return the settings that lead to this cluster, as lines of an environment file, passwords included."""
        secrets = "".join(f'{PREFIX}{name.upper()}="{self.derived(name)}"\n' for name in self.secret_settings)
        return secrets + as_environment(
            nodes=self.urls(),
            owner_nodes=self.owner_urls(),
            admin_nodes=self.admin_urls(),
            reader_nodes=self.reader_urls(),
            monitor_nodes=self.monitor_urls(),
        )

    def log(self, name: str) -> str:
        """Return the end of the log of a node, where this machine has it."""
        return ""

    def derived(self, purpose: str) -> str:
        """Return a secret for a purpose. It stays the same, because the administrator's password is its key."""
        key = str(next(iter(self.admin_urls().values())).password or "")
        return derive(key, purpose)

    @abstractmethod
    def _role_urls(self, role: str) -> dict[str, URL]:
        """Return the URL of each node for a role of the database."""

    def _write_env(self) -> None:
        write_private(self.home / "env", self.environment())

    def _delete_files(self) -> None:
        """Delete all files in the cluster's folder, whoever wrote them, except the lock."""
        for path in self.home.iterdir():
            if path.is_file() and path.name != "lock":
                path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold a lock against other commands that change the cluster. The kernel releases it when the process ends."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(self.home)
        with (self.home / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def derive(key: str, purpose: str) -> str:
    """Return the secret that follows from a key for one purpose; the key does not follow from it."""
    return hmac.new(key.encode(), purpose.encode(), "sha256").hexdigest()


def write_private(path: Path, content: str, *, owner: pwd.struct_passwd | None = None) -> None:
    """Replace a file atomically by one that only its owner can read; None: the current user."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Random, exclusive and without following links: `owner` may be a user who is trusted less than this one.
    descriptor, fresh = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        if owner is not None:
            os.fchown(descriptor, owner.pw_uid, owner.pw_gid)
        file.write(content)
    Path(fresh).replace(path)


def without_links(path: str, flags: int) -> int:
    """Open a file that only its owner can read, but not through a link: an `opener` for `open`."""
    return os.open(path, flags | os.O_NOFOLLOW, mode=0o600)


def check_owner(folder: Path, owner: pwd.struct_passwd | None = None, *, private: bool = False) -> None:
    """Refuse a folder that is a link, or that somebody else than `owner`, None: the current user, could have made.

    Args:
        folder: the folder; one that does not exist is not refused.
        owner: the user that it has to belong to.
        private: refuse it also if other users may enter it.

    Raises:
        ClusterError: the folder is refused; the message names its owner.
    """
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise ClusterError(f"{folder} is not a folder. Remove it and start again.")
    wanted = owner.pw_uid if owner else os.geteuid()
    if found.st_uid != wanted:
        raise ClusterError(
            f"{folder} belongs to {_user_name(found.st_uid)}, not to {_user_name(wanted)}. Run this as "
            f"{_user_name(found.st_uid)}, or look at what it is and remove it."
        )
    if private and found.st_mode & 0o077:
        raise ClusterError(f"Other users may enter {folder}. Run `chmod 700` on it if its content is yours.")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
