"""Three real nodes as processes of this machine: `cockroach` from PATH, or the program that COCKROACH_BIN names."""

import os
import re
import shutil
import signal
import subprocess
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import ClassVar
from urllib.error import HTTPError

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from . import ClusterError
from .daemon import Daemon
from .nodes import DATABASE, NODES, Node
from .process_cluster import ClusterState, ProcessCluster

SETTLE_TIME = 0.3
"""Seconds after which a node whose port is taken has ended. Arbitrary: it takes 0.1."""

FIRST_HTTP_PORT = 8080
"""Port of the first node's console that is tried first; the other nodes follow."""


def find_program() -> str | None:
    """Return the program to run; None if there is none."""
    return os.environ.get("COCKROACH_BIN") or shutil.which("cockroach")


class NativeCluster(ProcessCluster):
    """CockroachDB's own nodes. A subclass decides who may connect."""

    driver = "native"
    security: ClassVar[str]
    """Description of who may connect, for the user."""

    @classmethod
    def is_available(cls) -> bool:
        """Return whether there is a program to run."""
        return find_program() is not None

    @property
    def announcement(self) -> str:
        """Description for the user: program, version and security of the nodes."""
        program = self._existing().program
        output = subprocess.run([program, "version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"^Build Tag: +(\S+)", output, re.MULTILINE)
        return f"{len(NODES)} nodes of {program} {version[1] if version else 'of an unknown version'}, {self.security}"

    # Hooks

    @property
    @abstractmethod
    def _flags(self) -> tuple[str, ...]:
        """Options of `cockroach` that say how nodes and clients prove their identity."""

    @abstractmethod
    def _root_parameters(self) -> dict[str, str]:
        """Return the connection parameters by which root logs in."""

    @abstractmethod
    def _grant(self, connection: psycopg.Connection[tuple[object, ...]], state: ClusterState) -> None:
        """Create the roles of the database and of the operations, with their passwords and rights."""

    @abstractmethod
    def _health(self, port: int) -> int:
        """Return the HTTP status of the health check of the node whose console has that port.

        See https://www.cockroachlabs.com/docs/stable/health-endpoints.
        """

    # Hooks of ProcessCluster

    def _create(self, state: ClusterState) -> None:
        """Create nothing: each node creates its own data when it starts."""

    def _find_program(self, state: ClusterState) -> Path:
        program = find_program()
        if program is None:
            raise ClusterError(
                "There is no `cockroach` on PATH. Install CockroachDB, name its program in COCKROACH_BIN, "
                "or use the embedded cluster."
            )
        if not os.access(program, os.X_OK):
            raise ClusterError(f"COCKROACH_BIN is {program}, which is no program. Correct it or unset it.")
        return Path(program).resolve()

    def _process(self, state: ClusterState, node: Node) -> "CockroachNode":
        addresses = {other: f"127.0.0.1:{state.ports.get(other.name, 0)}" for other in NODES}
        http_port = state.ports.get(_console(node).name, 0)
        folder = self._folder(state)
        log, store = folder / f"{node.name}.log", f"--store={folder / node.name}"
        command = (
            *(state.program, "start", store),
            *self._flags,
            f"--listen-addr={addresses[node]}",
            f"--advertise-addr={addresses[node]}",
            f"--http-addr=127.0.0.1:{http_port}",
            f"--join={','.join(addresses.values())}",
            f"--locality=region=local,zone={node.name}",
            "--cache=64MiB",
            "--max-sql-memory=128MiB",
        )
        return CockroachNode(command, store, log.with_suffix(".pid"), log, partial(self._health, http_port))

    def _start(self, state: ClusterState, nodes: Sequence[Node]) -> None:
        if nodes:
            self._choose_ports(state, [_console(node) for node in nodes])
        super()._start(state, nodes)
        if state.wired:
            self._wait_until_ready(state, nodes)

    def _stop(self, state: ClusterState, nodes: Sequence[Node], number: signal.Signals) -> None:
        # A node that stops in order first moves its leases to the others. All nodes together would wait for each other,
        # so they are killed; what was committed is on their disks.
        super()._stop(state, nodes, signal.SIGKILL if len(nodes) > 1 else number)

    def _wire(self, nodes: Mapping[str, str]) -> None:
        state = self._existing()
        port = str(state.ports[NODES[0].name])
        result = subprocess.run(
            [state.program, "init", *self._flags, f"--host=127.0.0.1:{port}"],
            capture_output=True,
            text=True,
            timeout=Daemon.ready_timeout,
            check=False,
        )
        if result.returncode and "already been initialized" not in result.stderr:
            raise ClusterError(f"the nodes do not form a cluster: {result.stderr.strip()}")
        self._wait_until_ready(state, NODES)
        with self._connect_as_root(state, NODES[0]) as connection:
            name = sql.Identifier(DATABASE)
            # A cluster that only this machine sees has nothing to report to its vendor, unless a free key demands it.
            reports = os.environ.get("COCKROACH_SKIP_ENABLING_DIAGNOSTIC_REPORTING", "true") == "false"
            connection.execute(
                sql.SQL("SET CLUSTER SETTING diagnostics.reporting.enabled = {}").format(sql.Literal(reports))
            )
            connection.execute(sql.SQL("CREATE DATABASE IF NOT EXISTS {}").format(name))
            self._grant(connection, state)
            if license_key := os.environ.get("COCKROACH_LICENSE"):
                for setting, value in (
                    ("SET CLUSTER SETTING cluster.organization = {}", os.environ.get("COCKROACH_ORGANIZATION", "")),
                    ("SET CLUSTER SETTING enterprise.license = {}", license_key),
                ):
                    connection.execute(sql.SQL(setting).format(sql.Literal(value)))

    def _connect_as_root(self, state: ClusterState, node: Node) -> psycopg.Connection[tuple[object, ...]]:
        address = {"host": "127.0.0.1", "port": str(state.ports[node.name]), "dbname": "defaultdb"}
        root = {**address, "user": "root", **self._root_parameters()}
        return psycopg.connect(make_conninfo(**root), connect_timeout=5, autocommit=True)

    def _takes_logins(self, state: ClusterState, node: Node) -> bool:
        try:
            self._connect_as_root(state, node).close()
        except psycopg.OperationalError:
            return False
        return True

    def _wait_until_ready(self, state: ClusterState, nodes: Sequence[Node]) -> None:
        deadline = time.monotonic() + Daemon.ready_timeout
        # A node that calls itself ready may refuse logins for some seconds.
        while nodes := [
            node for node in nodes if self._not_ready(state, [node]) or not self._takes_logins(state, node)
        ]:
            if time.monotonic() > deadline:
                names = " and ".join(node.name for node in nodes)
                logs = ", ".join(str(self._process(state, node).log) for node in nodes)
                raise ClusterError(
                    f"{names}: not ready after {Daemon.ready_timeout:.0f} s. "
                    f"Two of the three nodes make a majority; the logs are {logs}"
                )
            time.sleep(0.05)


def _console(node: Node) -> Node:
    """Return a node's console as a node of its own, which gets a port of its own."""
    return Node(f"{node.name} console", 0, "console", FIRST_HTTP_PORT + node.number - 1)


@dataclass(frozen=True)
class CockroachNode(Daemon):
    """One node."""

    check_health: Callable[[], int]
    """Health check, which returns an HTTP status."""

    def is_listening(self, pid: int) -> bool:
        """Return whether the node listens, which it does before it belongs to a cluster."""
        if self._health() is None:
            return False
        # If another process has taken the port and answered, this one ends within that time.
        time.sleep(SETTLE_TIME)
        return True

    def is_ready(self) -> bool:
        """Return whether the node runs, belongs to a cluster and serves clients."""
        return self.pid() is not None and self._health() == HTTPStatus.OK

    def _health(self) -> int | None:
        """Return the HTTP status of the health check; None if nobody answers."""
        try:
            return self.check_health()
        except HTTPError as error:
            return error.code
        except OSError:
            return None
