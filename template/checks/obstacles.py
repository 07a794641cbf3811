"""The check that nothing takes rows or rights from the application although the tables have their shape."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, text

from ...cluster.nodes import ROLES
from ..check import Check, CheckContext, CheckResult, judge
from .privileges import uneven


class NothingTakesRowsOrRights(Check):
    """Nothing takes rows or rights from the application.

    Run the statement of each line on the node that it names, as an administrator. If a policy, a trigger, a rule or a
    table is meant to be as it is, say so with a COMMENT on it.
    """

    timeout = 15.0

    def run(self, context: CheckContext) -> CheckResult:
        """Look for settings, policies, triggers, rules and more that hide rows or let writes vanish."""
        others = [ROLES["reader"], ROLES["monitor"]]
        wanted = context.pool.max_connections
        problems: list[str] = []
        with context.topology() as topology:
            writers = topology.writers()
            doubts: dict[str, list[str]] = {node: [] for node in writers}
            for node, connection in topology.connections.items():
                for row in find_obstacles(connection, context.application, context.owner, others, connections=wanted):
                    # A replica has the objects of its writer, where they are mended.
                    if node in writers or row.place == "server":
                        lines = doubts[node] if row.level == "doubt" else problems
                        lines.append(f"{node}: {row.cause}: {row.mend}")
        some, every = uneven(doubts)
        return judge(problems + some, f"nothing found on {', '.join(context.admin_urls)}", {}, every)


def find_obstacles(
    connection: Connection, application: str, owner: str, others: Sequence[str], *, connections: int
) -> Sequence[Row[Any]]:
    """Return what takes rows or rights from the application in one database.

    Args:
        connection: a connection to the database, for an administrator.
        application: role of the application.
        owner: role that owns the tables.
        others: roles that need to log in as well.
        connections: number of connections that the application may open.

    Returns:
        Rows with the `place` (`server` or `database`), the `level` (`problem` or `doubt`), the `cause` and `mend`, the
        statements that end it.
    """
    query = text(Path(__file__).with_name("obstacles.sql").read_text(encoding="utf-8"))
    values = {"application": application, "owner": owner, "others": list(others), "connections": connections}
    return connection.execute(query, values).all()
