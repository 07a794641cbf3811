"""How three plain PostgreSQL servers become the servers of the tenants: by staying what they are.

Nothing links them. A database that moves is copied by logical replication, from one server to the other and for as long as that
takes.
"""

from collections.abc import Mapping

import psycopg
from psycopg import sql

from .nodes import DATABASE, Node
from .processes import Processes


class Embedded(Processes):
    """The servers as processes of this machine."""

    kind = "embedded"

    def _settings(self, node: Node) -> Mapping[str, object]:
        return {
            "wal_level": "logical",
            "max_wal_senders": 12,
            "max_replication_slots": 12,
            "max_worker_processes": 16,
            "max_logical_replication_workers": 10,
            # How long a copy waits before it tries again; the default is 5 s.
            "wal_retrieve_retry_interval": "200ms",
            # `off` would delay a copy: only flushed WAL is sent.
            "synchronous_commit": "local",
        }

    def _prepare(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        # Otherwise every role of the server may connect to every database.
        for database in ("postgres", "template1", DATABASE):
            connection.execute(
                sql.SQL("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database))
            )

    def _wire(self, nodes: Mapping[str, str]) -> None:
        """Nothing to link."""
