"""Check that rows reach the other nodes, and how fast."""

import time
from collections import defaultdict
from statistics import median

from sqlalchemy import select

from ..check import Check, CheckContext, CheckResult, failed, passed
from ..scratch import Account, open_accounts


class RowsReachEveryNode(Check):
    """Rows reach every node.

    `status` and the log of the node that should receive show why a link does not replicate.
    """

    required_by = ("KeysNeverCollide", "LedgerStaysBalanced")
    timeout = 20.0

    ROWS = 20
    LAG_TIMEOUT = 5.0
    """Seconds within which a row has to arrive."""

    def run(self, context: CheckContext) -> CheckResult:
        """Write rows on each node in turn and wait for each row on the others."""
        database = context.scratch.database
        lags: dict[tuple[str, str], list[float]] = defaultdict(list)
        lost: set[tuple[str, str]] = set()
        with context.topology() as topology:
            views = context.scratch.views(topology.connections)
            for origin in topology.writers():
                pairs = [(origin, node) for node in topology.receivers(origin) if node != origin]
                for _ in range(self.ROWS):
                    [key] = database.using(node=origin).run(open_accounts, origin)
                    committed = time.monotonic()
                    waiting = set(pairs) - lost
                    while waiting and time.monotonic() < committed + self.LAG_TIMEOUT:
                        for pair in sorted(waiting):
                            if views[pair[1]].scalar(select(Account.id).where(Account.id == key)) is not None:
                                lags[pair].append(1000 * (time.monotonic() - committed))
                                waiting.discard(pair)
                        time.sleep(0.0005)
                    lost |= waiting
            states = {(link.origin, link.receiver): link.state for link in topology.links()} if lost else {}
        evidence = {
            "lag_ms": {
                "→".join(pair): {"p50": round(median(values), 2), "max": round(max(values), 2)}
                for pair, values in lags.items()
            }
        }
        if lost:
            missing = ", ".join(f"{'→'.join(pair)} ({states.get(pair, 'unknown')})" for pair in sorted(lost))
            return failed(f"not replicated within {self.LAG_TIMEOUT:.0f} s: {missing}", evidence)
        every = [lag for values in lags.values() for lag in values]
        lag = f"lag p50 {median(every):.1f} ms, max {max(every):.1f} ms"
        return passed(f"{len(lags)} directions, {lag}", evidence)
