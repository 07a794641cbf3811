"""Three real nodes as processes of this machine, if there is a program to run: `cockroach` on PATH, or what COCKROACH_BIN names.

{% if secure %}
Every node has a certificate and asks for one, or for a password. The certificates are made here, for loopback, and lie with the data.
{% else %}
The nodes run with `--insecure`: whoever reaches the loopback of this machine may do everything. So it was chosen for this project.
{% endif %}
"""

import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
{% if secure %}
from ssl import create_default_context
{% endif %}

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL

from ...settings import URL_SCHEME
from . import ClusterError
from .daemon import READY_TIMEOUT, Daemon
from .nodes import DATABASE, NODES, Node
from .processes import Processes, State

{% if secure %}
OPERATIONS = "operations"
"""The role that may do everything, for migrations and `verify`."""

{% endif %}
SETTLING = 0.3
"""Seconds after which a node whose port is taken has ended. Arbitrary: it takes 0.1."""

FIRST_HTTP_PORT = 8080
"""Where the first node shows its console; the others follow."""


def find_program() -> str | None:
    """The program to run, if there is one."""
    return os.environ.get("COCKROACH_BIN") or shutil.which("cockroach")


class Native(Processes):
    """CockroachDB's own nodes."""

    kind = "native"

    @property
    def announcement(self) -> str:
        """What the nodes are."""
        state = self._existing()
        said = subprocess.run([state.programs, "version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"^Build Tag: +(\S+)", said, re.MULTILINE)
        nodes = f"{len(NODES)} nodes of {state.programs} {version[1] if version else 'of an unknown version'}"
{% if secure %}
        return f"{nodes}, with certificates and passwords"
{% else %}
        return f"{nodes}, INSECURE: whoever reaches this machine's loopback may do everything"
{% endif %}

    def _settings(self, node: Node) -> Mapping[str, object]:
        """Nothing is written down: a node gets all it needs on its command line."""
        return {}

    def _prepare(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        """Nothing to prepare on one node: what the first one gets, all have."""

    def _create(self) -> State:
        state = self._new_state()
{% if secure %}
        self._make_certificates(state)
{% endif %}
        state.created = True
        return state

    def _programs(self) -> Path:
        program = find_program()
        if program is None:
            raise ClusterError(
                "There is no `cockroach` on PATH. Install CockroachDB, name its program in COCKROACH_BIN, or use the embedded cluster."
            )
        if not os.access(program, os.X_OK):
            raise ClusterError(f"COCKROACH_BIN is {program}, which is no program. Correct it or unset it.")
        return Path(program).resolve()

    def _find_again(self, state: State) -> None:
        if not Path(state.programs).exists():
            state.programs = str(self._programs())

    def _configure(self, state: State, node: Node) -> None:
        """Nothing to write."""

    def _process(self, state: State, node: Node) -> "CockroachNode":
        everyone = ",".join(f"127.0.0.1:{state.ports.get(other.name, 0)}" for other in NODES)
        port, http_port = state.ports.get(node.name, 0), state.ports.get(_console(node).name, 0)
        command = (
            state.programs,
            "start",
            f"--store={self._data / node.name}",
            *self._access,
            f"--listen-addr=127.0.0.1:{port}",
            f"--advertise-addr=127.0.0.1:{port}",
            f"--http-addr=127.0.0.1:{http_port}",
            f"--join={everyone}",
            f"--locality=region=local,zone={node.name}",
            "--cache=64MiB",
            "--max-sql-memory=128MiB",
        )
        return CockroachNode(command, http_port, self._authority, self._data / f"{node.name}.log")

    def _start(self, state: State, nodes: Sequence[Node]) -> None:
        if nodes:
            self._choose_ports(state, [_console(node) for node in nodes])
        super()._start(state, nodes)
        if state.wired:
            self._wait_until_ready(state, nodes)

    def _stop(self, state: State, nodes: Sequence[Node], number: signal.Signals) -> None:
        # One node hands over what it has before it stops. All at once would wait for each other, so they are not asked; what was
        # committed is on their disks.
        super()._stop(state, nodes, signal.SIGKILL if len(nodes) > 1 else number)

    def _wire(self, nodes: Mapping[str, str]) -> None:
        state = self._existing()
        first = NODES[0]
        result = subprocess.run(
            [state.programs, "init", *self._access, f"--host=127.0.0.1:{state.ports[first.name]}"],
            capture_output=True,
            text=True,
            timeout=READY_TIMEOUT,
            check=False,
        )
        if result.returncode and "already been initialized" not in result.stderr:
            raise ClusterError(f"the nodes do not form a cluster: {result.stderr.strip()}")
        self._wait_until_ready(state, NODES)
        with psycopg.connect(self._root_dsn(state), autocommit=True) as connection:
            database, role = sql.Identifier(DATABASE), sql.Identifier(DATABASE)
            # A cluster that nobody else sees has nothing to report.
            connection.execute("SET CLUSTER SETTING diagnostics.reporting.enabled = false")
            connection.execute(sql.SQL("CREATE DATABASE IF NOT EXISTS {}").format(database))
            connection.execute(sql.SQL("CREATE USER IF NOT EXISTS {}").format(role))
{% if secure %}
            operations = sql.Identifier(OPERATIONS)
            connection.execute(sql.SQL("CREATE USER IF NOT EXISTS {}").format(operations))
            for user, password in ((role, state.application_password), (operations, state.superuser_password)):
                connection.execute(sql.SQL("ALTER USER {} WITH PASSWORD {}").format(user, sql.Literal(password)))
            connection.execute(sql.SQL("GRANT admin TO {}").format(operations))
            connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, role))
{% else %}
            # Nobody has to show who he is, so the application is as good as anybody.
            connection.execute(sql.SQL("GRANT ALL ON DATABASE {} TO {}").format(database, role))
{% endif %}

    def _urls(self, state: State, username: str, password: str) -> dict[str, URL]:
{% if secure %}
        role = DATABASE if username == DATABASE else OPERATIONS
        query = {"sslmode": "verify-full", "sslrootcert": str(self._authority)}
        return {
            node.name: URL.create(URL_SCHEME, role, password, "127.0.0.1", state.ports[node.name], DATABASE, query)
            for node in NODES
        }
{% else %}
        return {
            node.name: URL.create(
                URL_SCHEME, "root", None, "127.0.0.1", state.ports[node.name], DATABASE, {"sslmode": "disable"}
            )
            for node in NODES
        }
{% endif %}

    @property
    def _access(self) -> tuple[str, ...]:
        """How the program proves who it is."""
{% if secure %}
        return (f"--certs-dir={self._data / 'certs'}",)
{% else %}
        return ("--insecure",)
{% endif %}

    @property
    def _authority(self) -> Path | None:
        """The certificate by which those of the nodes are known."""
{% if secure %}
        return self._data / "certs" / "ca.crt"
{% else %}
        return None
{% endif %}

    def _root_dsn(self, state: State) -> str:
{% if secure %}
        certificates = self._data / "certs"
        access = {
            "sslmode": "verify-full",
            "sslrootcert": str(certificates / "ca.crt"),
            "sslcert": str(certificates / "client.root.crt"),
            "sslkey": str(certificates / "client.root.key"),
        }
{% else %}
        access = {"sslmode": "disable"}
{% endif %}
        first = {"host": "127.0.0.1", "port": str(state.ports[NODES[0].name])}
        return make_conninfo(user="root", dbname="defaultdb", connect_timeout=5, **first, **access)
{% if secure %}

    def _make_certificates(self, state: State) -> None:
        folder = self._data / "certs"
        folder.mkdir(mode=0o700, exist_ok=True)
        common = (f"--certs-dir={folder}", f"--ca-key={folder / 'ca.key'}", "--overwrite")
        steps = (
            ("create-ca", "--allow-ca-key-reuse"),
            ("create-node", "localhost", "127.0.0.1"),
            ("create-client", "root"),
        )
        for step in steps:
            command = [state.programs, "cert", *step, *common]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                raise ClusterError(f"`cockroach cert {step[0]}` failed: {result.stderr.strip()}")
{% endif %}

    def _wait_until_ready(self, state: State, nodes: Sequence[Node]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        waiting = list(nodes)
        while waiting := [node for node in waiting if not self._process(state, node).is_ready()]:
            if time.monotonic() > deadline:
                names = " and ".join(node.name for node in waiting)
                logs = ", ".join(str(self._process(state, node).log) for node in waiting)
                raise ClusterError(
                    f"{names}: not ready after {READY_TIMEOUT:.0f} s. Two of the three nodes make a majority; the logs are {logs}"
                )
            time.sleep(0.05)


def _console(node: Node) -> Node:
    """Its port for HTTP, as something that gets a port of its own."""
    return Node(f"{node.name} console", 0, "console", FIRST_HTTP_PORT + node.number - 1)


@dataclass(frozen=True)
class CockroachNode(Daemon):
    """One node."""

    arguments: tuple[str, ...]
    http_port: int
    authority: Path | None
    log: Path

    @property
    def command(self) -> Sequence[str]:
        """The program and its arguments."""
        return self.arguments

    @property
    def mark(self) -> str:
        """Its store is nobody else's."""
        return next(argument for argument in self.arguments if argument.startswith("--store="))

    def is_there(self) -> bool:
        """Whether it listens, which it does before it belongs to a cluster."""
        if self._health() is None:
            return False
        # Somebody else may have been quicker to take the port: then it ends at once.
        time.sleep(SETTLING)
        return self.pid() is not None

    def is_ready(self) -> bool:
        """Whether it runs, belongs to a cluster and serves clients."""
        return self.pid() is not None and self._health() == HTTPStatus.OK

    def _health(self) -> int | None:
        """The status of its health check (https://www.cockroachlabs.com/docs/stable/health-endpoints); None if nobody answers."""
{% if secure %}
        url = f"https://127.0.0.1:{self.http_port}/health?ready=1"
        context = create_default_context(cafile=str(self.authority))
        try:
            with urllib.request.urlopen(url, timeout=2, context=context) as answer:
                return int(answer.status)
{% else %}
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/health?ready=1", timeout=2) as answer:
                return int(answer.status)
{% endif %}
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None
