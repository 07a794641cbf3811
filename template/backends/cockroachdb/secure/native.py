"""Real nodes with certificates, whose clients need a certificate or a password.

The certificates are created here, for loopback, and lie with the data.
"""

import subprocess
from pathlib import Path
from ssl import create_default_context
from urllib.request import urlopen

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL

from ..privileges import privilege_statements
from . import ClusterError
from .native_cluster import NativeCluster
from .nodes import DATABASE, ROLES, node_urls
from .process_cluster import ClusterState

OPERATIONS = "operations"
"""Role that may do everything, for migrations and `verify`."""


class Native(NativeCluster):
    """CockroachDB's own nodes, with certificates and passwords."""

    security = "with certificates and passwords"

    def admin_urls(self) -> dict[str, URL]:
        """Return the URL of each node for the role of the operations."""
        state = self._existing()
        return node_urls(state.ports, OPERATIONS, state.superuser_password, self._server_parameters)

    def _role_urls(self, role: str) -> dict[str, URL]:
        state = self._existing()
        return node_urls(state.ports, ROLES[role], state.password_of(role), self._server_parameters)

    @property
    def _certificates(self) -> Path:
        return self._data / "certs"

    @property
    def _flags(self) -> tuple[str, ...]:
        return (f"--certs-dir={self._certificates}",)

    @property
    def _server_parameters(self) -> dict[str, str]:
        """Connection parameters by which a client verifies a node."""
        return {"sslmode": "verify-full", "sslrootcert": str(self._certificates / "ca.crt")}

    def _root_parameters(self) -> dict[str, str]:
        client = self._certificates / "client.root"
        return {**self._server_parameters, "sslcert": f"{client}.crt", "sslkey": f"{client}.key"}

    def _create(self, state: ClusterState) -> None:
        """Create the certificates of the authority, of the nodes and of root."""
        self._certificates.mkdir(mode=0o700, exist_ok=True)
        common = (*self._flags, f"--ca-key={self._certificates / 'ca.key'}", "--overwrite")
        steps = (
            ("create-ca", "--allow-ca-key-reuse"),
            ("create-node", "localhost", "127.0.0.1"),
            ("create-client", "root"),
        )
        for step in steps:
            command = [state.program, "cert", *step, *common]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                raise ClusterError(f"`cockroach cert {step[0]}` failed: {result.stderr.strip()}")

    def _grant(self, connection: psycopg.Connection[tuple[object, ...]], state: ClusterState) -> None:
        passwords = {ROLES[role]: state.password_of(role) for role in ROLES} | {OPERATIONS: state.superuser_password}
        for user, password in passwords.items():
            name = sql.Identifier(user)
            connection.execute(sql.SQL("CREATE USER IF NOT EXISTS {}").format(name))
            connection.execute(sql.SQL("ALTER USER {} WITH PASSWORD {}").format(name, sql.Literal(password)))
        monitor, database, owner = map(sql.Identifier, (ROLES["monitor"], DATABASE, ROLES["owner"]))
        connection.execute(sql.SQL("GRANT admin TO {}").format(sql.Identifier(OPERATIONS)))
        connection.execute(sql.SQL("GRANT SYSTEM VIEWACTIVITYREDACTED, VIEWCLUSTERMETADATA TO {}").format(monitor))
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, owner))
        connection.execute(sql.SQL("USE {}").format(database))
        for statement in privilege_statements(database=DATABASE, **ROLES):
            connection.execute(statement.encode())

    def _health(self, port: int) -> int:
        context = create_default_context(cafile=self._certificates / "ca.crt")
        url = f"https://127.0.0.1:{port}/health?ready=1"
        with urlopen(url, timeout=2, context=context) as answer:
            return int(answer.status)
