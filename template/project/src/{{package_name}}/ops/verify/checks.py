"""The checks that every cluster must pass, whatever it is made of."""

import itertools
import secrets
import threading
import time
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median
from typing import ClassVar, TypeVar

from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from ...db import AmbiguousCommit, Database, DistributedSQLError, Key, RetryPolicy, PinnedSession, keys
from ..cluster import Cluster
from ..connections import Unreachable, connect, connect_all
from ..migrate import load_config, version_of
from ..schema import differences, read_schema
from ..topology import APART, ROWS_ARE_SHARED, fence, links, node_number, writers
from .check import Check, Finding, Status, Subject
from .scratch import Account, Entry, Marker

T = TypeVar("T")
Result = TypeVar("Result")

BEFORE_LOAD = ("EveryNodeAnswers", "RowsReachEveryNode") if ROWS_ARE_SHARED else ("EveryNodeAnswers",)
"""What must hold before it means anything that rows are lost under load."""


class EveryNodeAnswers(Check):
    """Every node answers.

    Start the node that does not, or correct its URL: `status` shows a local cluster.
    """

    limit: ClassVar[float] = 8.0

    def run(self, subject: Subject) -> Finding:
        """Connect to each node and ask for one row."""
        times: dict[str, float] = {}

        def ask(node: str) -> str | None:
            for url in (subject.urls[node], subject.admin_urls[node]):
                started = time.monotonic()
                try:
                    with connect(url, node=node, statement_timeout=3) as connection:
                        connection.execute(text("SELECT 1"))
                except (Unreachable, DBAPIError) as error:
                    return str(error).partition("\n")[0]
                times[node] = max(times.get(node, 0.0), round(1000 * (time.monotonic() - started), 1))
            return None

        failures = [failure for failure in _in_parallel(ask, subject.urls) if failure]
        if failures:
            return Finding(Status.FAIL, "; ".join(failures), {"connect_ms": times})
        return Finding(Status.PASS, f"{len(times)} nodes, slowest {max(times.values()):.0f} ms", {"connect_ms": times})


class SchemaIsTheSame(Check):
    """The schema is the same everywhere.

    Run `migrate`; what somebody made or dropped by hand on one node has to be mended there by hand.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)

    def run(self, subject: Subject) -> Finding:
        """Compare catalogues and revisions."""
        from alembic.script import ScriptDirectory

        head = ScriptDirectory.from_config(load_config(subject.project)).get_current_head()
        urls = {node: url for node, url in subject.admin_urls.items() if node not in APART}
        with connect_all(urls) as connections:
            schemas = {node: read_schema(connection) for node, connection in connections.items()}
            versions = {node: version_of(connection) for node, connection in connections.items()}
        found = differences(schemas)
        behind = [
            f"{node} is at {version or 'no revision'}, not {head}"
            for node, version in versions.items()
            if version != head
        ]
        evidence = {
            "head": head,
            "revisions": versions,
            "objects": {node: len(schema) for node, schema in schemas.items()},
        }
        if found or behind:
            return Finding(Status.FAIL, "; ".join([*behind, *found][:4]), evidence | {"differences": found})
        return Finding(Status.PASS, f"revision {head}, {len(next(iter(schemas.values())))} objects alike", evidence)


class RowsReachEveryNode(Check):
    """Rows reach every node.

    `status` and the log of the node that should receive show why a link does not replicate.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)
    limit: ClassVar[float] = 20.0

    SAMPLES: ClassVar[int] = 20
    TIMEOUT: ClassVar[float] = 5.0

    def run(self, subject: Subject) -> Finding:
        """Write markers on each node in turn and wait for them on the others."""
        database = subject.scratch.database
        lags: dict[str, list[float]] = {}
        lost: set[tuple[str, str]] = set()
        with connect_all(subject.admin_urls) as connections:
            views = in_scratch(subject, connections)
            for origin in writers(connections):
                for _ in range(self.SAMPLES):
                    key = database.using(node=origin).run(mark, origin)
                    committed = time.monotonic()
                    waiting = {peer for peer in connections if peer != origin and (origin, peer) not in lost}
                    while waiting:
                        for peer in sorted(waiting):
                            if views[peer].scalar(select(Marker.id).where(Marker.id == key)) is not None:
                                lags.setdefault(f"{origin}→{peer}", []).append(time.monotonic() - committed)
                                waiting.discard(peer)
                        if time.monotonic() - committed > self.TIMEOUT:
                            lost |= {(origin, peer) for peer in waiting}
                            break
                        time.sleep(0.0005)
            states = {(link.origin, link.receiver): link.state for link in links(connections)} if lost else {}
        evidence = {
            "lag_ms": {
                pair: {"p50": round(1000 * median(values), 2), "max": round(1000 * max(values), 2)}
                for pair, values in lags.items()
            }
        }
        if lost:
            missing = ", ".join(
                f"{origin}→{peer} ({states.get((origin, peer), 'unknown')})" for origin, peer in sorted(lost)
            )
            return Finding(Status.FAIL, f"not replicated within {self.TIMEOUT:.0f} s: {missing}", evidence)
        every = [lag for values in lags.values() for lag in values]
        return Finding(
            Status.PASS,
            f"{len(lags)} directions, lag p50 {1000 * median(every):.1f} ms, max {1000 * max(every):.1f} ms",
            evidence,
        )


