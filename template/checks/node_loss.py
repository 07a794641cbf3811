"""Check that acknowledged writes survive the loss of a node under load."""

import itertools
import time
from collections import Counter

from sqlalchemy import select

from ....db import RetryPolicy
from ...cluster import Cluster
from ..check import Check, CheckContext, CheckResult, failed, passed, skipped
from ..load import Load
from ..scratch import Account, open_accounts, open_once


class NodeLossCheck(Check):
    """Acknowledged writes survive the loss of a node, shown under load. A subclass says what to do if they do not."""

    requires = ("EveryNodeAnswers", "RowsReachEveryNode")
    timeout = 60.0

    DEADLINE = 10.0
    """Seconds for which a write is retried."""
    BEFORE = 0.5
    """Seconds of load before the loss."""
    AFTER = 1.0
    """Seconds of load after the loss, and after the recovery."""

    def lose_node(self, cluster: Cluster) -> str:
        """Kill a node and return a description for the report: the first one, which has all the work."""
        node = cluster.status()[0].name
        cluster.stop_node(node, kill=True)
        return f"{node} killed and started again"

    def recover(self, cluster: Cluster) -> None:
        """Bring the node back."""
        cluster.start_node(cluster.status()[0].name)

    def run(self, context: CheckContext) -> CheckResult:
        """Write without a break while a node is lost and comes back; then look for every row on every node."""
        if context.cluster is None:
            return skipped("only nodes of a local cluster are stopped")
        database = context.scratch.database.using(retry=RetryPolicy(deadline=self.DEADLINE))
        ambiguous_before = database.counters.snapshot().get("ambiguous", 0)
        once = database.using(idempotent=True)
        # Half of the clients report an ambiguous commit, half settle it by looking for the row.
        with Load([lambda name: database.run(open_accounts, name), lambda name: once.run(open_once, name)] * 2) as load:
            time.sleep(self.BEFORE)
            lost_at = time.monotonic()
            event = self.lose_node(context.cluster)
            time.sleep(self.AFTER)
            self.recover(context.cluster)
            time.sleep(self.AFTER)
        moments = [lost_at, *sorted(moment for moment in load.acknowledged.values() if moment > lost_at)]
        gap = max((later - earlier for earlier, later in itertools.pairwise(moments)), default=float("inf"))
        with context.topology() as topology:
            topology.wait_for_catchup()
            views = context.scratch.views(topology.connections)
            found = {node: Counter(view.scalars(select(Account.owner))) for node, view in views.items()}
        names, doubtful = load.acknowledged.keys(), set(load.doubtful)
        missing = {node: len(names - there.keys()) for node, there in found.items() if names - there.keys()}
        twice = {node: sum(there[name] > 1 for name in names | doubtful) for node, there in found.items()}
        settled = database.counters.snapshot().get("ambiguous", 0) - ambiguous_before - len(doubtful)
        evidence = {
            "acknowledged": len(names),
            "ambiguous": len(doubtful),
            "ambiguous_that_happened": len(doubtful.intersection(*found.values())),
            "settled": settled,
            "failed": load.failed[:5],
            "gap_s": round(gap, 3),
        }
        if missing:
            lost = ", ".join(f"{count} on {node}" for node, count in missing.items())
            return failed(f"{event}; of {len(names)} acknowledged writes are missing: {lost}", evidence)
        if any(twice.values()):
            return failed(f"{event}; writes that were made twice: {twice}", evidence)
        if load.failed:
            return failed(f"{event}; {len(load.failed)} writes failed: {load.failed[0]}", evidence)
        return passed(
            f"{event}; {len(names)} acknowledged writes, none lost, none twice, gap {gap:.2f} s, "
            f"{len(doubtful)} ambiguous, {settled} settled",
            evidence,
        )
