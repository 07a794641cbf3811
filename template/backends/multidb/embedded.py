"""Three unrelated PostgreSQL servers that can prepare transactions."""

from collections.abc import Mapping

from .nodes import Node
from .process_cluster import ProcessCluster


class Embedded(ProcessCluster):
    """The servers as processes of this machine."""

    def _settings(self, node: Node) -> Mapping[str, object]:
        return {
            # As many as there can be sessions: a session that cannot prepare fails after all its work.
            "max_prepared_transactions": 100,
            # A prepared transaction must survive a killed server, so its WAL is written when PREPARE returns.
            "synchronous_commit": "local",
        }
