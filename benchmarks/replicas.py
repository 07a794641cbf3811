"""Reads on readers that lag: how many miss an earlier write, and the cost of preventing that."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import create_engine, event, select
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.ground import ROUND_TRIP, Ground, Project, administration
from benchmarks.rows import Goal, Measured, Row, Skip, at_most
from benchmarks.timing import alternate, interleave, percentile, ratio, seconds_of, short, spread

ONE_CONFIRMS, ALL_CONFIRM = "ANY 1", "ANY 2"
"""Number of readers that a commit waits for: as in the project, and so that no reader can miss it."""


def aurora(ground: Ground) -> Project:
    """Return the project for the rows about readers."""
    return ground.project(backend="aurora", keys="identity")


def writer_of(project: Project) -> str:
    """Return the present writer."""
    return str(project.module("ops.failover").find_writer(project.cluster))


@dataclass(frozen=True)
class Ledger:
    """One small write, and the read that looks for it."""

    bank: Any
    account: Any

    def write(self, session: Session) -> int:
        """Open an account; return its key."""
        return int(self.bank.open_account(session, owner="Ada").id)

    def look(self, session: Any, key: int) -> tuple[str, bool]:
        """Return the node that answers, and True if it has the account."""
        return session.node, self.has(session, key)

    def has(self, session: Session, key: int) -> bool:
        """Tell whether the account is there."""
        return session.scalar(select(self.account.id).where(self.account.id == key)) is not None


def ledger_of(project: Project) -> Ledger:
    """Return the write and the read of all rows."""
    return Ledger(project.module("bank"), project.module("models").Account)


def stale_reads(ground: Ground) -> Measured:
    """Count reads that miss the write before: through the router, and without it on writer and readers."""
    project = aurora(ground)
    ledger, count = ledger_of(project), ground.effort(2000, 500)
    missed = behind = 0
    served: Counter[str] = Counter()
    with project.database(project.cluster.urls()) as db, by_hand(project) as (writer, readers):
        for number in range(count):
            key = db.run(ledger.write)
            node, found = db.read(ledger.look, key)
            served[node] += 1
            missed += not found
            with writer.begin() as session:
                key = ledger.write(session)
            with readers[number % len(readers)]() as session:
                behind += not ledger.has(session, key)
    if not behind:
        raise Skip(f"no reader was behind in {count} tries, so there was nothing to wait for")
    shares = ", ".join(f"{node} {times}" for node, times in sorted(served.items()))
    return Measured(missed, f"{missed} of {count}", f"{behind} of {count}", f"served by {shares}")


@contextmanager
def by_hand(project: Project) -> Iterator[tuple[sessionmaker[Session], list[sessionmaker[Session]]]]:
    """Yield plain session factories for the writer and for each reader."""
    urls = dict(project.cluster.urls())
    first = urls.pop(writer_of(project))
    with ExitStack() as stack:
        engines = [
            create_engine(first),
            *(create_engine(url, isolation_level="AUTOCOMMIT") for url in urls.values()),
        ]
        for engine in engines:
            stack.callback(engine.dispose)
        writer, *readers = (sessionmaker(engine) for engine in engines)
        yield writer, readers


def token_wait(ground: Ground) -> Measured:
    """Measure the extra time of a read that follows a write and has its token."""
    project = aurora(ground)
    ledger, use_token = ledger_of(project), project.module("db.replicas").use_token
    seconds: dict[bool, list[float]] = {True: [], False: []}
    by_writer = 0
    with project.database(project.cluster.urls()) as db:
        writer = writer_of(project)
        for number in range(ground.effort(4000, 400)):
            key = db.run(ledger.write)
            with_token = bool(number % 2)
            if not with_token:
                use_token(None)
            start = time.perf_counter()
            node, _ = db.read(ledger.look, key)
            seconds[with_token].append(time.perf_counter() - start)
            by_writer += node == writer
    plain = statistics.median(seconds[False])
    extra = [taken - plain for taken in seconds[True]]
    middle, late = (percentile(extra, percent) * 1000 for percent in (50, 99))
    return Measured(
        middle,
        short(statistics.median(seconds[True])),
        short(plain),
        f"p99 {late:.3g} ms; the writer served {by_writer} of {len(extra)}",
    )


def against_remote_apply(ground: Ground) -> Measured:
    """Compare a write and the read that looks for it with one whose COMMIT waits for all readers."""
    project = aurora(ground)
    ledger = ledger_of(project)
    pairs = ground.effort(150, 30)
    writes: dict[str, list[float]] = {ONE_CONFIRMS: [], ALL_CONFIRM: []}
    urls = project.cluster.urls()
    node = writer_of(project)
    with (
        administration(project.cluster.admin_urls()[node]) as execute,
        project.database(urls) as ours,
        project.database(urls) as theirs,
    ):

        @event.listens_for(theirs.engine(node), "connect")
        def apply(connection: Any, _: object) -> None:
            connection.execute("SET synchronous_commit = remote_apply")
            connection.commit()

        def pair(db: Any, quorum: str) -> float:
            start = time.perf_counter()
            key = db.run(ledger.write)
            writes[quorum].append(time.perf_counter() - start)
            if not db.read(ledger.look, key)[1]:
                raise AssertionError(f"a read after a commit by {quorum} missed it")
            return time.perf_counter() - start

        def played(db: Any, quorum: str) -> Callable[[], float]:
            def play() -> float:
                set_quorum(execute, quorum, urls)
                for _ in range(pairs // 5):
                    pair(db, quorum)
                return statistics.median(pair(db, quorum) for _ in range(pairs))

            return play

        def applied() -> float:
            with tokens_left_out(project):
                return played(theirs, ALL_CONFIRM)()

        try:
            rounds = interleave({"ours": played(ours, ONE_CONFIRMS), "theirs": applied}, ground.effort(11, 3))
        finally:
            set_quorum(execute, ONE_CONFIRMS, urls)
    found = ratio(rounds["ours"], rounds["theirs"])
    mine, other = (statistics.median(rounds[name]) for name in ("ours", "theirs"))
    alone = " against ".join(short(statistics.median(taken)) for taken in writes.values())
    return Measured(found.value, short(mine), short(other), f"{found}; the write by itself {alone}")


def set_quorum(execute: Callable[[str], list[Any]], quorum: str, nodes: Iterable[str]) -> None:
    """Let commits wait for a quorum of `nodes`."""
    execute(f"ALTER SYSTEM SET synchronous_standby_names = '{quorum} ({', '.join(nodes)})'")
    execute("SELECT pg_reload_conf()")
    # No view shows when every process has read the setting.
    time.sleep(0.1)


def cost_of_the_token(ground: Ground) -> Measured:
    """Measure a small write with the query for the WAL position, and without it."""
    project = aurora(ground)
    ledger, node = ledger_of(project), writer_of(project)
    url = project.cluster.urls()[node]

    def measure(nodes: dict[str, Any], rounds: int, calls: int) -> list[tuple[float, float]]:
        with project.database(nodes) as db:

            def without() -> None:
                with tokens_left_out(project):
                    db.run(ledger.write)

            found = []
            for _ in range(rounds + 1):
                # Server processes differ by some percent among themselves: each round has new ones.
                db.dispose()
                seconds_of(without)
                found.append(alternate(lambda: db.run(ledger.write), without, calls))
        return found[1:]

    near = measure({node: url}, ground.effort(15, 3), 200)
    far = measure({node: project.far(url)}, ground.effort(5, 2), 20)
    value, at_a_distance = (spread([mine / other for mine, other in rounds]) for rounds in (near, far))
    mine, other = (statistics.median(column) for column in zip(*near, strict=True))
    return Measured(
        value.value,
        short(mine),
        short(other),
        f"{value}; {at_a_distance.value:.3g} with a round trip of {ROUND_TRIP * 1000:g} ms",
    )


@contextmanager
def tokens_left_out(project: Project) -> Iterator[None]:
    """Let commits in this block take no token."""
    backend = project.module("db.backend")
    original = backend.remember_write
    backend.remember_write = lambda _: None
    project.module("db.replicas").use_token(None)
    try:
        yield
    finally:
        backend.remember_write = original


ROWS = [
    Row(name="replicas: reads after a write that miss it", measure=stale_reads, goal=Goal("=", 0), unit=""),
    Row(
        name="replicas: extra time of a read on a reader after a write",
        measure=token_wait,
        goal=at_most(1),
        unit="ms",
    ),
    Row(
        name="replicas: a write and its read against remote_apply",
        measure=against_remote_apply,
        goal=at_most(1),
        why_missed="readers that are idle and near replay a commit sooner than an application can query the "
        "position: once after COMMIT, 0.07 ms, and once on the reader, 0.25. The saving does not show here: "
        "with remote_apply every write waits for every reader, for one that is down without end",
    ),
    Row(
        name="replicas: a write against one that takes no token",
        measure=cost_of_the_token,
        # The fourth round trip, after BEGIN, INSERT and COMMIT, which waits for a reader, too.
        goal=at_most(1.3),
    ),
]