class KeysNeverCollide(Check):
    """Keys never collide.

    Give every node a number of its own, then run `migrate`.
    """

    requires: ClassVar[tuple[str, ...]] = BEFORE_LOAD
    limit: ClassVar[float] = 20.0

    WRITERS_PER_NODE: ClassVar[int] = 2
    UNITS: ClassVar[int] = 10
    ROWS: ClassVar[int] = 20

    def run(self, subject: Subject) -> Finding:
        """Insert on all nodes at once, then compare what was handed out with what every node has."""
        with connect_all(subject.admin_urls) as connections:
            nodes = writers(connections)
            misplaced = [
                f"{node}: {sequence} does not hand out the numbers of its node"
                for node in nodes
                for sequence in keys.misconfigured_sequences(connections[node], node_number(connections[node]))
            ]
            if misplaced:
                return Finding(Status.FAIL, "; ".join(misplaced))
            database = subject.scratch.database

            def write(node: str) -> list[tuple[str, Key | None]]:
                made: list[tuple[str, Key | None]] = []
                for _ in range(self.UNITS):
                    try:
                        made += [(node, key) for key in database.using(node=node).run(_mark_many, node, self.ROWS)]
                    except IntegrityError:
                        # The other row with that key arrived first.
                        made.append((node, None))
                return made

            makers: dict[Key | None, list[str]] = defaultdict(list)
            for made in _in_parallel(write, nodes * self.WRITERS_PER_NODE):
                for node, key in made:
                    makers[key].append(node)
            refused = makers.pop(None, [])
            twice = [nodes for nodes in makers.values() if len(nodes) > 1]
            if twice or refused:
                where = ", ".join(sorted({node for nodes in [*twice, refused] for node in nodes}))
                return Finding(
                    Status.FAIL,
                    f"{len(twice)} of {len(makers)} keys were handed out twice and {len(refused)} inserts refused, on {where}",
                )
            fence(connections)
            for node, view in in_scratch(subject, connections).items():
                expected = {key for key, origins in makers.items() if ROWS_ARE_SHARED or node in origins}
                missing = len(expected - set(view.scalars(select(Marker.id))))
                if missing:
                    return Finding(Status.FAIL, f"{missing} of {len(expected)} acknowledged rows are not on {node}")
        count = self.WRITERS_PER_NODE * len(nodes)
        where = "everywhere" if ROWS_ARE_SHARED else "where they were written"
        return Finding(Status.PASS, f"{len(makers)} keys from {count} writers, all different, all {where}")


