"""Three plain PostgreSQL servers, each with a database of its own, and a SQLite file beside them.

Nothing links them. They can prepare transactions, which a server does not do unless it is told to.
"""

from collections.abc import Mapping

import psycopg

from .nodes import Node
from .processes import Processes


class Embedded(Processes):
    """The servers as processes of this machine."""

    kind = "embedded"

    def _settings(self, node: Node) -> Mapping[str, object]:
        return {
            # As many as there can be sessions: one that may not prepare fails when its work is already done.
            "max_prepared_transactions": 100,
            # A prepared transaction is to survive a server that is killed, and to be on disk when PREPARE returns.
            "synchronous_commit": "local",
        }

    def _prepare(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        """Nothing that every database should have: they are unrelated."""

    def _wire(self, nodes: Mapping[str, str]) -> None:
        """Nothing to link."""

    def destroy(self) -> None:
        """Stop all nodes and delete their data, and the files beside them."""
        super().destroy()
        for file in self.home.glob("*.sqlite3*"):
            file.unlink()
