"""Checks of the writer and its readers: setup, roles, what the readers receive, and that one of them can take over."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from ...cluster import Cluster
from ...failover import bring_back, fail_over
from ...topology import is_aurora
from ..check import Check, CheckContext, CheckResult, failed, judge, passed, skipped, warned
from .links import LinksCheck
from .replication import NodeLossCheck
from .servers import compare_clocks, read_settings


class ServersAreSetUp(Check):
    """The servers are set up to follow each other.

    Correct the setting on the node that is named and restart it: any node may be the writer tomorrow.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Read the settings, the version and the clock of every node and compare them."""
        with context.topology() as topology:
            settings = read_settings(topology.connections)
            skews, problems = compare_clocks(topology.connections)
        for node, found in settings.items():
            if found["wal_level"] == "minimal":
                problems.append(f"{node}: wal_level is minimal, so no reader can follow")
            if found["fsync"] == found["full_page_writes"] == "off":
                problems.append(f"{node}: full_page_writes is off, so a former writer could not be rewound")
        versions = {node: found["server_version"].partition(" ")[0] for node, found in settings.items()}
        if len({version.partition(".")[0] for version in versions.values()}) > 1:
            problems.append(f"different major versions: {versions}")
        names = {node: found["cluster_name"] for node, found in settings.items()}
        evidence = {"versions": versions, "cluster_names": names, "clock_skew_s": skews}
        return judge(problems, f"PostgreSQL {next(iter(versions.values()))}", evidence)


class ExactlyOneNodeWrites(Check):
    """Exactly one node takes writes.

    The timelines of two writers diverge: stop the wrong one, then `rejoin` it. Without a writer, `failover` to the
    reader that is furthest ahead.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Find the writer, which fails unless there is exactly one."""
        with context.topology() as topology:
            writer = topology.writer()
        return passed(f"{writer} writes", {"writer": writer})


class EveryReaderStreams(LinksCheck):
    """Every reader follows the writer.

    The reader's log has the reason. A reader that fell too far behind, or went ahead of the writer, comes back with
    `rejoin`.
    """

    requires = ("ExactlyOneNodeWrites",)

    def run(self, context: CheckContext) -> CheckResult:
        """Skip on Aurora, which has no links."""
        with context.topology() as topology:
            if is_aurora(topology.connections[topology.writer()]):
                return skipped("Aurora's readers share the writer's storage and receive no WAL")
        return super().run(context)


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
            settings = read_settings(topology.connections)[writer]
            states = dict(map(tuple, topology.connections[writer].execute(text(_CONFIRMING))))
        names, mode = settings["synchronous_standby_names"], settings["synchronous_commit"]
        confirming = sorted(name for name, state in states.items() if state in ("quorum", "sync"))
        evidence = {"synchronous_standby_names": names, "synchronous_commit": mode, "states": states}
        if not names or mode in ("off", "local"):
            wait = f"ANY 1 ({', '.join(states)})"
            mend = f"ALTER SYSTEM SET synchronous_standby_names = '{wait}'; SELECT pg_reload_conf()"
            lost = "a failover can lose the last acknowledged commits"
            return warned(f"{writer}: it waits for no reader, so {lost}: {mend}", evidence)
        if not confirming:
            return failed(f"{writer} waits for {names}, and no reader confirms: every commit hangs", evidence)
        return passed(f"{names}: {' and '.join(confirming)} can confirm", evidence)


class ANewWriterTakesOver(NodeLossCheck):
    """A new writer takes over when the writer is lost, and the old one comes back as a reader.

    Without `synchronous_standby_names` acknowledged writes can be lost; otherwise the readers' logs have the reason.
    """

    @contextmanager
    def loss(self, cluster: Cluster) -> Iterator[str]:
        """Kill the writer, promote the reader that is furthest ahead, and bring the former writer back as a reader."""
        done = fail_over(cluster, kill=True)
        yield f"{done.former} killed, {done.writer} promoted in {done.seconds:.2f} s"
        if done.former is not None:
            bring_back(cluster, done.former)


_CONFIRMING = "SELECT application_name, sync_state FROM pg_stat_replication"
