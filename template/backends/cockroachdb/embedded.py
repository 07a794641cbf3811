"""The stand-in for CockroachDB: one PostgreSQL at SERIALIZABLE behind three names.

Every node is a gateway, a small process with a port of its own that leads to the same server. So every node serves all the data,
there is one history, a lost race is refused with the same 40001, and those who talk to a node that is stopped or killed find their
connection broken, perhaps in the middle of a COMMIT. What it cannot show is what happens to the data when a node is lost: there is
only one copy. `native.py` runs real nodes, if there is a program to run.
"""

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from .daemon import Daemon
from .native import Native, find_program
from .nodes import NODES, Node
from .process import Process
from .processes import Processes, State, answers

SERVER = Node("server", 0, "server", 26256)
"""The one PostgreSQL behind the nodes."""


class Embedded(Processes):
    """Gateways as processes of this machine, and the server behind them."""

    kind = "embedded"

    @property
    def _everything(self) -> Sequence[Node]:
        return (*NODES, SERVER)

    def _settings(self, node: Node) -> Mapping[str, object]:
        return {
            "default_transaction_isolation": "serializable",
            # Of three nodes together.
            "max_connections": 300,
            "max_pred_locks_per_transaction": 256,
        }

    def _prepare(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        connection.execute(Path(__file__).with_name("stand_in.sql").read_bytes())

    def _wire(self, nodes: Mapping[str, str]) -> None:
        """Nothing to link: there is one server."""

    def _create(self) -> State:
        state = self._new_state()
        self._make(state, SERVER)
        state.created = True
        return state

    def _process(self, state: State, node: Node) -> Process:
        if node == SERVER:
            return self._server(state, node)
        ports = (state.ports.get(node.name, 0), state.ports.get(SERVER.name, 0))
        return Gateway(node, *ports, log=self._data / f"{node.name}.log")

    def _configure(self, state: State, node: Node) -> None:
        if node == SERVER:
            super()._configure(state, node)

    def _start(self, state: State, nodes: Sequence[Node]) -> None:
        if not self._server(state, SERVER).is_ready():
            super()._start(state, [SERVER])
        super()._start(state, [node for node in nodes if not self._process(state, node).is_ready()])


def default_kind() -> str:
    """The kind of cluster for who names none: real nodes where there is a program to run."""
    return Native.kind if find_program() else Embedded.kind


@dataclass(frozen=True)
class Gateway(Daemon):
    """A node: the program is `gateway.py`."""

    node: Node
    port: int
    server_port: int
    log: Path

    @property
    def command(self) -> Sequence[str]:
        """Python, with what it needs to know."""
        program = Path(__file__).with_name("gateway.py")
        numbers = (self.node.number, self.port, self.server_port)
        return (sys.executable, "-I", str(program), self.node.name, *map(str, numbers), str(self._ready_file))

    @property
    def mark(self) -> str:
        """The ports are nobody else's."""
        return "\0".join(self.command[2:])

    @property
    def _ready_file(self) -> Path:
        """Written by the gateway itself, once it listens."""
        return self.log.with_suffix(".ready")

    def is_there(self) -> bool:
        """Whether it takes connections: it and nobody else, who may have been quicker to take the port."""
        try:
            return self._ready_file.read_text().split() == list(self.recorded()[:1])
        except OSError:
            return False

    def is_ready(self) -> bool:
        """Whether it runs and leads to a server that answers."""
        return self.pid() is not None and self.is_there() and answers(self.server_port)

    def signal(self, number: signal.Signals) -> int | None:
        """Stop it, however gently it was meant: it has nothing to finish."""
        return super().signal(signal.SIGKILL)
