"""Checks of the writer and its readers: their setup, their roles, and what the readers receive."""

from sqlalchemy import text

from ...base import TopologyError
from ...topology import is_aurora
from ..check import Check, CheckContext, CheckResult, failed, judge, passed, warned
from .links import LinksCheck
from .servers import compare_clocks, server_versions, show, version_problems


class ServersAreSetUp(Check):
    """The servers are set up to follow each other.

    Correct the setting on the node that is named and restart it: any node may be the writer tomorrow.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Read the settings, the version and the clock of every node and compare them."""
        problems: list[str] = []
        names: dict[str, str] = {}
        with context.topology() as topology:
            versions = server_versions(topology.connections)
            skews, differences = compare_clocks(topology.connections)
            for node, connection in topology.connections.items():
                names[node] = show(connection, "cluster_name")
                if show(connection, "wal_level") == "minimal":
                    problems.append(f"{node}: wal_level is minimal, so no reader can follow")
                if show(connection, "fsync") == show(connection, "full_page_writes") == "off":
                    problems.append(f"{node}: full_page_writes is off, so a former writer could not be rewound")
        problems += version_problems(versions) + differences
        evidence = {"versions": versions, "cluster_names": names, "clock_skew_s": skews}
        return judge(problems, f"PostgreSQL {next(iter(versions.values()))}", evidence)


class ExactlyOneNodeWrites(Check):
    """Exactly one node takes writes.

    The timelines of two writers diverge: stop the wrong one, then `rejoin` it. Without a writer, `failover` to the
    reader that is furthest ahead.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Ask every node whether it is in recovery."""
        with context.topology() as topology:
            try:
                writer = topology.writer()
            except TopologyError as error:
                return failed(str(error))
        return passed(f"{writer} writes", {"writer": writer})


class EveryReaderStreams(LinksCheck):
    """Every reader follows the writer.

    The reader's log has the reason. A reader that fell too far behind, or went ahead of the writer, comes back with
    `rejoin`.
    """

    requires = ("ExactlyOneNodeWrites",)

    def skip_reason(self, context: CheckContext) -> str | None:
        """Skip on Aurora, which has no links."""
        with context.topology() as topology:
            if is_aurora(topology.connections[topology.writer()]):
                return "Aurora's readers share the writer's storage and receive no WAL"
        return None


class EveryTableIsReplicated(Check):
    """Every table is replicated.

    `ALTER TABLE … SET LOGGED`, in a migration.
    """

    requires = ("ExactlyOneNodeWrites",)

    def run(self, context: CheckContext) -> CheckResult:
        """Look for tables whose rows are not in the WAL."""
        with context.topology() as topology:
            tables = topology.unreplicable_tables(topology.connections[topology.writer()])
        return judge([f"{table}: {reason}" for table, reason in tables], "no table left out", {})


class CommitsWaitForAReader(Check):
    """A commit waits for a reader.

    `synchronous_standby_names = 'ANY 1 (…)'` on every node, with the readers' cluster_name. Without it the last
    acknowledged commits are lost if the writer dies.
    """

    requires = ("EveryReaderStreams",)

    def run(self, context: CheckContext) -> CheckResult:
        """Ask the writer for the readers that confirm its commits."""
        with context.topology() as topology:
            writer = topology.writer()
            connection = topology.connections[writer]
            names = show(connection, "synchronous_standby_names")
            mode = show(connection, "synchronous_commit")
            rows = connection.execute(text("SELECT application_name, sync_state FROM pg_stat_replication"))
            states = {row.application_name: row.sync_state for row in rows}
        confirming = sorted(name for name, state in states.items() if state in ("quorum", "sync"))
        evidence = {"synchronous_standby_names": names, "synchronous_commit": mode, "states": states}
        if not names or mode in ("off", "local"):
            return warned(f"{writer} waits for no reader: a failover can lose the last acknowledged commits", evidence)
        if not confirming:
            return failed(f"{writer} waits for {names}, and no reader confirms: every commit hangs", evidence)
        return passed(f"{names}: {' and '.join(confirming)} can confirm", evidence)
