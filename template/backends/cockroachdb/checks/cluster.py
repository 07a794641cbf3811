"""Checks of the cluster itself: its nodes, their replicas and clocks, and its licence."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, text

from ...topology import internals, software
from ..check import Check, CheckContext, CheckResult, Status, failed, judge, passed, skipped, warned
from .stand_in import CockroachDBCheck

MAX_CLOCK_OFFSET = 0.25
"""Half of the clock offset, in seconds, at which a node stops itself (`--max-offset`)."""

GRACE = timedelta(days=7)
"""Time for which several nodes run without a licence key. https://www.cockroachlabs.com/docs/stable/licensing-faqs"""

KEY_WARNING_DAYS = 30
"""Days before a licence key expires from which the check warns. Arbitrary: time to get another."""

REPLICAS = 3
"""Copies of every range that it takes to lose a node."""


class ItIsCockroachDB(Check):
    """It is CockroachDB, the same version everywhere.

    Finish the upgrade: start the nodes that run the older version with the newer one.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the versions that the nodes report."""
        with context.topology() as topology:
            versions = {node: _version(connection) for node, connection in topology.connections.items()}
        if len(set(versions.values())) > 1:
            return failed(", ".join(f"{node} {version}" for node, version in versions.items()), versions)
        version = next(iter(versions.values()))
        if version.startswith("stand-in"):
            return warned(f"{version}; checks of the cluster itself are skipped, the others are real", versions)
        return passed(version, versions)


class EveryNodeIsLive(CockroachDBCheck):
    """Every node is live.

    Start the node, or, if it is gone for good, decommission it: `cockroach node decommission`.
    """

    def ask(self, connection: Connection, context: CheckContext) -> CheckResult:
        """Read what one node has heard of the others."""
        nodes = _rows(connection, "SELECT node_id, address, is_live, locality::text FROM {}.gossip_nodes ORDER BY 1")
        dead = [f"node {row.node_id} at {row.address} is not live" for row in nodes if not row.is_live]
        evidence = {str(row.node_id): {"address": row.address, "locality": row.locality} for row in nodes}
        few = [f"{len(nodes)} of the {REPLICAS} nodes that it takes to lose one"] if len(nodes) < REPLICAS else []
        summary = f"{len(nodes)} nodes, in {len({row.locality for row in nodes})} localities"
        return judge(dead, summary, evidence, few)


class EveryRangeHasItsReplicas(CockroachDBCheck):
    """Every range has its replicas.

    Replicating takes a minute after a node came back. If it does not end, look for full disks, and for too few nodes
    for the zone.
    """

    def ask(self, connection: Connection, context: CheckContext) -> CheckResult:
        """Read the zone's configuration and the stores' status."""
        zone = str(connection.execute(text("SHOW ZONE CONFIGURATION FOR RANGE default")).one())
        wanted = int(found[1]) if (found := re.search(r"num_replicas = (\d+)", zone)) else 0
        stores = _rows(connection, _STORES)
        under = sum(int(float(row.under or 0)) for row in stores)
        unavailable = sum(int(float(row.unavailable or 0)) for row in stores)
        ranges = {str(row.node_id): row.range_count for row in stores}
        evidence = {"num_replicas": wanted, "under_replicated": under, "unavailable": unavailable, "ranges": ranges}
        if unavailable:
            return failed(f"{unavailable} ranges have no majority, so they are unavailable", evidence)
        if wanted < REPLICAS:
            return failed(f"num_replicas is {wanted}: the loss of one node stops the cluster", evidence)
        if under:
            return warned(f"{under} ranges have fewer than {wanted} replicas", evidence)
        return passed(f"{wanted} replicas of each range, none missing", evidence)


class ClocksAgree(CockroachDBCheck):
    """The clocks agree.

    Let all nodes follow the same source of time: https://www.cockroachlabs.com/docs/stable/operational-faqs
    """

    def ask(self, connection: Connection, context: CheckContext) -> CheckResult:
        """Read the offset that each node measured against the others."""
        offsets = {str(row.node_id): round(float(row.nanos or 0) / 1e9, 6) for row in _rows(connection, _OFFSETS)}
        worst = max(offsets, key=lambda node: abs(offsets[node]))
        summary = f"node {worst} is {1000 * abs(offsets[worst]):.1f} ms off"
        problems = [summary] if abs(offsets[worst]) > MAX_CLOCK_OFFSET else []
        return judge(problems, f"{summary} at worst", {"offset_s": offsets})


class TheLicenceLasts(CockroachDBCheck):
    """The licence lasts.

    Without a key a cluster of several nodes runs for seven days, and then takes five transactions at a time:
    https://www.cockroachlabs.com/docs/stable/licensing-faqs
    """

    def ask(self, connection: Connection, context: CheckContext) -> CheckResult:
        """Read the days that are left to the key, or to the cluster without one."""
        if not _version(connection).startswith("CockroachDB"):
            return skipped(f"another licence: {_version(connection)}")
        if connection.scalar(text("SHOW CLUSTER SETTING enterprise.license")):
            left = [float(row.seconds) for row in _rows(connection, _EXPIRY) if row.seconds is not None]
            if not left:
                return warned("a key, and this version does not report for how long it is valid")
            days = int(max(left) // 86400)
            status = Status.FAIL if days <= 0 else Status.WARN if days < KEY_WARNING_DAYS else Status.PASS
            return CheckResult(status, f"a key that is valid for {days} days", {"days": days})
        internals(connection)
        since = connection.scalar(text('SELECT min("timestamp") FROM system.eventlog'))
        age = datetime.now(UTC) - since.replace(tzinfo=since.tzinfo or UTC) if since else GRACE
        evidence = {"age_days": age.days, "grace_left_days": (GRACE - age).days}
        if age >= GRACE:
            return failed(f"no key, and {age.days} days old: five transactions at a time", evidence)
        return warned(f"no key: {(GRACE - age).days} of the {GRACE.days} days without one are left", evidence)


_STORES = """
    SELECT node_id, range_count,
           metrics->>'ranges.underreplicated' AS under, metrics->>'ranges.unavailable' AS unavailable
    FROM {}.kv_store_status ORDER BY node_id
"""

_OFFSETS = "SELECT node_id, metrics->>'clock-offset.meannanos' AS nanos FROM {}.kv_node_status ORDER BY 1"

# The name of the metric depends on the version.
_EXPIRY = """
    SELECT coalesce(
        metrics->>'seconds.until.enterprise.license.expiry', metrics->>'seconds.until.license.expiry') AS seconds
    FROM {}.kv_node_status
"""


def _rows(connection: Connection, query: str) -> list[Row[Any]]:
    """Return the rows of a query in which `{}` stands for the schema of the internals."""
    return list(connection.execute(text(query.format(internals(connection)))))


def _version(connection: Connection) -> str:
    """Return the name and version that a server reports, without the date and the compiler of its build."""
    return software(connection).partition(" (")[0]
