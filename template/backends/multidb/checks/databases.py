"""Checks of every database by itself: its server's settings and its revision."""

from sqlalchemy import text

from ....settings import Settings
from ...histories import histories
from ..check import Check, CheckContext, CheckResult, judge


class ServersCanPrepare(Check):
    """The servers can prepare transactions.

    Set `max_prepared_transactions` to `max_connections` on the node that is named, and restart it.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Read the version and the settings of every server."""
        problems: list[str] = []
        settings: dict[str, dict[str, object]] = {}
        with context.topology() as topology:
            for node, connection in topology.connections.items():
                version, prepared, most = connection.execute(text(_SETTINGS)).one()
                settings[node] = {"version": version, "max_prepared_transactions": prepared, "max_connections": most}
                if prepared < most:
                    problems.append(f"{node} can prepare {prepared} transactions, but has {most} connections")
        versions = sorted({str(found["version"]) for found in settings.values()})
        return judge(problems, f"PostgreSQL {', '.join(versions)}", {"settings": settings})


class EveryDatabaseIsUpToDate(Check):
    """Every database is at its newest revision, the file included.

    Run `migrate`.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the revision of each database with its folder in `migrations`."""
        context.check_sight()
        # The SQLite files lie beside the local cluster to check, or where the settings have them.
        folder = Settings().sqlite_folder if context.cluster is None else context.cluster.home
        known = histories(context.owner_urls, folder=folder, project=context.project)
        reached = {history.database.name: (history.version(), history.head) for history in known}
        evidence = {name: version for name, (version, _) in reached.items()}
        behind = [f"{name} is at {version}, not {head}" for name, (version, head) in reached.items() if version != head]
        return judge(behind, ", ".join(f"{name} at {version}" for name, version in evidence.items()), evidence)


_SETTINGS = """
    SELECT split_part(current_setting('server_version'), ' ', 1),
           current_setting('max_prepared_transactions')::int, current_setting('max_connections')::int
"""
