"""Three unrelated PostgreSQL servers for the databases of the tenants.

A tenant that moves is copied from one server to the other by logical replication, which lasts only as long as the move.
"""

from collections.abc import Mapping

from .nodes import Node
from .process_cluster import ProcessCluster


class Embedded(ProcessCluster):
    """The servers as processes of this machine."""

    secret_settings = ("tenant_secret",)

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
