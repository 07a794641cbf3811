"""Check that every node answers."""

import time
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ...connections import Unreachable, connect
from ..check import Check, CheckContext, CheckResult, judge


class EveryNodeAnswers(Check):
    """Every node answers.

    Start the node that does not, or correct its URL: `status` shows a local cluster.
    """

    requires = ()
    timeout = 8.0

    def run(self, context: CheckContext) -> CheckResult:
        """Connect to each node as each role, all nodes at once, and run a query."""
        times: dict[str, float] = {}

        def ask(node: str) -> str | None:
            for url in (context.urls[node], context.admin_urls[node]):
                started = time.monotonic()
                try:
                    with connect(url, node=node, statement_timeout=3) as connection:
                        connection.execute(text("SELECT 1"))
                except (Unreachable, DBAPIError) as error:
                    return str(error).partition("\n")[0]
                times[node] = max(times.get(node, 0.0), round(1000 * (time.monotonic() - started), 1))
            return None

        with ThreadPoolExecutor(len(context.urls)) as threads:
            problems = [problem for problem in threads.map(ask, context.urls) if problem]
        slowest = max(times.values(), default=0.0)
        return judge(problems, f"{len(times)} nodes, slowest {slowest:.0f} ms", {"connect_ms": times})
