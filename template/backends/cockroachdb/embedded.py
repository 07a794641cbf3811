"""The stand-in for CockroachDB: one PostgreSQL at SERIALIZABLE behind three gateways.

Every node is a gateway, a small process with a port of its own that leads to the same server. So every node serves all
data, a conflict raises the same SQLSTATE 40001, and connections break when their node is stopped or killed, perhaps in
the middle of a COMMIT. The stand-in cannot show the loss of a node's data, because there is only one copy. `native.py`
runs real nodes where there is a program to run.
"""

import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from .daemon import Daemon
from .native import Native
from .nodes import NODES, Node
from .process import Process
from .process_cluster import ClusterState, ProcessCluster

SERVER = Node("server", 0, "server", 26256)
"""The PostgreSQL behind the nodes."""


class Embedded(ProcessCluster):
    """The gateways and the server behind them as processes of this machine."""

    preferred = (Native,)
    node_query = "SHOW stand_in.node"
    processes = (*NODES, SERVER)

    def _settings(self, node: Node) -> Mapping[str, object]:
        return {
            "default_transaction_isolation": "serializable",
            # For three nodes together.
            "max_connections": 300,
            "max_pred_locks_per_transaction": 256,
        }

    def _prepare(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        connection.execute(Path(__file__).with_name("stand_in.sql").read_bytes())

    def _create(self, state: ClusterState) -> None:
        self._initialize(state, SERVER)

    def _process(self, state: ClusterState, node: Node) -> Process:
        if node == SERVER:
            return self._server(state, node)
        log = self._folder(state) / f"{node.name}.log"
        return gateway(node, state.ports.get(node.name, 0), state.ports.get(SERVER.name, 0), log=log)

    def _start(self, state: ClusterState, nodes: Sequence[Node]) -> None:
        super()._start(state, self._not_ready(state, [SERVER]))
        super()._start(state, self._not_ready(state, nodes))


@dataclass(frozen=True)
class Gateway(Daemon):
    """A node: the process that `gateway.py` runs in."""

    port: int
    server_port: int
    ready_file: Path
    """File with its process id and both ports that the gateway writes when it listens."""

    def is_listening(self, pid: int) -> bool:
        """Return whether gateway process `pid` listens; another process may have taken the port."""
        try:
            return self.ready_file.read_text().split() == [str(pid), str(self.port), str(self.server_port)]
        except OSError:
            return False

    def is_ready(self) -> bool:
        """Return whether the gateway runs, and the server behind it accepts connections."""
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return super().is_ready() and probe.connect_ex(("127.0.0.1", self.server_port)) == 0

    def send_signal(self, number: signal.Signals) -> int | None:
        """Kill the gateway, whichever signal was asked for: it has nothing to finish."""
        return super().send_signal(signal.SIGKILL)


def gateway(node: Node, port: int, server_port: int, *, log: Path) -> Gateway:
    """Return the gateway of a node on its port, which leads to the server's port."""
    ready_file = log.with_suffix(".ready")
    numbers = (node.number, port, server_port)
    arguments = (str(Path(__file__).with_name("gateway.py")), node.name, *map(str, numbers), str(ready_file))
    return Gateway(
        command=(sys.executable, "-I", *arguments),
        mark=str(ready_file),
        pid_file=log.with_suffix(".pid"),
        log=log,
        port=port,
        server_port=server_port,
        ready_file=ready_file,
    )
