"""The check that nothing takes rows or rights from the application although the tables have their shape."""

from pathlib import Path

from sqlalchemy import text

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
        """Look for settings, locks, policies, triggers, rules and more that hide rows or let writes vanish."""
        query = text(Path(__file__).with_name("obstacles.sql").read_text(encoding="utf-8"))
        owner = next(iter(context.owner_urls.values())).username or ""
        values = {
            "application": context.application,
            "owner": owner,
            "others": [ROLES["reader"], ROLES["monitor"]],
            "connections": context.pool.max_connections,
        }
        problems: list[str] = []
        with context.topology() as topology:
            writers = topology.writers()
            doubts: dict[str, list[str]] = {node: [] for node in writers}
            for node, connection in topology.connections.items():
                # A replica has the objects of its writer, where they are mended.
                for place, level, cause, mend in connection.execute(query, values):
                    if node in writers or place == "server":
                        lines = doubts[node] if level == "doubt" else problems
                        lines.append(f"{node}: {cause}: {mend}")
        some, every = uneven(doubts)
        return judge(problems + some, f"nothing found on {', '.join(context.admin_urls)}", {}, every)
