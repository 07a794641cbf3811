"""Checks of two-phase commits: none is left over, and none is half done."""

import time
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

from sqlalchemy import insert, select

from ....databases import DATABASES, DECISION_LOG
from ....db import PinnedSession, twophase
from ....db.databases import Databases
from ..check import Check, CheckContext, CheckResult, failed, judge, passed, skipped
from ..scratch import Entry, Load
from .playground import playground, prefix_of

PAIR = ("ledger", "orders")
"""Databases between which the checks transfer money."""

OLD = timedelta(minutes=1)
"""Age at which a two-phase commit that is still in flight is reported. Arbitrary."""


class NothingIsInDoubt(Check):
    """No two-phase commit is left unfinished.

    Run `twophase recover`, and run it regularly: prepared transactions keep their locks until then.
    """

    requires = ("EveryDatabaseIsUpToDate",)

    def run(self, context: CheckContext) -> CheckResult:
        """Look for prepared transactions, and for the decisions about them."""
        pooler = context.transaction_pooler
        with Databases(DATABASES, context.urls, decision_log=DECISION_LOG, transaction_pooler=pooler) as databases:
            found = twophase.in_doubt_transactions(databases)
        left = [f"{one.id} {one.state}" for one in found if not one.in_flight]
        slow = [f"{one.id} is in flight for {one.age}" for one in found if one.in_flight and one.age > OLD]
        summary = f"{len(found)} in flight" if found else "nothing is prepared"
        return judge(left, summary, {str(one.id): one.state for one in found}, slow)


class BothDatabasesOrNeither(Check):
    """Rows written to two databases are in both or in neither.

    The decision log and the databases do not agree: `twophase list` shows what is prepared.
    """

    requires = ("ServersCanPrepare",)
    timeout = 30.0
    TRANSFERS = 20
    ABANDONED = 4

    def run(self, context: CheckContext) -> CheckResult:
        """Transfer between two databases, abandon some transfers half-way, miss their money, recover, and count."""
        prefix = prefix_of(context)
        with playground(context) as databases:
            for _ in range(self.TRANSFERS):
                _transfer(databases, prefix)
            before, _ = _balance(databases, prefix)
            for number in range(self.ABANDONED):
                _abandon(databases, prefix, decided=number % 2 == 0)
            missing, _ = _balance(databases, prefix)
            found = twophase.in_doubt_transactions(databases, prefix=prefix)
            done = twophase.recover(databases, prefix=prefix)
            after, entries = _balance(databases, prefix)
            rest = twophase.in_doubt_transactions(databases, prefix=prefix)
        committed = self.TRANSFERS + self.ABANDONED // 2
        totals = {"before": before, "while_abandoned": missing, "recovered": after}
        recovered = [len(done.committed), len(done.rolled_back)]
        evidence = {"totals": totals, "recovered": recovered, "entries": entries}
        if before or after or rest or entries != dict.fromkeys(PAIR, committed):
            return failed(f"the total is {after} over {entries}, {len(rest)} left prepared", evidence)
        if not missing or len(found) != self.ABANDONED:
            return failed("abandoned transfers were not detected: this check proves nothing", evidence)
        outcome = f"{len(done.committed)} abandoned ones finished, {len(done.rolled_back)} rolled back"
        return passed(f"{self.TRANSFERS} committed, {outcome}, total zero", evidence)


class MoneySurvivesALoss(Check):
    """Money neither appears nor vanishes when a server is lost in the middle of two-phase commits.

    `twophase list` shows what is prepared and what was decided.
    """

    requires = ("BothDatabasesOrNeither",)
    timeout = 60.0
    WRITERS = 4
    AFTER = 1.0  # seconds of load after each loss, and after the last recovery
    RECOVERY_TIMEOUT = 10.0  # seconds within which no transaction is in flight any more

    def run(self, context: CheckContext) -> CheckResult:
        """Transfer without a break while each server is killed and comes back; then recover, and count."""
        if context.cluster is None:
            return skipped("only nodes of a local cluster are stopped")
        prefix = prefix_of(context)
        with playground(context) as databases:
            with Load([lambda _: _transfer(databases, prefix)] * self.WRITERS) as load:
                for node in [spec.node for spec in DATABASES if spec.name in PAIR and spec.node]:
                    time.sleep(0.7)
                    load.mark(f"{node} killed")
                    context.cluster.stop_node(node, kill=True)
                    time.sleep(self.AFTER)
                    context.cluster.start_node(node)
                    load.mark(f"{node} started again")
                time.sleep(self.AFTER)
            deadline = time.monotonic() + self.RECOVERY_TIMEOUT
            while (done := twophase.recover(databases, prefix=prefix)).in_flight and time.monotonic() < deadline:
                time.sleep(0.05)
            rest = twophase.in_doubt_transactions(databases, prefix=prefix)
            total, entries = _balance(databases, prefix)
        acknowledged = len(load.acknowledged)
        writes = {"acknowledged": acknowledged, "ambiguous": len(load.doubtful), "failed": load.failed[:5]}
        recovered = [len(done.committed), len(done.rolled_back)]
        evidence = {**writes, "recovered": recovered, "entries": entries, "total": total}
        evidence["timelines"] = {"two-phase commits": load.timeline()}
        if total or rest or len(set(entries.values())) != 1 or entries["ledger"] < acknowledged:
            return failed(f"the total is {total} over {entries} for {acknowledged} acknowledged", evidence)
        summary = f"{acknowledged} acknowledged transfers while two servers were killed, none lost, total zero"
        return passed(summary, evidence)


def _transfer(databases: Databases, prefix: str) -> None:
    """Transfer from one database to the other in a two-phase commit that only this run recovers."""

    def move(ledger: PinnedSession, orders: PinnedSession) -> None:
        ledger.add(Entry(owner=prefix, amount=-1))
        orders.add(Entry(owner=prefix, amount=1))

    replace(databases.two_phase(*PAIR), prefix=prefix).run(move)


def _abandon(databases: Databases, prefix: str, *, decided: bool) -> None:
    """Leave a transfer as a process does that dies after PREPARE: before the decision, or right after it."""
    id = uuid4()
    with databases.session("ledger") as session:
        session.add(Entry(owner=prefix, amount=-1))
        session.flush()
        session.bind.exec_driver_sql(f"PREPARE TRANSACTION '{twophase.name_of(id, 1, prefix)}'")
    if decided:
        with databases.session("orders") as session:
            session.add(Entry(owner=prefix, amount=1))
            session.execute(insert(twophase.decision).values(id=id, outcome="commit"))


def _balance(databases: Databases, prefix: str) -> tuple[int, dict[str, int]]:
    """Return the sum of the transfers over both databases, and the number of entries in each."""
    query = select(Entry.amount).where(Entry.owner == prefix)
    amounts = {name: databases.read(name, lambda session: session.scalars(query).all()) for name in PAIR}
    return sum(map(sum, amounts.values())), {name: len(found) for name, found in amounts.items()}
