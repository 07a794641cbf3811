"""The checks that only unrelated databases need."""

import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.exc import DBAPIError

from ... import orders
from ...db import DistributedSQLError, Key, RetryPolicy, PinnedSession, changes, copies, outbox, twophase
from ...db.databases import Databases, FileSettings, NamedDatabase
from ...places import COPIES, LOG, PLACES
from ..cluster import HOME
from ..connections import connect, connect_all
from ..foreign import TARGET, examples, explain, local_cluster, set_up, sources, take_down
from ..histories import histories
from .check import Check, Finding, Status, Subject
from .scratch import STALE, Account, Base, Entry

PREFIX = f"{twophase.PREFIX}_verify_"
"""Of what is prepared here, so that nobody takes it for the application's, nor the other way round."""

OLD = 60.0
"""Seconds after which a two-phase commit that is still in flight deserves a look. Arbitrary."""


def unproven(subject: Subject) -> Mapping[str, str]:
    """The general checks that mean nothing on this cluster, by name, each with the reason: there are none."""
    return {}


class ServersCanPrepare(Check):
    """The servers can prepare transactions.

    Set `max_prepared_transactions` to `max_connections` on the node that is named, and restart it.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)

    def run(self, subject: Subject) -> Finding:
        """Read versions and settings."""
        wrong: list[str] = []
        found: dict[str, dict[str, int]] = {}
        versions: dict[str, str] = {}
        with connect_all(subject.admin_urls) as connections:
            for node, connection in connections.items():
                versions[node] = str(connection.scalar(text("SHOW server_version"))).partition(" ")[0]
                found[node] = {
                    name: int(connection.scalar(text(f"SHOW {name}")) or 0)
                    for name in ("max_prepared_transactions", "max_connections")
                }
                if found[node]["max_prepared_transactions"] < found[node]["max_connections"]:
                    wrong.append(
                        f"{node} can prepare {found[node]['max_prepared_transactions']} transactions, "
                        f"but has {found[node]['max_connections']} connections"
                    )
        evidence = {"versions": versions, "settings": found}
        if wrong:
            return Finding(Status.FAIL, "; ".join(wrong), evidence)
        return Finding(Status.PASS, f"PostgreSQL {', '.join(sorted(set(versions.values())))}", evidence)


class EveryDatabaseIsUpToDate(Check):
    """Every database is at its newest revision, the file included.

    Run `migrate`.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)

    def run(self, subject: Subject) -> Finding:
        """Compare each with its folder in `migrations`."""
        known = histories(subject.admin_urls, owner=subject.owner, folder=_files(subject), project=subject.project)
        reached = {history.place.name: (history.version(), history.head) for history in known}
        evidence = {name: version for name, (version, _) in reached.items()}
        behind = [f"{name} is at {version}, not {head}" for name, (version, head) in reached.items() if version != head]
        if behind:
            return Finding(Status.FAIL, "; ".join(behind), evidence)
        return Finding(
            Status.PASS, ", ".join(f"{name} at {version}" for name, (version, _) in reached.items()), evidence
        )