class LedgerStaysBalanced(Check):
    """The ledger stays balanced.

    Money was made or lost: look for conflicts between nodes, and for transactions that were not retried.
    """

    requires: ClassVar[tuple[str, ...]] = BEFORE_LOAD
    limit: ClassVar[float] = 30.0

    ACCOUNTS: ClassVar[int] = 4
    WRITERS_PER_NODE: ClassVar[int] = 3
    TRANSFERS: ClassVar[int] = 15

    def run(self, subject: Subject) -> Finding:
        """Transfer on all nodes at once while the total is watched, then compare the nodes, then show that a loss is seen."""
        database = subject.scratch.database
        with connect_all(subject.admin_urls) as connections:
            views = in_scratch(subject, connections)
            accounts = _open_everywhere(database, writers(connections), self.ACCOUNTS)
            fence(connections)
            attempts: list[str] = []

            def write(writer: tuple[int, str]) -> int:
                rng = subject.random("ledger", writer)

                def transfer(unit: PinnedSession) -> None:
                    attempts.append(unit.node)
                    source, target = rng.sample(accounts[unit.node], 2)
                    # The balance that is read decides what is written: the race that SERIALIZABLE refuses to lose silently.
                    balance = unit.scalar(
                        select(func.coalesce(func.sum(Entry.amount), 0)).where(Entry.account_id == source)
                    )
                    amount = 1 + abs(int(balance or 0)) % 10
                    unit.add_all([Entry(account_id=source, amount=-amount), Entry(account_id=target, amount=amount)])

                options = database.using(node=writer[1], isolation_level="SERIALIZABLE")
                for _ in range(self.TRANSFERS):
                    options.run(transfer)
                return self.TRANSFERS

            crowd = [(number, node) for number in range(self.WRITERS_PER_NODE) for node in writers(connections)]
            stop = threading.Event()
            with ThreadPoolExecutor(1) as observer:
                watched = observer.submit(_watch_totals, subject, stop)
                try:
                    committed = sum(_in_parallel(write, crowd))
                finally:
                    stop.set()
                looks, wrong = watched.result()
            fence(connections)
            totals = {node: view.scalar(_TOTAL) for node, view in views.items()}
            counts = {node: view.scalar(select(func.count()).select_from(Entry)) or 0 for node, view in views.items()}
            for node in writers(connections)[: 1 if ROWS_ARE_SHARED else None]:
                database.using(node=node).run(_lose_money, accounts[node][0])
            fence(connections)
            blind = [node for node, view in views.items() if view.scalar(_TOTAL) == 0]
        retries = len(attempts) - committed
        evidence = {"committed": committed, "retries": retries, "looks": looks, "totals": totals, "entries": counts}
        if wrong or any(totals.values()):
            return Finding(Status.FAIL, f"the total was not zero: {wrong or totals}", evidence)
        if (set(counts.values()) if ROWS_ARE_SHARED else {sum(counts.values())}) != {2 * committed}:
            return Finding(
                Status.FAIL, f"{committed} transfers were acknowledged, but the nodes have {counts} entries", evidence
            )
        if blind:
            return Finding(
                Status.FAIL,
                f"a loss made on purpose was not seen on {', '.join(blind)}: this check proves nothing",
                evidence,
            )
        if not retries:
            return Finding(Status.WARN, f"{committed} transfers, total zero, but none was contended", evidence)
        return Finding(Status.PASS, f"{committed} transfers, {retries} retried, total zero in {looks} looks", evidence)


class SurvivesALoss(Check):
    """What was acknowledged survives the loss of a node, shown under load. A subclass says which node goes, and how it comes back."""

    requires: ClassVar[tuple[str, ...]] = BEFORE_LOAD
    limit: ClassVar[float] = 60.0

    WRITERS: ClassVar[int] = 4
    """Half of them leave a doubt to whoever asked; the other half settle it by looking whether the row is there."""
    DEADLINE: ClassVar[float] = 10.0
    """Seconds for which a write is tried."""
    BEFORE: ClassVar[float] = 0.5
    AFTER: ClassVar[float] = 1.0
    """Seconds of load before the loss, and after each step."""

    @abstractmethod
    def take_away(self, cluster: Cluster) -> str:
        """Take a node away without a word; how that is to be told."""

    @abstractmethod
    def give_back(self, cluster: Cluster) -> None:
        """Make the cluster whole again."""

    def run(self, subject: Subject) -> Finding:
        """Write without a break while the node goes and comes back; then look for every row on every node."""
        if subject.cluster is None:
            return Finding(Status.SKIP, "only a local cluster can be hurt")
        database = subject.scratch.database
        options = database.using(retry=RetryPolicy(deadline=self.DEADLINE))
        finished = threading.Event()
        doubts_before = database.counters.snapshot().get("ambiguous", 0)

        def write(writer: int) -> tuple[list[tuple[float, str]], list[str], list[str]]:
            work = replace(options, idempotent=writer % 2 == 1)
            acknowledged: list[tuple[float, str]] = []
            doubtful: list[str] = []
            failed: list[str] = []
            while not finished.is_set():
                name = f"{writer}-{len(acknowledged)}-{len(doubtful)}-{secrets.token_hex(4)}"
                try:
                    work.run(mark_once if work.idempotent else mark, name)
                except AmbiguousCommit:
                    doubtful.append(name)
                except (DistributedSQLError, DBAPIError) as error:
                    failed.append(f"{type(error).__name__}: {error}".partition("\n")[0])
                else:
                    acknowledged.append((time.monotonic(), name))
                time.sleep(0.001)
            return acknowledged, doubtful, failed

        with ThreadPoolExecutor(self.WRITERS) as threads:
            work = [threads.submit(write, number) for number in range(self.WRITERS)]
            try:
                time.sleep(self.BEFORE)
                lost_at = time.monotonic()
                what = self.take_away(subject.cluster)
                time.sleep(self.AFTER)
                self.give_back(subject.cluster)
                time.sleep(self.AFTER)
            finally:
                finished.set()
            results = [future.result() for future in work]
        acknowledged = sorted(pair for result in results for pair in result[0])
        doubtful = {name for result in results for name in result[1]}
        failed = [reason for result in results for reason in result[2]]
        moments = [lost_at, *(moment for moment, _ in acknowledged if moment > lost_at)]
        gap = max((later - earlier for earlier, later in itertools.pairwise(moments)), default=float("inf"))
        names = {name for _, name in acknowledged}
        with connect_all(subject.admin_urls) as connections:
            fence(connections)
            found = {
                node: Counter(view.scalars(select(Marker.origin)))
                for node, view in in_scratch(subject, connections).items()
            }
        missing = {node: len(names - there.keys()) for node, there in found.items() if names - there.keys()}
        twice = {node: sum(there[name] > 1 for name in names | doubtful) for node, there in found.items()}
        happened = len(doubtful.intersection(*found.values()))
        settled = database.counters.snapshot().get("ambiguous", 0) - doubts_before - len(doubtful)
        evidence = {
            "acknowledged": len(names),
            "ambiguous": len(doubtful),
            "ambiguous_that_happened": happened,
            "settled": settled,
            "failed": failed[:5],
            "gap_s": round(gap, 3),
        }
        if missing:
            lost = ", ".join(f"{count} on {node}" for node, count in missing.items())
            return Finding(Status.FAIL, f"{what}; of {len(names)} acknowledged writes are missing: {lost}", evidence)
        if any(twice.values()):
            return Finding(Status.FAIL, f"{what}; writes that were made twice: {twice}", evidence)
        if failed:
            return Finding(Status.FAIL, f"{what}; {len(failed)} writes failed: {failed[0]}", evidence)
        return Finding(
            Status.PASS,
            f"{what}; {len(names)} acknowledged writes, none lost, none twice, gap {gap:.2f} s, "
            f"{len(doubtful)} ambiguous, {settled} settled",
            evidence,
        )


