"""Checks of two-phase commits: none is left over, and none is half done."""

import time
from collections import Counter
from dataclasses import replace
from uuid import uuid4

from sqlalchemy import func, insert, select

from ....databases import DATABASES, DECISION_LOG
from ....db import Key, PinnedSession, twophase
from ....db.databases import Databases
from ..check import Check, CheckContext, CheckResult, failed, passed, skipped, warned
from ..load import Load
from ..scratch import Account, Entry
from .playground import playground, prefix_of

OLD = 60.0
"""Age in seconds at which a two-phase commit that is still in flight is reported. Arbitrary."""


class NothingIsInDoubt(Check):
    """No two-phase commit is left unfinished.

    Run `twophase recover`, and run it regularly: prepared transactions keep their locks until then.
    """

    requires = ("EveryDatabaseIsUpToDate",)

    def run(self, context: CheckContext) -> CheckResult:
        """Look for prepared transactions, and for the decisions about them."""
        with Databases(DATABASES, context.urls, decision_log=DECISION_LOG) as databases:
            found = twophase.in_doubt_transactions(databases)
        left = [one for one in found if not one.in_flight]
        slow = [one for one in found if one.in_flight and one.age.total_seconds() > OLD]
        evidence = {str(one.id): one.state for one in found}
        if left:
            return failed("; ".join(f"{one.id} {one.state}" for one in left[:3]), evidence)
        if slow:
            return warned(f"{len(slow)} in flight for more than {OLD:.0f} s", evidence)
        return passed(f"{len(found)} in flight" if found else "nothing is prepared", evidence)


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
            accounts = _open_accounts(databases)
            for _ in range(self.TRANSFERS):
                _transfer(databases, accounts, prefix)
            before = _total(databases, accounts)
            for number in range(self.ABANDONED):
                _abandon(databases, accounts, prefix, decided=number % 2 == 0)
            missing = _total(databases, accounts)
            found = twophase.in_doubt_transactions(databases, prefix=prefix)
            done = twophase.recover(databases, prefix=prefix)
            after, entries = _total(databases, accounts), _entries(databases, accounts)
            rest = twophase.in_doubt_transactions(databases, prefix=prefix)
        committed = self.TRANSFERS + self.ABANDONED // 2
        evidence = {
            "committed": committed,
            "total_before": before,
            "total_while_abandoned": missing,
            "total": after,
            "recovered": [len(done.committed), len(done.rolled_back)],
            "entries": entries,
        }
        if before or after or rest or entries != {"ledger": committed, "orders": committed}:
            return failed(f"the total is {after} over {entries}, {len(rest)} left prepared", evidence)
        if not missing or len(found) != self.ABANDONED:
            return failed("abandoned transfers were not detected: this check proves nothing", evidence)
        return passed(
            f"{self.TRANSFERS} committed, {len(done.committed)} of {self.ABANDONED} abandoned ones finished, "
            f"{len(done.rolled_back)} rolled back, total zero",
            evidence,
        )


class MoneySurvivesALoss(Check):
    """Money neither appears nor vanishes when a server is lost in the middle of two-phase commits.

    `twophase list` shows what is prepared and what was decided.
    """

    requires = ("BothDatabasesOrNeither",)
    timeout = 60.0

    WRITERS = 4
    BEFORE = 0.7
    """Seconds of load before each loss."""
    AFTER = 1.0
    """Seconds of load after each loss, and after the last recovery."""
    RECOVERY_TIMEOUT = 10.0
    """Seconds within which no transaction is in flight any more."""

    def run(self, context: CheckContext) -> CheckResult:
        """Transfer without a break while each server is killed and comes back; then recover, and count."""
        if context.cluster is None:
            return skipped("only nodes of a local cluster are stopped")
        prefix = prefix_of(context)
        with playground(context) as databases:
            accounts = _open_accounts(databases)
            with Load([lambda _: _transfer(databases, accounts, prefix)] * self.WRITERS) as load:
                for node in [spec.node for spec in DATABASES if spec.name in accounts and spec.node]:
                    time.sleep(self.BEFORE)
                    context.cluster.stop_node(node, kill=True)
                    time.sleep(self.AFTER)
                    context.cluster.start_node(node)
                time.sleep(self.AFTER)
            deadline = time.monotonic() + self.RECOVERY_TIMEOUT
            while (done := twophase.recover(databases, prefix=prefix)).in_flight and time.monotonic() < deadline:
                time.sleep(0.05)
            rest = twophase.in_doubt_transactions(databases, prefix=prefix)
            total, entries = _total(databases, accounts), _entries(databases, accounts)
        acknowledged = len(load.acknowledged)
        evidence = {
            "acknowledged": acknowledged,
            "ambiguous": len(load.doubtful),
            "failed": dict(Counter(reason.partition(":")[0] for reason in load.failed)),
            "recovered": [len(done.committed), len(done.rolled_back)],
            "entries": entries,
            "total": total,
        }
        if total or rest or len(set(entries.values())) != 1 or entries["ledger"] < acknowledged:
            return failed(f"the total is {total} over {entries} for {acknowledged} acknowledged", evidence)
        return passed(
            f"{acknowledged} acknowledged transfers while two servers were killed, none lost, total zero", evidence
        )


def _transfer(databases: Databases, accounts: dict[str, Key], prefix: str) -> None:
    """Transfer from one database to the other in a two-phase commit that only this run recovers."""

    def move(ledger: PinnedSession, orders: PinnedSession) -> None:
        ledger.add(Entry(account_id=accounts["ledger"], amount=-1))
        orders.add(Entry(account_id=accounts["orders"], amount=1))

    replace(databases.two_phase("ledger", "orders"), prefix=prefix).run(move)


def _open_accounts(databases: Databases) -> dict[str, Key]:
    """Open an account in each of the two databases and return their keys."""

    def open_one(session: PinnedSession) -> Key:
        account = Account(owner="verify")
        session.add(account)
        session.flush()
        return account.id

    return {name: databases.run(name, open_one) for name in ("ledger", "orders")}


def _abandon(databases: Databases, accounts: dict[str, Key], prefix: str, *, decided: bool) -> None:
    """Leave a transfer as a process does that dies after PREPARE: before the decision, or right after it."""
    id = uuid4()
    gid = twophase.name_of(id, 1, prefix)
    with databases.session("ledger") as session:
        session.add(Entry(account_id=accounts["ledger"], amount=-1))
        session.flush()
        session.bind.exec_driver_sql(f"PREPARE TRANSACTION '{gid}'")
    if decided:
        with databases.session("orders") as session:
            session.add(Entry(account_id=accounts["orders"], amount=1))
            session.execute(insert(twophase.decision).values(id=id, outcome="commit"))


def _total(databases: Databases, accounts: dict[str, Key]) -> int:
    """Return the sum over the accounts of both databases."""

    def add_up(session: PinnedSession) -> int:
        mine = Entry.account_id == accounts[session.node]
        return int(session.scalar(select(func.coalesce(func.sum(Entry.amount), 0)).where(mine)) or 0)

    return sum(databases.read(name, add_up) for name in accounts)


def _entries(databases: Databases, accounts: dict[str, Key]) -> dict[str, int]:
    """Return the number of entries in each of the two databases."""

    def count(session: PinnedSession) -> int:
        return session.scalar(select(func.count()).where(Entry.account_id == accounts[session.node])) or 0

    return {name: databases.read(name, count) for name in accounts}
