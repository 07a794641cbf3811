"""A local cluster of PostgreSQL servers as plain processes: without Docker, created in less than a second.

All state lies in the cluster's folder. The data is meant to be thrown away, because the servers do not wait for the
disk.
"""

import hashlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL

from ...urls import SCRAM_ONLY
from ..privileges import privilege_statements
from . import HOME, Cluster, ClusterError, NodeState, NodeStatus, check_owner, derive, write_private
from .binaries import copy_binaries, find_binaries, major, server_user
from .nodes import ANNOUNCEMENT, DATABASE, NODES, ROLES, Node, find_node, node_urls
from .process import Process
from .server import Server

SUPERUSER = "postgres"
SPARE_PORTS = range(23001, 23901)
"""Ports to use when a node's own port is taken. Arbitrary, but below those that systems assign to clients."""

LOG_BYTES = 20_000
"""Bytes at the end of a log that are read for a finding. Arbitrary."""

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": 100,
    "shared_buffers": "32MB",
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "log_min_messages": "warning",
    "timezone": "UTC",
    # `verify` does not complain about the lack of durability.
    "local.throwaway": "on",
}
"""Settings of every server: no durability, little memory, loopback only."""


@dataclass
class ClusterState:
    """Content of `state.json`: what one command leaves for the next, passwords included."""

    folder: str
    """Folder of the data directories, relative to that of the cluster."""
    user: str | None = None
    """Name of the user that the servers run as; None: the one who runs the commands."""
    program: str = ""
    superuser_password: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    application_password: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    ports: dict[str, int] = field(default_factory=dict)
    wired: bool = False

    def password_of(self, role: str) -> str:
        """Return the password of a role of the database; that of the superuser is the key to all others."""
        if role == "application":
            return self.application_password
        return derive(self.superuser_password, role)

    @property
    def owner(self) -> pwd.struct_passwd | None:
        """The user that the servers run as; None: the one who runs the commands."""
        return pwd.getpwnam(self.user) if self.user else None


