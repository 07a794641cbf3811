"""Checks of the mesh: its servers, its links, and the tables that the links carry."""

from collections import defaultdict

from sqlalchemy import Connection, text

from ...topology import has_spock, left_out_tables
from ..check import Check, CheckContext, CheckResult, judge
from .links import LinksCheck
from .node_loss import NodeLossCheck
from .servers import compare_clocks, server_versions, show, version_problems

REQUIRED = {"wal_level": "logical", "track_commit_timestamp": "on", "server_encoding": "UTF8"}
"""Settings that every server must have."""


class ServersAreSetUp(Check):
    """The servers are set up for a mesh.

    Correct the setting in the configuration of that node and restart it. Clocks matter because the later of two
    conflicting writes wins, by the clocks of the nodes that took them.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Read the settings, the version and the clock of every node and compare them."""
        problems: list[str] = []
        doubts: list[str] = []
        numbers: dict[int, list[str]] = defaultdict(list)
        extensions: dict[str, str] = {}
        with context.topology() as topology:
            versions = server_versions(topology.connections)
            skews, differences = compare_clocks(topology.connections)
            for node, connection in topology.connections.items():
                numbers[topology.node_number(node)].append(node)
                for setting, value in REQUIRED.items():
                    if (found := show(connection, setting)) != value:
                        problems.append(f"{node}: {setting} is {found}, not {value}")
                if has_spock(connection):
                    extensions[node] = ", ".join(connection.scalars(text(_EXTENSIONS)))
                    if show(connection, "spock.exception_behaviour") == "transdiscard":
                        doubts.append(f"{node}: spock.exception_behaviour = transdiscard drops failing transactions")
                    plugins = connection.scalar(text("SELECT current_setting('output_plugin_libraries', true)"))
                    if plugins is not None and "spock_output" not in plugins:
                        problems.append(f"{node}: output_plugin_libraries lacks spock_output, so no change leaves it")
        for number, nodes in numbers.items():
            if number == 0:
                problems.append(f"{', '.join(nodes)}: snowflake.node is not set")
            elif len(nodes) > 1:
                problems.append(f"{' and '.join(nodes)} have the same snowflake.node, {number}: their keys collide")
        problems += version_problems(versions) + differences
        if len(set(extensions.values())) > 1:
            doubts.append("different extensions: " + "; ".join(f"{node} {names}" for node, names in extensions.items()))
        evidence = {
            "versions": versions,
            "extensions": extensions,
            "node_numbers": {node: number for number, nodes in numbers.items() for node in nodes},
            "clock_skew_s": skews,
        }
        software = next(iter(extensions.values()), "native logical replication, a stand-in for Spock")
        return judge(problems, f"PostgreSQL {next(iter(versions.values()))}, {software}", evidence, doubts)


class EveryLinkReplicates(LinksCheck):
    """Every link replicates.

    The receiver's log has the reason. With Spock, `spock.sub_enable()` starts a disabled link again.
    """


class EveryTableIsReplicated(Check):
    """Every table is replicated.

    Give the table a primary key, or run `migrate`. If changes were not applied, compare the rows of the nodes, mend
    them, and empty spock.exception_log.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Look for tables that are not replicated, and for changes that could not be applied."""
        problems: list[str] = []
        conflicts: dict[str, int] = {}
        with context.topology() as topology:
            for node, connection in topology.connections.items():
                problems += [f"{node}: {table}: {reason}" for table, reason in topology.unreplicable_tables(connection)]
                problems += [f"{node}: {table} is carried by no link" for table in left_out_tables(connection)]
                spock = has_spock(connection)
                if spock and (failures := _count(connection, "SELECT count(*) FROM spock.exception_log")):
                    problems.append(f"{node} could not apply {failures} changes, see spock.exception_log there")
                conflicts[node] = _count(connection, _SPOCK_CONFLICTS if spock else _NATIVE_CONFLICTS)
        doubts = [f"{node} met {count} conflicting changes so far" for node, count in conflicts.items() if count]
        return judge(problems, "no table left out, no conflict so far", {"conflicts": conflicts}, doubts)


class TheOthersGoOn(NodeLossCheck):
    """The others go on when the preferred node is lost, and it catches up.

    If rows are missing on a node, look at its links, and for signs that it lost its disk with its power.
    """


_EXTENSIONS = """
    SELECT extname || ' ' || extversion FROM pg_extension WHERE extname IN ('spock', 'snowflake') ORDER BY 1
"""

_SPOCK_CONFLICTS = "SELECT count(*) FROM spock.resolutions"

# The columns for conflicts came one by one with PostgreSQL 18 and 19, so they are summed by name.
_NATIVE_CONFLICTS = """
    SELECT sum(value::bigint) FROM pg_stat_subscription_stats AS s, jsonb_each_text(to_jsonb(s)) AS c(name, value)
    WHERE name LIKE 'confl\\_%'
"""


def _count(connection: Connection, query: str) -> int:
    return int(connection.scalar(text(query)) or 0)
