"""Checks of the mesh: its servers, its links, and the tables that the links carry."""

from sqlalchemy import text

from ...topology import has_spock
from ..check import Check, CheckContext, CheckResult, judge
from .links import LinksCheck
from .replication import NodeLossCheck
from .servers import compare_clocks, read_settings


class ServersAreSetUp(Check):
    """The servers are set up for a mesh.

    Correct the setting in the configuration of that node and restart it. Clocks matter because the later of two
    conflicting writes wins, by the clocks of the nodes that took them.
    """

    REQUIRED = {"wal_level": "logical", "track_commit_timestamp": "on", "server_encoding": "UTF8"}

    def run(self, context: CheckContext) -> CheckResult:
        """Read the settings, the version and the clock of every node and compare them."""
        doubts: list[str] = []
        with context.topology() as topology:
            settings = read_settings(topology.connections)
            skews, problems = compare_clocks(topology.connections)
            numbers = {node: topology.node_number(node) for node in topology.connections}
            extensions = {node: connection.scalar(text(_SOFTWARE)) for node, connection in topology.connections.items()}
        for node, found in settings.items():
            for name, value in self.REQUIRED.items():
                if found[name] != value:
                    problems.append(f"{node}: {name} is {found[name]}, not {value}")
            if found.get("spock.exception_behaviour") == "transdiscard":
                doubts.append(f"{node}: spock.exception_behaviour = transdiscard drops failing transactions")
            plugins = found.get("output_plugin_libraries", "spock_output")
            if "spock" in extensions[node] and "spock_output" not in plugins:
                problems.append(f"{node}: output_plugin_libraries lacks spock_output, so no change leaves it")
        for number in set(numbers.values()):
            nodes = [node for node in numbers if numbers[node] == number]
            if number == 0:
                problems.append(f"{', '.join(nodes)}: snowflake.node is not set")
            elif len(nodes) > 1:
                problems.append(f"{' and '.join(nodes)} have the same snowflake.node, {number}: their keys collide")
        versions = {node: found["server_version"].partition(" ")[0] for node, found in settings.items()}
        if len({version.partition(".")[0] for version in versions.values()}) > 1:
            problems.append(f"different major versions: {versions}")
        if len(set(extensions.values())) > 1:
            doubts.append(f"different extensions: {extensions}")
        evidence = {"versions": versions, "extensions": extensions, "node_numbers": numbers, "clock_skew_s": skews}
        software = next(iter(extensions.values())) or "native logical replication, a stand-in for Spock"
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
            problems += [f"{node}: {table} is carried by no link" for node, table in topology.left_out_tables()]
            for node, connection in topology.connections.items():
                problems += [f"{node}: {table}: {reason}" for table, reason in topology.unreplicable_tables(connection)]
                query = text(_SPOCK_COUNTS if has_spock(connection) else _NATIVE_COUNTS)
                conflicts[node], failures = connection.execute(query).one()
                if failures:
                    problems.append(f"{node} could not apply {failures} changes, see spock.exception_log there")
        doubts = [f"{node} met {count} conflicting changes so far" for node, count in conflicts.items() if count]
        return judge(problems, "no table left out, no conflict so far", {"conflicts": conflicts}, doubts)


class TheOthersGoOn(NodeLossCheck):
    """The others go on when the preferred node is lost, and it catches up.

    If rows are missing on a node, look at its links, and for signs that it lost its disk with its power.
    """


_SOFTWARE = """
    SELECT coalesce(string_agg(extname || ' ' || extversion, ', ' ORDER BY extname), '')
    FROM pg_extension WHERE extname IN ('spock', 'snowflake')
"""

_SPOCK_COUNTS = "SELECT (SELECT count(*) FROM spock.resolutions), (SELECT count(*) FROM spock.exception_log)"

# The columns for conflicts came one by one with PostgreSQL 18 and 19, so they are summed by name.
_NATIVE_COUNTS = """
    SELECT coalesce(sum(value::bigint), 0)::bigint, 0
    FROM pg_stat_subscription_stats AS s, jsonb_each_text(to_jsonb(s)) AS c(name, value)
    WHERE name LIKE 'confl\\_%'
"""
