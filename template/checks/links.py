"""The base class of the check that links replicate."""

import time
from contextlib import suppress

from ...cluster import HOME, ClusterError
from ...cluster.drivers import open_cluster
from ..check import Check, CheckContext, CheckResult, judge


class LinksCheck(Check):
    """Every link that there should be is up. A subclass says what to do about one that is not."""

    RECONNECT_TIMEOUT = 3.0  # seconds within which an interrupted link reconnects; a broken one does not
    RETRY_TIMEOUT = 0.7  # seconds to watch links that have failed before; each retry of a blocked one fails again

    def run(self, context: CheckContext) -> CheckResult:
        """Sample the links until all are up, one is lost, or the time is over."""
        problems: list[str] = []
        with context.topology() as topology:
            topology.check_peers(len(topology.connections))
            errors = topology.apply_errors()
            deadline = time.monotonic() + self.RECONNECT_TIMEOUT
            watched = time.monotonic() + (self.RETRY_TIMEOUT if any(errors.values()) else 0)
            while True:
                links = topology.links()
                now = topology.apply_errors()
                down = [link for link in links if not link.is_up]
                # One error may be a peer that restarts; a second one is the same change failing again.
                blocked = [link for link in links if now.get(link.name, 0) > errors.get(link.name, 0) + 1]
                done = time.monotonic() > watched if not down else any(link.is_lost for link in down)
                if blocked or done or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            for link in blocked:
                log = read_log(context, link.receiver)
                problems.append(f"{link.name} is blocked by a change{topology.explain_blocked(link, log)}")
        problems += [link.explanation for link in down if link not in blocked]
        states = {link.name: link.state for link in links}
        return judge(problems, f"{len(links)} links {' and '.join(sorted(set(states.values())))}", states)


def read_log(context: CheckContext, node: str) -> str:
    """Return the end of the log of a node of the local cluster; empty if the node is none."""
    with suppress(ClusterError):
        cluster = context.cluster or open_cluster(home=context.project / HOME)
        if cluster.urls() == dict(context.urls):
            return cluster.log(node)
    return ""