class NothingIsLeftBehind(Check):
    """Nothing is left behind.

    Drop the schemas whose names start with `_verify_`; a later run does so when they are an hour old.
    """

    limit: ClassVar[float] = 25.0

    def run(self, subject: Subject) -> Finding:
        """Drop what the other checks wrote to."""
        subject.scratch.drop()
        return Finding(Status.PASS, "what the checks wrote is gone again")


_TOTAL = select(func.coalesce(func.sum(Entry.amount), 0))


def in_scratch(subject: Subject, connections: dict[str, Connection]) -> dict[str, Connection]:
    """The connections, as they see the scratch tables."""
    options = {"schema_translate_map": {None: subject.scratch.schema}}
    return {node: connection.execution_options(**options) for node, connection in connections.items()}


def _in_parallel(work: Callable[[T], Result], items: Iterable[T]) -> list[Result]:
    """A thread for each item, so that all nodes are busy at once."""
    every = list(items)
    with ThreadPoolExecutor(len(every)) as threads:
        return list(threads.map(work, every))


def mark(unit: PinnedSession, origin: str) -> Key:
    """Write one row to be looked for."""
    marker = Marker(origin=origin)
    unit.add(marker)
    unit.flush()
    return marker.id


def mark_once(unit: PinnedSession, origin: str) -> Key:
    """As `mark`, unless it is there already."""
    made = unit.scalar(select(Marker.id).where(Marker.origin == origin))
    return mark(unit, origin) if made is None else made


def _mark_many(unit: PinnedSession, origin: str, count: int) -> list[Key]:
    markers = [Marker(origin=origin) for _ in range(count)]
    unit.add_all(markers)
    unit.flush()
    return [marker.id for marker in markers]


def _open_everywhere(database: Database, nodes: Sequence[str], count: int) -> dict[str, Sequence[Key]]:
    """Accounts for each node to work with: the same ones for all, if what is written on one comes to be on the others."""
    if ROWS_ARE_SHARED:
        return dict.fromkeys(nodes, database.run(_open_accounts, count))
    return {node: database.using(node=node).run(_open_accounts, count) for node in nodes}


def _open_accounts(unit: PinnedSession, count: int) -> Sequence[Key]:
    accounts = [Account(owner=f"owner {number}") for number in range(count)]
    unit.add_all(accounts)
    unit.flush()
    return [account.id for account in accounts]


def _total(session: Session) -> int:
    return session.scalar(_TOTAL) or 0


def _lose_money(unit: PinnedSession, account: Key) -> None:
    unit.add(Entry(account_id=account, amount=-1))


def _watch_totals(subject: Subject, stop: threading.Event) -> tuple[int, list[str]]:
    """Look at the total on each node in turn until told to stop: how often, and what was wrong."""
    database = subject.scratch.database
    looks, wrong = 0, []
    while True:
        for node in subject.urls:
            # A look is retried too: where every transaction is serializable, one that only reads can lose a race.
            total = database.using(node=node).read(_total)
            looks += 1
            if total:
                wrong.append(f"{total} on {node}")
        if stop.wait(0.01):
            return looks, wrong[:5]


GENERAL: tuple[type[Check], ...] = (
    SchemaIsTheSame,
    *((RowsReachEveryNode,) if ROWS_ARE_SHARED else ()),
    KeysNeverCollide,
    LedgerStaysBalanced,
)
