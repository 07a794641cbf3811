"""The base class of the check that links replicate."""

import time

from ..check import Check, CheckContext, CheckResult, judge


class LinksCheck(Check):
    """Every link that there should be is up. A subclass says what to do about one that is not."""

    RECONNECT_TIMEOUT = 3.0  # seconds within which an interrupted link reconnects; a broken one does not

    def run(self, context: CheckContext) -> CheckResult:
        """Sample the links until all are up, one is lost, or the time is over."""
        deadline = time.monotonic() + self.RECONNECT_TIMEOUT
        with context.topology() as topology:
            while True:
                links = topology.links()
                down = [link for link in links if not link.is_up]
                if not down or any(link.is_lost for link in down) or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        states = {f"{link.origin}→{link.receiver}": link.state for link in links}
        return judge([*map(str, down)], f"{len(links)} links {' and '.join(sorted(set(states.values())))}", states)