class NothingIsOutstanding(Check):
    """No two-phase commit is left unfinished.

    Run `twophase recover`, and run it regularly: what is prepared keeps its locks until then.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryDatabaseIsUpToDate",)

    def run(self, subject: Subject) -> Finding:
        """Look for what is prepared and whose decision it follows."""
        with Databases(PLACES, subject.urls, log=LOG) as databases:
            found = twophase.outstanding(databases.servers, databases.server(LOG))
        left = [one for one in found if not one.in_flight]
        slow = [one for one in found if one.in_flight and one.age.total_seconds() > OLD]
        evidence = {str(one.id): one.state for one in found}
        if left:
            return Finding(Status.FAIL, "; ".join(f"{one.id} {one.state}" for one in left[:3]), evidence)
        if slow:
            return Finding(Status.WARN, f"{len(slow)} in flight for more than {OLD:.0f} s", evidence)
        return Finding(Status.PASS, f"{len(found)} in flight" if found else "nothing is prepared", evidence)


class BothDatabasesOrNeither(Check):
    """What is written to two databases is in both or in neither.

    The log of decisions and the databases do not agree: `twophase list` shows what is prepared.
    """

    requires: ClassVar[tuple[str, ...]] = ("ServersCanPrepare",)
    limit: ClassVar[float] = 30.0

    TRANSFERS: ClassVar[int] = 20
    ABANDONED: ClassVar[int] = 4

    def run(self, subject: Subject) -> Finding:
        """Move money between two databases, abandon some of it half-way, see that it is missing, recover, and count."""
        prefix = prefix_of(subject)
        with playground(subject) as databases:
            accounts = _open_accounts(databases)
            for _ in range(self.TRANSFERS):
                _two_phase(databases, prefix).run(_move, accounts=accounts)
            before = _total(databases, accounts)
            for number in range(self.ABANDONED):
                _abandon(databases, accounts, prefix, decided=number % 2 == 0)
            servers, log = databases.servers, databases.server(LOG)
            missing = _total(databases, accounts)
            found = twophase.outstanding(servers, log, prefix=prefix)
            done = twophase.recover(servers, log, prefix=prefix)
            after, entries = _total(databases, accounts), _entries(databases, accounts)
            rest = twophase.outstanding(servers, log, prefix=prefix)
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
            return Finding(Status.FAIL, f"the total is {after} over {entries}, {len(rest)} left prepared", evidence)
        if not missing or len(found) != self.ABANDONED:
            return Finding(Status.FAIL, "what was abandoned was not missed: this check proves nothing", evidence)
        return Finding(
            Status.PASS,
            f"{self.TRANSFERS} committed, {len(done.committed)} of {self.ABANDONED} abandoned ones finished, "
            f"{len(done.rolled_back)} rolled back, total zero",
            evidence,
        )


class MessagesHaveTheirEffectOnce(Check):
    """A message has its effect once, however often it is delivered.

    Look into the outbox of the source with `messages list`.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)
    limit: ClassVar[float] = 20.0

    MESSAGES: ClassVar[int] = 20

    def run(self, subject: Subject) -> Finding:
        """Send messages to a file, deliver them, and deliver them again as if nobody had noticed the first time."""
        with playground(subject) as databases:
            for _ in range(self.MESSAGES):
                databases.run("orders", outbox.put, target="catalog", topic="verify", payload={"amount": 1})
            sent = databases.read("orders", lambda session: session.execute(select(outbox.outgoing)).mappings().all())
            receivers = {("catalog", "verify"): _receive}
            first = outbox.deliver(databases, "orders", receivers)
            databases.run(
                "orders", lambda session: session.execute(insert(outbox.outgoing), [dict(row) for row in sent])
            )
            again = outbox.deliver(databases, "orders", receivers)
            effects = databases.read("catalog", lambda session: session.scalar(select(func.sum(Entry.amount)))) or 0
        evidence = {"sent": self.MESSAGES, "delivered": first.delivered, "known": again.known, "effects": effects}
        if effects != self.MESSAGES or again.known != self.MESSAGES:
            return Finding(Status.FAIL, f"{self.MESSAGES} messages had {effects} effects", evidence)
        return Finding(Status.PASS, f"{self.MESSAGES} messages delivered twice, {effects} effects", evidence)


class TheCopyMissesNothing(Check):
    """The copy for reports misses nothing that commits late.

    `reports status` shows how far it is; `reports copy --afresh` makes it anew.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)
    limit: ClassVar[float] = 20.0

    def run(self, subject: Subject) -> Finding:
        """Copy while a transaction that began first is still open; then let it commit, and copy again."""
        with playground(subject) as databases:
            database = databases.server("orders")
            with database.session() as slow:
                _place(slow)
                for _ in range(5):
                    database.run(_place)
                early = copies.copy(databases, COPIES[0]).rows
                naive = database.read(_latest)
                seen = database.read(_up_to, naive)
            missed = database.read(_up_to, naive) - seen
            late = copies.copy(databases, COPIES[0]).rows
            again = copies.copy(databases, COPIES[0]).rows
            there = databases.read(
                TARGET, lambda session: session.scalar(select(func.count()).select_from(COPIES[0].into))
            )
        evidence = {
            "copied_before_it_ended": early,
            "after": late,
            "again": again,
            "there": there,
            "naive_missed": missed,
        }
        if there != 6 or again:
            return Finding(Status.FAIL, f"{there} of 6 rows were copied, and {again} twice", evidence)
        if not missed:
            return Finding(
                Status.FAIL, "a watermark by time missed nothing either: this check proves nothing", evidence
            )
        return Finding(Status.PASS, f"6 of 6 rows; a watermark by time would have missed {missed}", evidence)


class ForeignQueriesAreSentAlong(Check):
    """Conditions and joins over foreign tables are sent along.

    The plan is in the evidence. A function that the other server may not evaluate, or statistics that are missing, keep it here.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryDatabaseIsUpToDate",)
    limit: ClassVar[float] = 20.0

    def run(self, subject: Subject) -> Finding:
        """Set foreign tables up under other names, ask for plans, and for one that must be found wanting."""
        source = sources()[0].name
        prefix = "_verify_"
        home = subject.project / HOME
        try:
            set_up(
                subject.admin_urls,
                owner=subject.owner,
                cluster=subject.cluster or local_cluster(subject.urls, home),
                prefix=prefix,
            )
            node = next(place.node for place in PLACES if place.name == TARGET) or ""
            with connect(subject.urls[node], node=TARGET) as connection:
                plans = {name: explain(connection, query) for name, query in examples(f"{prefix}{source}").items()}
                control = explain(connection, f'SELECT * FROM "{prefix}{source}".entry WHERE amount > random()')  # noqa: S608
        finally:
            with suppress(DBAPIError, DistributedSQLError):
                take_down(subject.admin_urls, prefix=prefix)
        evidence = {name: {"remote": plan.remote, "local": plan.local} for name, plan in plans.items()}
        wrong = [f"{name}: {'; '.join(plan.local)}" for name, plan in plans.items() if not plan.is_pushed_down]
        if wrong:
            return Finding(Status.FAIL, ", ".join(wrong), evidence)
        if control.is_pushed_down:
            return Finding(
                Status.FAIL, "a condition that cannot be sent along was not found: this check proves nothing", evidence
            )
        return Finding(Status.PASS, f"{' and '.join(plans)} of {source} answered by its server", evidence)


