"""Three unrelated PostgreSQL servers for the databases of the tenants.

A tenant that moves is copied from one server to the other by logical replication, which lasts only as long as the move.
"""

from collections.abc import Mapping

import psycopg
from psycopg import sql

from .nodes import DATABASE, Node
from .process_cluster import ProcessCluster


class Embedded(ProcessCluster):
    """The servers as processes of this machine."""

    def _settings(self, node: Node) -> Mapping[str, object]:
        return {
            "wal_level": "logical",
            "max_wal_senders": 12,
            "max_replication_slots": 12,
            "max_worker_processes": 16,
            "max_logical_replication_workers": 10,
            # Delay before a failed copy is tried again; the default is 5 s.
            "wal_retrieve_retry_interval": "200ms",
            # `off` would delay a copy, because only flushed WAL is sent.
            "synchronous_commit": "local",
        }

    def _prepare(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        # By default every role of the server may connect to every database.
        for database in ("postgres", "template1", DATABASE):
            connection.execute(
                sql.SQL("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database))
            )
