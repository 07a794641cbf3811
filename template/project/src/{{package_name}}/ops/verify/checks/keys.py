"""Check that no key is handed out twice."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from ....db import Key, keys
from ..check import Check, CheckContext, CheckResult, failed, passed
from ..scratch import Account, open_accounts


class KeysNeverCollide(Check):
    """Keys never collide.

    Give every node a number of its own, then run `migrate`.
    """

    timeout = 20.0

    WRITERS_PER_NODE = 2
    TRANSACTIONS = 10
    ROWS = 20

    def run(self, context: CheckContext) -> CheckResult:
        """Insert on all nodes at once, then look for every key on every node that should have it."""
        database = context.scratch.database
        origins: dict[Key, list[str]] = defaultdict(list)
        refused: list[str] = []

        def write(node: str) -> list[Key]:
            made: list[Key] = []
            for _ in range(self.TRANSACTIONS):
                try:
                    made += database.using(node=node).run(open_accounts, node, self.ROWS)
                except IntegrityError:
                    # The other row with that key arrived first.
                    refused.append(node)
            return made

        with context.topology() as topology:
            nodes = topology.writers()
            problems = [
                f"{node}: {sequence} does not hand out the numbers of its node"
                for node in nodes
                for sequence in keys.misconfigured_sequences(topology.connections[node], topology.node_number(node))
            ]
            if problems:
                return failed("; ".join(problems))
            writers = nodes * self.WRITERS_PER_NODE
            with ThreadPoolExecutor(len(writers)) as threads:
                for node, made in zip(writers, threads.map(write, writers), strict=True):
                    for key in made:
                        origins[key].append(node)
            twice = [found for found in origins.values() if len(found) > 1]
            if twice or refused:
                where = ", ".join(sorted({node for found in [*twice, refused] for node in found}))
                repeated = f"{len(twice)} of {len(origins)} keys were handed out twice"
                return failed(f"{repeated} and {len(refused)} inserts refused, on {where}")
            topology.wait_for_catchup()
            for node, view in context.scratch.views(topology.connections).items():
                written = {key for key, (origin,) in origins.items() if node in topology.receivers(origin)}
                missing = len(written - set(view.scalars(select(Account.id))))
                if missing:
                    return failed(f"{missing} of {len(written)} acknowledged rows are not on {node}")
        return passed(f"{len(origins)} keys from {len(writers)} writers, all different, no row missing")