class MoneySurvivesALoss(Check):
    """Money neither appears nor vanishes when a server is lost in the middle of two-phase commits.

    `twophase list` shows what is prepared and what was decided.
    """

    requires: ClassVar[tuple[str, ...]] = ("BothDatabasesOrNeither",)
    limit: ClassVar[float] = 60.0

    WRITERS: ClassVar[int] = 4
    BEFORE: ClassVar[float] = 0.7
    AFTER: ClassVar[float] = 1.0
    """Seconds of load before the loss, and after each step."""

    def run(self, subject: Subject) -> Finding:
        """Move money without a break while a server is killed and comes back, once each; then recover, and count."""
        if subject.cluster is None:
            return Finding(Status.SKIP, "only a local cluster can be hurt")
        stop = threading.Event()
        acknowledged: list[int] = []
        failed: list[str] = []
        prefix = prefix_of(subject)
        with playground(subject) as databases:
            accounts = _open_accounts(databases)

            def write() -> None:
                while not stop.is_set():
                    try:
                        _two_phase(databases, prefix).run(_move, accounts=accounts)
                        acknowledged.append(1)
                    except (DistributedSQLError, DBAPIError) as error:
                        failed.append(type(error).__name__)
                        time.sleep(0.01)

            threads = [threading.Thread(target=write, daemon=True) for _ in range(self.WRITERS)]
            for thread in threads:
                thread.start()
            try:
                for node in (place.node for place in PLACES if place.name in ("ledger", "orders")):
                    time.sleep(self.BEFORE)
                    subject.cluster.stop_node(node or "", kill=True)
                    time.sleep(self.AFTER)
                    subject.cluster.start_node(node or "")
                time.sleep(self.AFTER)
            finally:
                stop.set()
                for thread in threads:
                    thread.join(20)
            servers, log = databases.servers, databases.server(LOG)
            deadline = time.monotonic() + 10
            while (done := twophase.recover(servers, log, prefix=prefix)).in_flight and time.monotonic() < deadline:
                time.sleep(0.05)
            rest = twophase.outstanding(servers, log, prefix=prefix)
            total, entries = _total(databases, accounts), _entries(databases, accounts)
        evidence = {
            "acknowledged": len(acknowledged),
            "failed": {name: failed.count(name) for name in sorted(set(failed))},
            "recovered": [len(done.committed), len(done.rolled_back)],
            "entries": entries,
            "total": total,
        }
        if total or rest or len(set(entries.values())) != 1 or entries["ledger"] < len(acknowledged):
            return Finding(
                Status.FAIL, f"the total is {total} over {entries} for {len(acknowledged)} acknowledged", evidence
            )
        return Finding(
            Status.PASS,
            f"{len(acknowledged)} acknowledged transfers while two servers were killed, none lost, total zero",
            evidence,
        )


