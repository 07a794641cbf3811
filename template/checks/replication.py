"""Checks that rows reach the other nodes: how fast, and that none is lost when a node is lost under load."""

import itertools
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from sqlalchemy import bindparam, select

from ....db import RetryPolicy
from ...cluster import Cluster
from ..check import Check, CheckContext, CheckResult, failed, judge, passed, skipped
from ..scratch import Entry, Load, add_entries, add_once

LAG_LIMITS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Limits between the bars of a histogram, in milliseconds."""


class RowsReachEveryNode(Check):
    """Rows reach every node.

    `status` and the log of the node that should receive show why a link does not replicate.
    """

    required_by = ("KeysNeverCollide", "LedgerStaysBalanced")
    timeout = 20.0
    ROWS = 20
    LAG_TIMEOUT = 5.0  # seconds within which a row has to arrive
    LAG_LIMIT = 1.0  # seconds; a link on which two rows take longer lags

    def run(self, context: CheckContext) -> CheckResult:
        """Write rows on each node in turn and wait for each row on the others."""
        lags: dict[str, list[float]] = defaultdict(list)
        lost: set[str] = set()
        late: set[str] = set()
        with context.on_scratch() as topology:
            for origin in topology.writers():
                others = [node for node in topology.receivers(origin) if node != origin]
                ends = {f"{origin}→{node}": topology.connections[node] for node in others}
                for _ in range(self.ROWS):
                    [key] = context.scratch.database.using(node=origin).run(add_entries, origin)
                    committed = time.monotonic()
                    waiting = ends.keys() - lost
                    while waiting and time.monotonic() < committed + self.LAG_TIMEOUT:
                        for link in sorted(waiting):
                            if ends[link].scalar(_HAS_ENTRY, {"key": key}) is not None:
                                lags[link].append(time.monotonic() - committed)
                                waiting.discard(link)
                        time.sleep(0.0005)
                    lost |= waiting
                    late |= {link for link in ends if sum(lag > self.LAG_LIMIT for lag in lags[link]) > 1}
                    if late or lost >= ends.keys():
                        break
        with context.topology() as topology:
            states = {f"{link.origin}→{link.receiver}": link.state for link in topology.links()} if lost else {}
        evidence = {
            "lag_ms": {link: milliseconds(values) for link, values in lags.items()},
            "lag_limits_ms": LAG_LIMITS,
            "lag_counts": {link: histogram(values) for link, values in lags.items()},
        }
        if lost:
            missing = ", ".join(f"{link} ({states.get(link, 'unknown')})" for link in sorted(lost))
            return failed(f"not replicated within {self.LAG_TIMEOUT:.0f} s: {missing}", evidence)
        if late:
            found = ", ".join(f"{link} lags by {max(lags[link]):.1f} s" for link in sorted(late))
            return failed(f"{found}; the limit is {self.LAG_LIMIT:.0f} s", evidence)
        lag = milliseconds([lag for values in lags.values() for lag in values])
        return passed(f"{len(lags)} directions, lag p50 {lag['p50']:.1f} ms, max {lag['max']:.1f} ms", evidence)


def histogram(seconds: Iterable[float]) -> list[int]:
    """Return the number of durations below the first of `LAG_LIMITS`, between each two, and from the last on."""
    counts = [0] * (len(LAG_LIMITS) + 1)
    for one in seconds:
        counts[bisect_right(LAG_LIMITS, 1000 * one)] += 1
    return counts


_HAS_ENTRY = select(Entry.id).where(Entry.id == bindparam("key"))


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the maximum of durations."""
    return {"p50": round(1000 * median(seconds), 2), "max": round(1000 * max(seconds), 2)}


class NodeLossCheck(Check):
    """Acknowledged writes survive the loss of a node, shown under load. A subclass says what to do if they do not."""

    requires = ("EveryNodeAnswers", "RowsReachEveryNode")
    timeout = 60.0
    DEADLINE = 10.0  # seconds for which a write is retried
    AFTER = 1.0  # seconds of load after the loss, and after the recovery

    @contextmanager
    def loss(self, cluster: Cluster) -> Iterator[str]:
        """Kill the first node, which has all the work, yield a description for the report, and start it again."""
        node = cluster.status()[0].name
        cluster.stop_node(node, kill=True)
        yield f"{node} killed and started again"
        cluster.start_node(node)

    def run(self, context: CheckContext) -> CheckResult:
        """Write without a break while a node is lost and comes back; then look for every row on every node."""
        if context.cluster is None:
            return skipped("only nodes of a local cluster are stopped")
        database = context.scratch.database.using(retry=RetryPolicy(deadline=self.DEADLINE))
        once = database.using(idempotent=True)
        ambiguous_before = database.counters.snapshot().get("ambiguous", 0)
        # Half of the clients report an ambiguous commit, half settle it by looking for the row.
        with Load([lambda name: database.run(add_entries, name), lambda name: once.run(add_once, name)] * 2) as load:
            time.sleep(0.5)
            lost_at = time.monotonic()
            with self.loss(context.cluster) as event:
                load.mark(event, lost_at)
                time.sleep(self.AFTER)
            load.mark("every node is back")
            time.sleep(self.AFTER)
        moments = [lost_at, *sorted(moment for moment in load.acknowledged.values() if moment > lost_at)]
        gap = max((later - earlier for earlier, later in itertools.pairwise(moments)), default=float("inf"))
        names, doubtful = load.acknowledged.keys(), set(load.doubtful)
        settled = database.counters.snapshot().get("ambiguous", 0) - ambiguous_before - len(doubtful)
        found = {node: Counter(owners) for node, owners in context.read_everywhere(select(Entry.owner)).items()}
        problems = [f"{len(load.failed)} writes failed: {load.failed[0]}"] if load.failed else []
        for node, times in found.items():
            if missing := len(names - times.keys()):
                problems.append(f"{missing} of {len(names)} acknowledged writes are missing on {node}")
            if twice := sum(times[name] > 1 for name in names | doubtful):
                problems.append(f"{twice} writes were made twice on {node}")
        counts = {"acknowledged": len(names), "ambiguous": len(doubtful), "settled": settled}
        happened = len(doubtful.intersection(*found.values()))
        evidence = {**counts, "ambiguous_that_happened": happened, "failed": load.failed[:5], "gap_s": round(gap, 3)}
        evidence["timelines"] = {"all nodes": load.timeline()}
        writes = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        summary = f"{event}; {writes}, none lost, none twice, gap {gap:.2f} s"
        return judge(problems and [event, *problems], summary, evidence)