class ProcessCluster(Cluster):
    """A cluster of processes. The methods under "Hooks" make a topology of independent servers."""

    driver = "embedded"
    preferred: ClassVar[tuple[type[Cluster], ...]] = ()
    """Clusters that `up` chooses before this one where they are available."""
    node_query: ClassVar[str] = "SHOW cluster_name"
    """Query that returns the name of the node that a session is on."""
    processes: ClassVar[Sequence[Node]] = NODES
    """All processes, in the order in which they are stopped."""

    @property
    def announcement(self) -> str:
        """Description for the user: what the servers are, and what they stand in for."""
        return ANNOUNCEMENT

    def up(self) -> None:
        """Start the nodes that are down; create all nodes first if there are none."""
        with self._locked():
            state = self._load()
            if state is None or not state.wired:
                state = self._new_state()
                self._create(state)
            self._refuse_paused(state, self.processes)
            self._start(state, self._not_ready(state, NODES))
            if not state.wired:
                self._wire({node.name: self._dsn(state, node) for node in NODES})
                state.wired = True
                self._save(state)
            self._write_env()

    def down(self) -> None:
        """Stop all nodes and keep their data."""
        with self._locked():
            if state := self._load():
                self._refuse_paused(state, self.processes)
                self._stop(state, self.processes, signal.SIGINT)

    def destroy(self) -> None:
        """Stop all nodes and delete their data."""
        if not self.home.exists() and not self._leftovers():
            return
        with self._locked():
            self._delete_data()
            self._delete_files()

    def status(self) -> list[NodeStatus]:
        """Return role, port and state of every node."""
        state = self._load()
        if state is None:
            return [NodeStatus(node.name, node.role, node.port, "down") for node in NODES]
        ports = {node.name: node.port for node in NODES} | state.ports
        return [
            NodeStatus(node.name, self._role(state, node), ports[node.name], self._state(state, node)) for node in NODES
        ]

    def stop_node(self, name: str, *, kill: bool = False) -> None:
        """Stop one node: with `kill` at once, as a power cut would; otherwise by an orderly shutdown."""
        with self._locked():
            state, node = self._existing(), find_node(name)
            if not kill:
                self._refuse_paused(state, [node])
            self._stop(state, [node], signal.SIGKILL if kill else signal.SIGINT)

    def start_node(self, name: str) -> None:
        """Start one node and write the URLs again, because its port may have changed."""
        with self._locked():
            state = self._existing()
            self._refuse_paused(state, [find_node(name)])
            self._start(state, self._not_ready(state, [find_node(name)]))
            self._write_env()

    def log(self, name: str) -> str:
        """Return the end of the log of a node."""
        with self._process(self._existing(), find_node(name)).log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
            return file.read().decode(errors="replace")

    def admin_urls(self) -> dict[str, URL]:
        """Return the URL of each node for the superuser."""
        state = self._existing()
        return node_urls(state.ports, SUPERUSER, state.superuser_password)

    def _role_urls(self, role: str) -> dict[str, URL]:
        state = self._existing()
        return node_urls(state.ports, ROLES[role], state.password_of(role))

    # Hooks

    def _settings(self, node: Node) -> Mapping[str, object]:
        """Return the settings of a node that go beyond `SETTINGS`."""
        return {}

    def _create(self, state: ClusterState) -> None:
        """Create the data of all nodes: initialize the first node and clone it."""
        self._initialize(state, NODES[0])
        first, *others = (self._server(state, node) for node in NODES)
        with ThreadPoolExecutor() as threads:
            list(threads.map(first.copy_to, others))

    def _prepare(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        """Change the application's database on the first node before it is cloned."""

    def _wire(self, nodes: Mapping[str, str]) -> None:
        """Link the running nodes of a new cluster, given their connection strings by name."""

    def _role(self, _state: ClusterState, node: Node) -> str:
        """Return the present role of a node."""
        return node.role

    def _services(self, state: ClusterState) -> str:
        """Return the service file by which nodes find each other, so that links survive new ports and passwords."""
        return "".join(
            f"[{name}]\nhost=127.0.0.1\nport={port}\ndbname={DATABASE}\n{self._login(state)}\n"
            for name, port in state.ports.items()
        )

    def _process(self, state: ClusterState, node: Node) -> Process:
        """Return the process that listens on a node's port."""
        return self._server(state, node)

    def _find_program(self, state: ClusterState) -> Path:
        """Return the server's program, in a place that the servers' user can read."""
        binaries = find_binaries()
        if state.owner is not None and not major(binaries, state.owner):
            binaries = copy_binaries(binaries, self._folder(state) / "programs")
        return binaries / "postgres"

    # ------------------------------------------------------------------------------------------------------------

    @property
    def _data(self) -> Path:
        """Folder of the data directories."""
        return self._folder(self._existing())

    def _folder(self, state: ClusterState) -> Path:
        return self.home / state.folder

    def _load(self) -> ClusterState | None:
        check_owner(self.home)
        file = self.home / "state.json"
        try:
            state = ClusterState(**json.loads(file.read_text()))
            folder = self._folder(state)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, RecursionError):
            raise ClusterError(f"{file} is no state of a cluster. Remove {self.home} and start again.") from None
        where = f"The servers of this cluster run as {state.user}, and their data is in {folder}"
        if state.user and os.geteuid() != 0:
            raise ClusterError(f"{where}: root has started them. Run this as root.")
        try:
            owner = state.owner
        except KeyError:
            raise ClusterError(f"{where}: there is no such user here. Create the user, then `destroy`.") from None
        # A folder that was deleted may have been made anew by somebody else.
        check_owner(folder, owner, private=True)
        return state if self._folder(state).exists() else None

    def _save(self, state: ClusterState) -> None:
        write_private(self.home / "state.json", json.dumps(asdict(state), indent=2))

    def _existing(self) -> ClusterState:
        if state := self._load():
            return state
        raise ClusterError(f"There is no cluster in {self.home}. Start one with `up`.")

    def _new_state(self) -> ClusterState:
        """Make the folder of a cluster that does not exist yet; return the cluster's state."""
        # An interrupted creation leaves processes and data behind.
        self._delete_data()
        state = ClusterState("data")
        if (user := server_user()) is None:
            (self.home / state.folder).mkdir(mode=0o700)
        else:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            # Anybody may write to /var/tmp, so the folder has a random name and mode 0700.
            state = ClusterState(tempfile.mkdtemp(prefix=self._prefix, dir=self._run_dir), user.pw_name)
            os.chown(state.folder, user.pw_uid, user.pw_gid)
        self._save(state)
        try:
            state.program = str(self._find_program(state))
        except ClusterError:
            self._delete_data()
            self._delete_files()
            raise
        return state

    def _delete_data(self) -> None:
        """Stop all nodes and delete their data, those of a deleted state.json as well."""
        known = self._load()
        for folder in {*self._leftovers(), *([self._folder(known)] if known else [])}:
            self._stop(ClusterState(str(folder)), self.processes, signal.SIGQUIT)
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():  # a process that ended late has written to it, or it cannot be deleted
                shutil.rmtree(folder)

    def _leftovers(self) -> list[Path]:
        """Return the folders that this cluster can have made, by their names and owners."""
        if (user := server_user()) is None:
            return [folder for folder in (self.home / "data",) if folder.exists()]
        found = self._run_dir.glob(f"{self._prefix}*")
        owners = (user.pw_uid, os.geteuid())
        return [folder for folder in found if not folder.is_symlink() and folder.lstat().st_uid in owners]

    @property
    def _run_dir(self) -> Path:
        """Folder that outlives a reboot, where the servers' user can read; for servers that root starts."""
        return Path(os.environ.get("PG_RUN_DIR", "/var/tmp"))  # noqa: S108

    @property
    def _prefix(self) -> str:
        """First part of the name of this cluster's folder there."""
        return f"{DATABASE}-{hashlib.sha256(str(self.home).encode()).hexdigest()[:12]}-"

    def _initialize(self, state: ClusterState, node: Node) -> None:
        """Create a server with the database and its roles, and stop it."""
        server = self._server(state, node)
        server.initialize(superuser=SUPERUSER, password=state.superuser_password)
        self._start(state, [node])
        with psycopg.connect(self._dsn(state, node, "postgres"), autocommit=True) as connection:
            # By default every role may connect to every database.
            connection.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
            for role, name in ROLES.items():
                # A verifier, because a server logs the statements that fail.
                password, user = state.password_of(role).encode(), name.encode()
                verifier = connection.pgconn.encrypt_password(password, user, b"scram-sha-256").decode()
                create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(verifier))
                connection.execute(create)
            connection.execute(sql.SQL("GRANT pg_monitor TO {}").format(sql.Identifier(ROLES["monitor"])))
            names = map(sql.Identifier, (DATABASE, ROLES["owner"]))
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(*names))
        with psycopg.connect(self._dsn(state, node), autocommit=True) as connection:
            self._prepare(connection)
            for statement in privilege_statements(database=DATABASE, **ROLES):
                connection.execute(statement.encode())
        self._stop(state, [node], signal.SIGINT)

    def _server(self, state: ClusterState, node: Node) -> Server:
        data = self._folder(state) / node.name
        return Server(
            command=(state.program, "-D", str(data)),
            mark=str(data),
            pid_file=data / "postmaster.pid",
            log=data.with_suffix(".log"),
            data=data,
            user=state.owner,
        )

    def _state(self, state: ClusterState, node: Node) -> NodeState:
        process = self._process(state, node)
        if process.is_paused():
            return "paused"
        return "up" if process.is_ready() else "down"

    def _refuse_paused(self, state: ClusterState, nodes: Iterable[Node]) -> None:
        for node in nodes:
            process = self._process(state, node)
            if process.is_paused():
                raise ClusterError(
                    f"{node.name} is paused: process {process.pid()} was stopped by a signal. Let it go on with "
                    f"`kill -CONT {process.pid()}`; only `stop {node.name} --kill` and `destroy` end it as it is."
                )

    def _not_ready(self, state: ClusterState, nodes: Iterable[Node]) -> list[Node]:
        return [node for node in nodes if not self._process(state, node).is_ready()]

    def _start(self, state: ClusterState, nodes: Sequence[Node]) -> None:
        """Start nodes that are down; move those whose port is taken to other ports."""
        if not Path(state.program).exists():  # a new environment has its programs elsewhere
            state.program = str(self._find_program(state))
        for _ in range(5):
            if not nodes:
                return
            self._choose_ports(state, nodes)
            write_private(self._folder(state) / "service.conf", self._services(state), owner=state.owner)
            self._save(state)
            processes = {node: self._process(state, node) for node in nodes}
            for node, process in processes.items():
                identity = {"port": state.ports[node.name], "cluster_name": node.name}
                process.configure({**SETTINGS, **self._settings(node), **identity})
            started = {node: process.spawn() for node, process in processes.items()}
            nodes = [node for node in nodes if not processes[node].wait_until_ready(started[node])]
            if nodes:
                time.sleep(0.3)
        logs = ", ".join(str(self._process(state, node).log) for node in nodes)
        raise ClusterError(f"{', '.join(node.name for node in nodes)} did not start; the reason is in {logs}")

    def _choose_ports(self, state: ClusterState, nodes: Sequence[Node]) -> None:
        """Give each node the port that it had if that is free, else another one."""
        taken = {port for name, port in state.ports.items() if name not in {node.name for node in nodes}}
        # Only the project's own cluster takes the documented ports. Each cluster begins at another spare port, so that
        # it hardly ever takes the port of a node that is down for a while.
        is_own = self.home == HOME.resolve()
        start = int(hashlib.sha256(str(self.home).encode()).hexdigest(), 16) % len(SPARE_PORTS)
        spare = (*SPARE_PORTS[start:], *SPARE_PORTS[:start])
        for node in nodes:
            wanted = (state.ports.get(node.name), node.port if is_own else None, *spare)
            port = next((port for port in wanted if port and port not in taken and _is_free(port)), None)
            if port is None:
                raise ClusterError(
                    f"No free port for {node.name}: {SPARE_PORTS[0]}-{SPARE_PORTS[-1]} are all taken on 127.0.0.1."
                )
            state.ports[node.name] = port
            taken.add(port)

    def _stop(self, state: ClusterState, nodes: Sequence[Node], number: signal.Signals) -> None:
        processes = [self._process(state, node) for node in nodes]
        signalled = [(process, process.send_signal(number)) for process in processes]
        for process in processes:
            process.send_signal(signal.SIGCONT)  # a paused process ends only when it goes on
        for process, pid in signalled:
            if pid is not None:
                process.wait_until_gone(pid)

    def _login(self, state: ClusterState) -> str:
        return f"user={SUPERUSER}\npassword={state.superuser_password}\nrequire_auth=scram-sha-256\n"

    def _dsn(self, state: ClusterState, node: Node, database: str = DATABASE) -> str:
        address = {"host": "127.0.0.1", "port": str(state.ports[node.name]), "dbname": database}
        login = {"user": SUPERUSER, "password": state.superuser_password, "connect_timeout": "5", **SCRAM_ONLY}
        # The nodes that would have to confirm a commit may not exist yet.
        return make_conninfo("options='-c synchronous_commit=local'", **address, **login)


def _is_free(port: int) -> bool:
    try:
        # Like PostgreSQL, this takes a port on which connections of an earlier server linger in TIME_WAIT.
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