@contextmanager
def playground(subject: Subject) -> Iterator[Databases]:
    """The databases of the application as they would be if they were empty: in the scratch schema, and in a file of its own."""
    schema = subject.scratch.schema
    owned = [twophase.metadata, outbox.metadata, changes.metadata, copies.metadata]
    for place in PLACES:
        if place.node is not None:
            with subject.scratch.admin(place.node) as connection:
                for metadata in [*owned, *([place.models.metadata] if place.name in ("orders", TARGET) else [])]:
                    metadata.create_all(connection)
                quote = connection.dialect.identifier_preparer.quote
                for kind in ("TABLES", "SEQUENCES"):
                    connection.exec_driver_sql(f"GRANT ALL ON ALL {kind} IN SCHEMA {schema} TO {quote(subject.owner)}")
    with (
        tempfile.TemporaryDirectory() as folder,
        Databases(
            PLACES,
            subject.urls,
            folder=Path(folder),
            log=LOG,
            application_name="verify",
            retry=RetryPolicy(attempts=50, deadline=10.0),
            execution_options={"schema_translate_map": {None: schema}},
        ) as databases,
    ):
        with databases.file("catalog").engine_for().begin() as connection:
            outbox.metadata.create_all(connection)
            connection.exec_driver_sql("CREATE TABLE entry (amount int)")
        for database in databases.servers.values():
            _roll_back(database, PREFIX, older_than=STALE)
        try:
            yield databases
        finally:
            with suppress(DBAPIError, DistributedSQLError):
                for database in databases.servers.values():
                    _roll_back(database, prefix_of(subject))
                    # Other checks use the same tables, and count what is in them.
                    database.run(_clear)


def prefix_of(subject: Subject) -> str:
    """Of what this run prepares: what is left of one that was killed is for a later run to roll back."""
    return f"{twophase.PREFIX}{subject.scratch.schema}"


def _roll_back(database: NamedDatabase, prefix: str, *, older_than: float = 0.0) -> None:
    """Roll back what is prepared under names with this prefix, if it is older than some seconds: it keeps its locks for ever."""
    left = text(
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND owner = current_user "
        "AND starts_with(gid, :prefix) AND prepared < clock_timestamp() - make_interval(secs => :age)"
    )
    with database.engine_for().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for gid in connection.scalars(left, {"prefix": prefix, "age": older_than}).all():
            with suppress(DBAPIError):
                connection.exec_driver_sql(f"ROLLBACK PREPARED '{gid}'")


def _clear(session: PinnedSession) -> None:
    for table in reversed(Base.metadata.sorted_tables):
        session.execute(delete(table))


def _files(subject: Subject) -> Path:
    """The folder of the SQLite files: beside the local cluster that is looked at, or where the settings say."""
    if subject.cluster is not None:
        return subject.cluster.home
    return FileSettings().sqlite_folder


def _two_phase(databases: Databases, prefix: str) -> twophase.TwoPhase:
    plan = databases.two_phase("ledger", "orders")
    return twophase.TwoPhase(
        plan.databases, log=plan.log, log_name=plan.log_name, finished=plan.finished, prefix=prefix
    )


def _open_accounts(databases: Databases) -> dict[str, Key]:
    def open_one(session: PinnedSession) -> Key:
        account = Account(owner="verify")
        session.add(account)
        session.flush()
        return account.id

    return {name: databases.run(name, open_one) for name in ("ledger", "orders")}


def _move(ledger: PinnedSession, orders: PinnedSession, *, accounts: dict[str, Key]) -> None:
    ledger.add(Entry(account_id=accounts["ledger"], amount=-1))
    orders.add(Entry(account_id=accounts["orders"], amount=1))


def _abandon(databases: Databases, accounts: dict[str, Key], prefix: str, *, decided: bool) -> None:
    """Leave a transfer as a process does that dies after it has prepared: before the decision, or right after it."""
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
    def add_up(session: PinnedSession) -> int:
        mine = Entry.account_id == accounts[session.node]
        return int(session.scalar(select(func.coalesce(func.sum(Entry.amount), 0)).where(mine)) or 0)

    return sum(databases.read(name, add_up) for name in accounts)


def _entries(databases: Databases, accounts: dict[str, Key]) -> dict[str, int]:
    def count(session: PinnedSession) -> int:
        return session.scalar(select(func.count()).where(Entry.account_id == accounts[session.node])) or 0

    return {name: databases.read(name, count) for name in accounts}


def _receive(session: PinnedSession, message: outbox.Message) -> None:
    session.execute(text("INSERT INTO entry (amount) VALUES (:amount)"), message.payload)


def _place(session: PinnedSession) -> None:
    session.add(orders.Order(account_id=uuid4(), sku="verify", quantity=1, amount=1))
    session.flush()


def _latest(session: PinnedSession) -> object:
    return session.scalar(select(func.max(orders.Order.placed_at)))


def _up_to(session: PinnedSession, moment: object) -> int:
    return session.scalar(select(func.count()).select_from(orders.Order).where(orders.Order.placed_at <= moment)) or 0


CHECKS: tuple[type[Check], ...] = (
    ServersCanPrepare,
    EveryDatabaseIsUpToDate,
    NothingIsOutstanding,
    BothDatabasesOrNeither,
    MessagesHaveTheirEffectOnce,
    TheCopyMissesNothing,
    ForeignQueriesAreSentAlong,
)

CHAOS: tuple[type[Check], ...] = (MoneySurvivesALoss,)
