"""Checks of every database by itself: its server's settings and its revision."""

from ....settings import Settings
from ...histories import histories
from ..check import Check, CheckContext, CheckResult, judge
from .servers import server_versions, show


class ServersCanPrepare(Check):
    """The servers can prepare transactions.

    Set `max_prepared_transactions` to `max_connections` on the node that is named, and restart it.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Read the version and the settings of every server."""
        problems: list[str] = []
        settings: dict[str, dict[str, int]] = {}
        with context.topology() as topology:
            versions = server_versions(topology.connections)
            for node, connection in topology.connections.items():
                prepared, most = (
                    int(show(connection, name)) for name in ("max_prepared_transactions", "max_connections")
                )
                settings[node] = {"max_prepared_transactions": prepared, "max_connections": most}
                if prepared < most:
                    problems.append(f"{node} can prepare {prepared} transactions, but has {most} connections")
        evidence = {"versions": versions, "settings": settings}
        return judge(problems, f"PostgreSQL {', '.join(sorted(set(versions.values())))}", evidence)


class EveryDatabaseIsUpToDate(Check):
    """Every database is at its newest revision, the file included.

    Run `migrate`.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the revision of each database with its folder in `migrations`."""
        # The SQLite files lie beside the local cluster to check, or where the settings have them.
        folder = Settings().sqlite_folder if context.cluster is None else context.cluster.home
        known = histories(context.admin_urls, owner=context.owner, folder=folder, project=context.project)
        reached = {history.database.name: (history.version(), history.head) for history in known}
        evidence = {name: version for name, (version, _) in reached.items()}
        behind = [f"{name} is at {version}, not {head}" for name, (version, head) in reached.items() if version != head]
        return judge(behind, ", ".join(f"{name} at {version}" for name, version in evidence.items()), evidence)
