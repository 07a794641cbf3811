"""PostgreSQL servers from a Python wheel as processes of this machine: no Docker, no root, from nothing in under a second.

What makes a cluster of them is `embedded.py`'s business.

All state lies under the cluster's folder; a lock there keeps two commands from changing the cluster at once and is freed by
the kernel however they end. For throw-away data: the servers do not wait for the disk.
"""

import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL

from ...settings import URL_SCHEME
from . import HOME, Cluster, ClusterError, NodeStatus, write_private
from .nodes import ANNOUNCEMENT, DATABASE, NODES, Node, find_node
from .process import Process
from .programs import can_reach, find_programs, publish, server_user
from .server import Server

SUPERUSER = "postgres"
SPARE_PORTS = range(23001, 23901)
"""Where to look when a node's own port is taken, or not asked for. Arbitrary; below those that systems give to whoever asks for any."""

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
}
"""Of every embedded server: throw-away durability, small, on loopback only."""


@dataclass
class State:
    """What is remembered from one command to the next, passwords included."""

    programs: str
    superuser_password: str
    application_password: str
    ports: dict[str, int] = field(default_factory=dict)
    created: bool = False
    wired: bool = False


class Processes(Cluster):
    """The nodes as processes; a subclass says what links them."""

    def __init__(self, home: Path = HOME) -> None:
        super().__init__(home)
        self._user = server_user()

    @property
    def announcement(self) -> str:
        """What the servers are, and what they stand in for."""
        return ANNOUNCEMENT

    def up(self) -> None:
        """Start what is not running; the first time create it."""
        with self._locked():
            state = self._load()
            if state is None or not state.created:
                state = self._create()
            self._start(state, [node for node in NODES if not self._process(state, node).is_ready()])
            if not state.wired:
                self._wire({node.name: self._dsn(state, node) for node in NODES})
                state.wired = True
                self._save(state)
            self._publish()

    def down(self) -> None:
        """Stop all nodes and keep their data."""
        with self._locked():
            if state := self._load():
                self._stop(state, self._everything, signal.SIGINT)

    def destroy(self) -> None:
        """Stop all nodes and delete their data."""
        if not self.home.exists():
            return
        with self._locked():
            if state := self._load():
                self._stop(state, self._everything, signal.SIGQUIT)
            shutil.rmtree(self._data, ignore_errors=True)
            for name in ("state.json", "env", "kind"):
                (self.home / name).unlink(missing_ok=True)

    def status(self) -> list[NodeStatus]:
        """Every node and whether it answers."""
        state = self._load()
        return [
            NodeStatus(
                node.name,
                self._role(state, node) if state else node.role,
                state.ports.get(node.name, node.port) if state else node.port,
                "up" if state and self._process(state, node).is_ready() else "down",
            )
            for node in NODES
        ]

    def stop_node(self, name: str, *, kill: bool = False) -> None:
        """Stop one node; with `kill` as a power cut would."""
        with self._locked():
            self._stop(self._existing(), [find_node(name)], signal.SIGKILL if kill else signal.SIGINT)

    def start_node(self, name: str) -> None:
        """Start one node again."""
        with self._locked():
            state = self._existing()
            node = find_node(name)
            if not self._process(state, node).is_ready():
                self._start(state, [node])
            self._publish()

    def urls(self) -> dict[str, URL]:
        """The URLs for the application's role."""
        state = self._existing()
        return self._urls(state, DATABASE, state.application_password)

    def admin_urls(self) -> dict[str, URL]:
        """The URLs for the superuser."""
        state = self._existing()
        return self._urls(state, SUPERUSER, state.superuser_password)

    def _urls(self, state: State, username: str, password: str) -> dict[str, URL]:
        return {
            node.name: URL.create(URL_SCHEME, username, password, "127.0.0.1", state.ports[node.name], DATABASE)
            for node in NODES
        }

    # What links the nodes ---------------------------------------------------------------------------------------

    @property
    def _everything(self) -> Sequence[Node]:
        """All that runs, in the order in which it is stopped."""
        return NODES

    @abstractmethod
    def _settings(self, node: Node) -> Mapping[str, object]:
        """What a node needs beyond the settings of every embedded server."""

    @abstractmethod
    def _prepare(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        """Give the application's database on the first node what every node is to have."""

    @abstractmethod
    def _wire(self, nodes: Mapping[str, str]) -> None:
        """Link the running nodes, given by name and connection string, and wait until they are; links that exist are kept."""

    def _clone(self, first: Server, others: Sequence[Server]) -> None:
        """Make the other nodes from the first one, which is stopped."""
        with ThreadPoolExecutor(len(others)) as threads:
            list(threads.map(first.copy_to, others))

    def _role(self, _state: State, node: Node) -> str:
        """What a node is for at this moment."""
        return node.role

    def _services(self, state: State) -> str:
        """How the nodes find each other: by service name, so ports and passwords may change behind the links."""
        return "".join(
            f"[{name}]\nhost=127.0.0.1\nport={port}\ndbname={DATABASE}\n{self._login(state)}\n"
            for name, port in state.ports.items()
        )

    def _login(self, state: State) -> str:
        return f"user={SUPERUSER}\npassword={state.superuser_password}\n"

    # ------------------------------------------------------------------------------------------------------------

    @cached_property
    def _data(self) -> Path:
        """The folder of the data directories: ours, or one that the servers' user can reach when we are root."""
        if self._user is None:
            return self.home / "data"
        run_dir = Path(os.environ.get("PG_RUN_DIR", "/var/tmp"))  # noqa: S108 - 0700 below, and /tmp may not outlive a reboot
        return run_dir / f"{DATABASE}-{hashlib.sha256(str(self.home).encode()).hexdigest()[:12]}"

    def _load(self) -> State | None:
        try:
            return State(**json.loads((self.home / "state.json").read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise ClusterError(
                f"{self.home / 'state.json'} is not readable as the state of a cluster. Remove {self.home} and start again."
            ) from None

    def _save(self, state: State) -> None:
        write_private(self.home / "state.json", json.dumps(asdict(state), indent=2))

    def _existing(self) -> State:
        if state := self._load():
            return state
        raise ClusterError(f"There is no cluster in {self.home}. Start one with `up`.")

    def _process(self, state: State, node: Node) -> Process:
        """What answers on a node's port."""
        return self._server(state, node)

    def _configure(self, state: State, node: Node) -> None:
        """Write what the process reads when it starts."""
        self._server(state, node).configure(
            {**SETTINGS, **self._settings(node), "port": state.ports[node.name], "cluster_name": node.name}
        )

    def _server(self, state: State, node: Node) -> Server:
        return Server(
            programs=Path(state.programs),
            data=self._data / node.name,
            log=self._data / f"{node.name}.log",
            user=self._user,
            environment={
                "PATH": "/usr/bin:/bin",
                "LC_ALL": "C",
                "TZ": "UTC",
                "HOME": str(self._data),
                "PGSERVICEFILE": str(self._data / "service.conf"),
            },
        )

    def _create(self) -> State:
        """Make the first node, and clone it."""
        state = self._new_state()
        first, *others = NODES
        self._make(state, first)
        self._clone(self._server(state, first), [self._server(state, node) for node in others])
        state.created = True
        return state

    def _new_state(self) -> State:
        """A state for a cluster that does not exist yet, of which nothing runs."""
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = State(str(self._programs()), secrets.token_urlsafe(18), secrets.token_urlsafe(18))
        # Left by a creation that was interrupted, or whose state somebody deleted.
        self._stop(state, self._everything, signal.SIGQUIT)
        return state

    def _make(self, state: State, node: Node) -> None:
        """Initialize a server, give it what every node has, and stop it."""
        server = self._server(state, node)
        server.give(self._data)
        server.initialize(superuser=SUPERUSER, password=state.superuser_password)
        self._start(state, [node])
        with psycopg.connect(self._dsn(state, node, "postgres"), autocommit=True) as connection:
            role = sql.Identifier(DATABASE)
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(state.application_password))
            )
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
        with psycopg.connect(self._dsn(state, node), autocommit=True) as connection:
            self._prepare(connection)
        self._stop(state, [node], signal.SIGINT)

    def _programs(self) -> Path:
        programs = find_programs()
        if self._user is None or can_reach(self._user, programs / "postgres"):
            return programs
        cache = self._data.with_name("embedded-postgres")
        cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        return publish(programs, cache)

    def _start(self, state: State, nodes: Sequence[Node]) -> None:
        """Start `nodes`, moving to other ports when theirs are taken."""
        self._find_again(state)
        for _ in range(5):
            if not nodes:
                return
            self._choose_ports(state, nodes)
            self._write_services(state)
            self._save(state)
            for node in nodes:
                self._configure(state, node)
            processes = {node: self._process(state, node) for node in nodes}
            started = {node: process.spawn() for node, process in processes.items()}
            nodes = [node for node in nodes if not processes[node].wait_until_ready(started[node])]
            if nodes:
                time.sleep(0.3)
        logs = ", ".join(str(self._process(state, node).log) for node in nodes)
        raise ClusterError(f"{', '.join(node.name for node in nodes)} did not start; the reason is in {logs}")

    def _find_again(self, state: State) -> None:
        """Look for the programs anew if they have moved, as they do with a new environment."""
        if not Path(state.programs, "postgres").exists():
            state.programs = str(self._programs())

    def _choose_ports(self, state: State, nodes: Sequence[Node]) -> None:
        """Keep each node's port while it is free, else take a spare one."""
        taken = {port for name, port in state.ports.items() if name not in {node.name for node in nodes}}
        # The ports that people know are for the project's own cluster. Each looks from another place, so that hardly any takes
        # the port of a node that is down for a while.
        known = self.home == HOME.resolve()
        start = int(hashlib.sha256(str(self.home).encode()).hexdigest(), 16) % len(SPARE_PORTS)
        spare = (*SPARE_PORTS[start:], *SPARE_PORTS[:start])
        for node in nodes:
            kept = [state.ports[node.name]] if node.name in state.ports else []
            for port in (*kept, *([node.port] if known else []), *spare):
                if port not in taken and _is_free(port):
                    state.ports[node.name] = port
                    taken.add(port)
                    break
            else:
                raise ClusterError(
                    f"No free port for {node.name}: {SPARE_PORTS[0]}-{SPARE_PORTS[-1]} are all taken on 127.0.0.1."
                )

    def _stop(self, state: State, nodes: Sequence[Node], number: signal.Signals) -> None:
        processes = [self._process(state, node) for node in nodes]
        signalled = [(process, process.signal(number)) for process in processes]
        for process, pid in signalled:
            if pid is not None:
                process.wait_until_gone(pid)

    def _write_services(self, state: State) -> None:
        path = self._data / "service.conf"
        write_private(path, self._services(state))
        self._server(state, NODES[0]).give(path)

    def _dsn(self, state: State, node: Node, database: str = DATABASE) -> str:
        return make_conninfo(
            host="127.0.0.1",
            port=state.ports[node.name],
            dbname=database,
            user=SUPERUSER,
            password=state.superuser_password,
            connect_timeout=5,
            # Whoever else would have to confirm may not be there yet.
            options="-c synchronous_commit=local",
        )


def answers(port: int) -> bool:
    """Whether somebody takes connections on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Connections of an earlier server that linger in TIME_WAIT do not keep PostgreSQL from the port either.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
