"""Three plain PostgreSQL servers in a mesh that stands in for Spock.

Every node publishes all its tables and subscribes to every other node, but only to rows written there
(`origin = none`), so that no row travels in circles. The `snowflake` functions of pgEdge's extension exist as SQL.
"""

from collections.abc import Mapping
from pathlib import Path

import psycopg

from .nodes import ROLES, Node
from .process_cluster import ProcessCluster

PUBLICATION = "mesh"


class Embedded(ProcessCluster):
    """The mesh as processes of this machine."""

    def _settings(self, node: Node) -> Mapping[str, object]:
        return {
            "wal_level": "logical",
            "max_wal_senders": 12,
            "max_replication_slots": 12,
            "max_worker_processes": 16,
            "max_logical_replication_workers": 10,
            # Limits how long replication pauses after a node comes back; the default is 5 s.
            "wal_retrieve_retry_interval": "200ms",
            "wal_receiver_status_interval": "1s",
            # Detection of concurrent updates of one row needs it.
            "track_commit_timestamp": "on",
            # `off` would delay the peers, because only flushed WAL is sent.
            "synchronous_commit": "local",
            "snowflake.node": node.number,
        }

    def _prepare(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        # The image of a real node has these functions.
        connection.execute(Path(__file__).with_name("snowflake.sql").read_bytes())
        connection.execute(f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")
        # A revision runs on every node, and keeps its entry in Alembic's table there.
        connection.execute(
            "GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_oid(text), "
            "pg_replication_origin_session_setup(text), pg_replication_origin_session_reset() "
            f'TO "{ROLES["owner"]}"'
        )

    def _wire(self, nodes: Mapping[str, str]) -> None:
        # One after the other: two concurrent CREATE SUBSCRIPTION wait for each other's transaction, across servers,
        # for ever.
        for receiver, dsn in nodes.items():
            with psycopg.connect(dsn, autocommit=True) as connection:
                for origin in nodes.keys() - {receiver}:
                    link = f"{receiver}_from_{origin}"
                    connection.execute(
                        f"CREATE SUBSCRIPTION {link} CONNECTION 'service={origin} application_name={link}' "
                        f"PUBLICATION {PUBLICATION} "
                        "WITH (origin = none, copy_data = false, synchronous_commit = 'local')"
                    )
