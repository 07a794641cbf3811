"""The checks that only a mesh needs."""

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import ClassVar

from sqlalchemy import text

from ..cluster import Cluster
from ..connections import connect_all
from ..topology import has_spock, left_out_tables, links, node_number, unreplicable_tables
from .check import Check, Finding, Status, Subject
from .checks import SurvivesALoss

CLOCK_SKEW = 0.5
"""Seconds by which two clocks may differ: the later of two writes wins, by the clock of the node that took it."""


def unproven(subject: Subject) -> Mapping[str, str]:
    """The general checks that mean nothing on this cluster, by name, each with the reason: there are none."""
    return {}


class ServersAreSetUp(Check):
    """The servers are set up for a mesh.

    Correct the setting in the configuration of that node and restart it.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)

    REQUIRED: ClassVar[dict[str, str]] = {
        "wal_level": "logical",
        "track_commit_timestamp": "on",
        "server_encoding": "UTF8",
    }

    def run(self, subject: Subject) -> Finding:
        """Read the settings of every node and compare them."""
        wrong: list[str] = []
        doubtful: list[str] = []
        numbers: dict[int, list[str]] = defaultdict(list)
        versions: dict[str, str] = {}
        skews: dict[str, float] = {}
        software: dict[str, str] = {}
        with connect_all(subject.admin_urls) as connections:
            for node, connection in connections.items():
                versions[node] = str(connection.scalar(text("SHOW server_version"))).partition(" ")[0]
                numbers[node_number(connection)].append(node)
                for setting, value in self.REQUIRED.items():
                    found = connection.scalar(text(f"SHOW {setting}"))
                    if found != value:
                        wrong.append(f"{node}: {setting} is {found}, not {value}")
                before = time.time()
                theirs = float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())::float8")) or 0)
                skews[node] = round(theirs - (before + time.time()) / 2, 3)
                if has_spock(connection):
                    query = "SELECT extname || ' ' || extversion FROM pg_extension WHERE extname IN ('spock', 'snowflake') ORDER BY 1"
                    software[node] = ", ".join(connection.scalars(text(query)))
                    if connection.scalar(text("SHOW spock.exception_behaviour")) == "transdiscard":
                        doubtful.append(
                            f"{node}: spock.exception_behaviour = transdiscard drops a failing transaction and goes on"
                        )
                    allowed = connection.scalar(text("SELECT current_setting('output_plugin_libraries', true)"))
                    if allowed is not None and "spock_output" not in allowed:
                        wrong.append(
                            f"{node}: output_plugin_libraries does not name spock_output, so nothing leaves this node"
                        )
        for number, nodes in numbers.items():
            if number == 0:
                wrong.append(f"{', '.join(nodes)}: snowflake.node is not set")
            elif len(nodes) > 1:
                wrong.append(f"{' and '.join(nodes)} have the same snowflake.node, {number}: their keys collide")
        if len({version.partition(".")[0] for version in versions.values()}) > 1:
            wrong.append(
                "different major versions: " + ", ".join(f"{node} {version}" for node, version in versions.items())
            )
        if len(set(software.values())) > 1:
            doubtful.append(
                "different extensions: " + "; ".join(f"{node} has {names}" for node, names in software.items())
            )
        if max(skews.values()) - min(skews.values()) > CLOCK_SKEW:
            wrong.append(f"the clocks differ by more than {CLOCK_SKEW} s: {skews}")
        evidence = {
            "versions": versions,
            "extensions": software,
            "node_numbers": {node: number for number, nodes in numbers.items() for node in nodes},
            "clock_skew_s": skews,
        }
        if wrong:
            return Finding(Status.FAIL, "; ".join(wrong), evidence)
        if doubtful:
            return Finding(Status.WARN, "; ".join(doubtful), evidence)
        what = next(iter(software.values())) if software else "native logical replication, a stand-in for Spock"
        return Finding(Status.PASS, f"PostgreSQL {next(iter(versions.values()))}, {what}", evidence)


class EveryLinkReplicates(Check):
    """Every link replicates.

    The receiver's log has the reason. With Spock, `spock.sub_enable()` starts a disabled link again.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)

    PATIENCE: ClassVar[float] = 3.0
    """Seconds: a link that was interrupted comes back within that, a broken one does not."""

    def run(self, subject: Subject) -> Finding:
        """Look at the links until all are up or patience ends."""
        deadline = time.monotonic() + self.PATIENCE
        with connect_all(subject.admin_urls) as connections:
            while True:
                found = links(connections)
                broken = [link for link in found if not link.is_up]
                # A disabled or missing link does not come back by waiting.
                if (
                    not broken
                    or time.monotonic() > deadline
                    or any(link.state in ("disabled", "missing") for link in broken)
                ):
                    break
                time.sleep(0.05)
        evidence = {f"{link.origin}→{link.receiver}": link.state for link in found}
        if broken:
            return Finding(Status.FAIL, ", ".join(map(str, broken)), evidence)
        return Finding(Status.PASS, f"{len(found)} links replicating", evidence)


class EveryTableIsReplicated(Check):
    """Every table is replicated.

    Give the table a primary key, or run `migrate`. For changes that were not applied: compare the rows of the nodes, mend them, and empty spock.exception_log.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)

    def run(self, subject: Subject) -> Finding:
        """Look for tables without a way to the other nodes, and for changes that did not fit."""
        wrong: list[str] = []
        doubtful: list[str] = []
        conflicts: dict[str, int] = {}
        with connect_all(subject.admin_urls) as connections:
            for node, connection in connections.items():
                wrong += [f"{node}: {table}: {reason}" for table, reason in unreplicable_tables(connection)]
                wrong += [f"{node}: {table} is carried by no link" for table in left_out_tables(connection)]
                spock = has_spock(connection)
                if spock:
                    discarded = connection.scalar(text("SELECT count(*) FROM spock.exception_log")) or 0
                    if discarded:
                        wrong.append(f"{node} could not apply {discarded} changes, see spock.exception_log there")
                conflicts[node] = int(connection.scalar(text(_SPOCK_CONFLICTS if spock else _NATIVE_CONFLICTS)) or 0)
                if conflicts[node]:
                    doubtful.append(f"{node} met {conflicts[node]} conflicting changes so far")
        if wrong:
            return Finding(Status.FAIL, "; ".join(wrong), {"conflicts": conflicts})
        if doubtful:
            return Finding(Status.WARN, "; ".join(doubtful), {"conflicts": conflicts})
        return Finding(Status.PASS, "no table left out, no conflict so far", {"conflicts": conflicts})


_SPOCK_CONFLICTS = "SELECT count(*) FROM spock.resolutions"

# The columns for conflicts came one by one with PostgreSQL 18 and 19, so they are summed by name.
_NATIVE_CONFLICTS = """
    SELECT sum(value::bigint) FROM pg_stat_subscription_stats AS s, jsonb_each_text(to_jsonb(s)) AS c(name, value)
    WHERE name LIKE 'confl\\_%'
"""


class TheOthersGoOn(SurvivesALoss):
    """The others go on when the preferred node is lost, and it catches up.

    What is missing on a node: look at its links, and whether it lost its disk with its power.
    """

    def take_away(self, cluster: Cluster) -> str:
        """Kill the first node, where all the work is."""
        node = cluster.status()[0].name
        cluster.stop_node(node, kill=True)
        return f"{node} killed and started again"

    def give_back(self, cluster: Cluster) -> None:
        """Start it again."""
        cluster.start_node(cluster.status()[0].name)


CHAOS = (TheOthersGoOn,)

CHECKS = (ServersAreSetUp, EveryLinkReplicates, EveryTableIsReplicated)
