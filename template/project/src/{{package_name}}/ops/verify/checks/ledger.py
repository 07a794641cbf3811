"""Check that concurrent transfers neither make nor lose money."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ....db import Key, PinnedSession
from ..check import Check, CheckContext, CheckResult, failed, passed, warned
from ..load import Load
from ..scratch import Entry, open_accounts


class LedgerStaysBalanced(Check):
    """The ledger stays balanced.

    Money was made or lost: look for conflicts between nodes, and for transactions that were not retried.
    """

    timeout = 30.0

    ACCOUNTS = 4
    WRITERS_PER_NODE = 3
    TRANSFERS = 15

    def run(self, context: CheckContext) -> CheckResult:
        """Transfer on all nodes at once while the total is sampled, compare the nodes, and detect a deliberate loss."""
        database = context.scratch.database
        attempts: list[str] = []
        samples: list[str] = []
        # Nodes that have the same rows share accounts, which the first of them opens.
        accounts: dict[str, Sequence[Key]] = {}
        first: list[str] = []

        def write(writer: tuple[int, str]) -> None:
            rng = context.random("ledger", writer)

            def transfer(session: PinnedSession) -> None:
                attempts.append(session.node)
                source, target = rng.sample(accounts[session.node], 2)
                # The amount depends on the balance that was read: the race that SERIALIZABLE does not let pass.
                balance = session.scalar(_TOTAL.where(Entry.account_id == source)) or 0
                amount = 1 + abs(int(balance)) % 10
                session.add_all([Entry(account_id=source, amount=-amount), Entry(account_id=target, amount=amount)])

            for _ in range(self.TRANSFERS):
                database.using(node=writer[1], isolation_level="SERIALIZABLE").run(transfer)

        def sample(_: str) -> None:
            for node in context.urls:
                # A serializable transaction that only reads can lose a race too, so it is retried.
                total = database.using(node=node).read(_total)
                samples.append(f"{total} on {node}" if total else "")

        with context.topology() as topology:
            views = context.scratch.views(topology.connections)
            for node in topology.writers():
                if node not in accounts:
                    first.append(node)
                    opened = database.using(node=node).run(open_accounts, node, self.ACCOUNTS)
                    accounts |= dict.fromkeys(topology.receivers(node), opened)
            topology.wait_for_catchup()
            writers = [(number, node) for number in range(self.WRITERS_PER_NODE) for node in topology.writers()]
            with Load([sample]) as sampling, ThreadPoolExecutor(len(writers)) as threads:
                list(threads.map(write, writers))
            wrong = [total for total in samples if total] + sampling.failed
            topology.wait_for_catchup()
            totals = {node: view.scalar(_TOTAL) for node, view in views.items()}
            counts = {node: view.scalar(select(func.count()).select_from(Entry)) for node, view in views.items()}
            received = {node: sum(node in topology.receivers(writer) for _, writer in writers) for node in views}
            for node in first:
                database.using(node=node).run(_lose_money, accounts[node][0])
            topology.wait_for_catchup()
            blind = [node for node, view in views.items() if view.scalar(_TOTAL) == 0]
        committed = self.TRANSFERS * len(writers)
        retries = len(attempts) - committed
        evidence = {"committed": committed, "retries": retries, "totals": totals, "entries": counts}
        evidence["samples"] = len(samples)
        if wrong or any(totals.values()):
            return failed(f"the total was not zero: {wrong[:5] or totals}", evidence)
        if counts != {node: 2 * self.TRANSFERS * count for node, count in received.items()}:
            return failed(f"{committed} transfers were acknowledged, but the nodes have {counts} entries", evidence)
        if blind:
            where = ", ".join(blind)
            return failed(f"a deliberate loss was not detected on {where}: this check proves nothing", evidence)
        if not retries:
            return warned(f"{committed} transfers, total zero, but none was contended", evidence)
        return passed(f"{committed} transfers, {retries} retried, total zero in {len(samples)} samples", evidence)


_TOTAL = select(func.coalesce(func.sum(Entry.amount), 0))


def _lose_money(session: PinnedSession, account: Key) -> None:
    session.add(Entry(account_id=account, amount=-1))


def _total(session: Session) -> int:
    return session.scalar(_TOTAL) or 0
