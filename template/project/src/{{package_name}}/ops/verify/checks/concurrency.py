"""Checks that clients which write on all nodes at once neither collide nor lose anything."""

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from ....db import Key, PinnedSession, keys
from ....db.retry import sqlstate_of
from ..check import Check, CheckContext, CheckResult, failed, judge, passed, warned
from ..scratch import Entry, Load, add_entries


class KeysNeverCollide(Check):
    """Keys never collide.

    Give every node a number of its own, then run `migrate`.
    """

    timeout = 20.0
    WRITERS_PER_NODE = 2
    TRANSACTIONS_PER_NODE = 20
    ROWS = 20

    def run(self, context: CheckContext) -> CheckResult:
        """Insert on all nodes at once, then look for every key on every node that should have it."""
        database = context.scratch.database
        made: list[tuple[Key, str]] = []
        refused: list[str] = []
        problems: list[str] = []

        def write(node: str) -> None:
            try:
                made.extend([(key, node) for key in database.using(node=node).run(add_entries, node, self.ROWS)])
            except IntegrityError:
                # The other row with that key arrived first.
                refused.append(node)

        with context.topology() as topology:
            receivers = {node: topology.receivers(node) for node in topology.writers()}
            for node in receivers:
                wrong = keys.misconfigured_sequences(topology.connections[node], topology.node_number(node))
                problems += [f"{node}: {sequence} does not hand out the numbers of its node" for sequence in wrong]
        if problems:
            return failed("; ".join(problems))
        with ThreadPoolExecutor(self.WRITERS_PER_NODE * len(receivers)) as writers:
            list(writers.map(write, [*receivers] * self.TRANSACTIONS_PER_NODE))
        times = Counter(key for key, _ in made)
        twice = {key for key, count in times.items() if count > 1}
        if twice or refused:
            where = ", ".join(sorted({*refused, *(node for key, node in made if key in twice)}))
            return failed(f"{len(twice)} of {len(times)} keys were handed out twice, {len(refused)} refused: {where}")
        for node, found in context.read_everywhere(select(Entry.id)).items():
            written = {key for key, origin in made if node in receivers[origin]}
            if missing := len(written.difference(found)):
                problems.append(f"{missing} of {len(written)} acknowledged rows are not on {node}")
        return judge(problems, f"{len(made)} keys made on {', '.join(receivers)}: all different, no row missing", {})


class LedgerStaysBalanced(Check):
    """The ledger stays balanced.

    Money was made or lost: look for conflicts between nodes, and for transactions that were not retried.
    """

    timeout = 30.0
    ACCOUNTS = ("ada", "barbara", "edsger", "grace")
    WRITERS_PER_NODE = 3
    TRANSFERS_PER_NODE = 45

    def run(self, context: CheckContext) -> CheckResult:
        """Transfer on all nodes at once while the total is sampled, compare the nodes, and detect a deliberate loss."""
        database = context.scratch.database
        attempts: list[str] = []
        samples: list[tuple[str, int]] = []

        def transfer(session: PinnedSession, rng: random.Random) -> None:
            attempts.append(session.node)
            source, target = rng.sample(self.ACCOUNTS, 2)
            # The amount depends on the balance that was read: the race that SERIALIZABLE does not let pass.
            amount = 1 + abs(int(session.scalar(_TOTAL.where(Entry.owner == source)) or 0)) % 10
            session.add_all([Entry(owner=source, amount=-amount), Entry(owner=target, amount=amount)])

        def write(node: str, number: int) -> None:
            rng = random.Random(context.seed + number)  # noqa: S311
            database.using(node=node, isolation_level="SERIALIZABLE").run(transfer, rng)

        def sample(_: str) -> None:
            for node, reader in readers.items():
                try:
                    samples.append((node, reader.scalar(_TOTAL) or 0))
                except DBAPIError as error:
                    # A serializable transaction that only reads can lose a race too.
                    if sqlstate_of(error) != "40001":
                        raise
            # The servers are for the writers.
            time.sleep(0.005)

        with context.topology() as topology:
            receivers = {node: topology.receivers(node) for node in topology.writers()}
        transfers = [*receivers] * self.TRANSFERS_PER_NODE
        with context.on_scratch() as reading, ThreadPoolExecutor(self.WRITERS_PER_NODE * len(receivers)) as writers:
            readers = reading.connections
            with Load([sample]) as sampling:
                list(writers.map(write, transfers, range(len(transfers))))
        entries = context.read_everywhere(_AMOUNTS)
        for node in receivers:
            database.using(node=node).run(_lose_money)
        blind = [node for node, amounts in context.read_everywhere(_AMOUNTS).items() if not sum(amounts)]
        counts = {node: len(amounts) for node, amounts in entries.items()}
        totals = {node: sum(amounts) for node, amounts in entries.items()}
        expected = {node: 2 * sum(node in receivers[origin] for origin in transfers) for node in entries}
        wrong = [f"{total} on {node}" for node, total in [*samples, *totals.items()] if total] + sampling.failed
        done, retries = len(transfers), len(attempts) - len(transfers)
        evidence = {"committed": done, "retries": retries, "totals": totals, "entries": counts, "samples": len(samples)}
        if wrong:
            return failed(f"the total was not zero, or could not be read: {', '.join(wrong[:5])}", evidence)
        if counts != expected:
            return failed(f"{done} transfers were acknowledged, but the nodes have {counts} entries", evidence)
        if blind:
            return failed(f"a deliberate loss was missed on {', '.join(blind)}: this check proves nothing", evidence)
        if not retries:
            return warned(f"{done} transfers, total zero, but none was contended", evidence)
        return passed(f"{done} transfers, {retries} retried, total zero in {len(samples)} samples", evidence)


_TOTAL = select(func.coalesce(func.sum(Entry.amount), 0))
_AMOUNTS = select(Entry.amount).where(Entry.amount != 0)


def _lose_money(session: PinnedSession) -> None:
    session.add(Entry(owner="ada", amount=-1))
