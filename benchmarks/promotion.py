"""An application of several threads whose writer is killed, and a reader that is promoted."""

import functools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session

from benchmarks.failover import PAUSE, THREADS
from benchmarks.ground import Ground
from benchmarks.replicas import aurora
from benchmarks.rows import Goal, Measured, Row, at_most

AFTERWARDS = 1.0
"""Seconds that the application continues after all readers follow the new writer."""


@dataclass
class Takeover:
    """Measurements from before the writer was killed until some time after the promotion."""

    commits: list[tuple[float, str]] = field(default_factory=list)
    """Time and node of each commit."""
    acknowledged: set[str] = field(default_factory=set)
    ambiguous: set[str] = field(default_factory=set)
    errors: Counter[str] = field(default_factory=Counter)
    former: str = ""
    writer: str = ""
    promoted_at: float = 0.0
    """Time at which `pg_promote` returned."""
    found: set[str] = field(default_factory=set)

    @property
    def gap(self) -> float:
        """Longest time without a commit after the promotion."""
        ends = sorted(ended for ended, _ in self.commits if ended > self.promoted_at)
        return max(later - earlier for earlier, later in zip([self.promoted_at, *ends], ends, strict=False))

    @property
    def whole_gap(self) -> float:
        """Time from the last commit of the former writer to the first of the new one."""
        last = max(ended for ended, node in self.commits if node == self.former)
        return min(ended for ended, node in self.commits if node == self.writer) - last

    @property
    def lost(self) -> set[str]:
        """Writes that were acknowledged and are missing."""
        return self.acknowledged - self.found


@functools.cache
def takeovers(ground: Ground) -> list[Takeover]:
    """Kill the writer under load, promote a reader, bring the former writer back; many times."""
    project = aurora(ground)
    with project.database(project.cluster.urls()) as db:
        return [takeover(project, db) for _ in range(ground.effort(10, 5))]


def takeover(project: Any, db: Any) -> Takeover:
    """Kill the writer under load once; return the measurements."""
    bank, account = project.module("bank"), project.module("models").Account
    ambiguous_commit, failover = project.module("db").AmbiguousCommit, project.module("ops.failover")
    seen = Takeover()
    lock = threading.Lock()
    finished = threading.Event()
    mark = uuid.uuid4().hex

    def work(session: Any, owner: str) -> str:
        bank.open_account(session, owner=owner)
        return str(session.node)

    def client(number: int) -> None:
        for count in range(1_000_000):
            if finished.is_set():
                return
            owner = f"{mark} {number} {count}"
            try:
                node = db.run(work, owner)
            except ambiguous_commit:
                seen.ambiguous.add(owner)
            except Exception as error:
                with lock:
                    seen.errors[type(error).__name__] += 1
            else:
                seen.commits.append((time.perf_counter(), node))
                seen.acknowledged.add(owner)
            time.sleep(PAUSE)

    def owners(session: Session) -> set[str]:
        return set(session.scalars(select(account.owner).where(account.owner.startswith(mark))))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.5)
        with noting_the_promotion(seen):
            done = failover.fail_over(project.cluster, kill=True)
        seen.former, seen.writer = done.former, done.writer
        time.sleep(AFTERWARDS)
    finally:
        finished.set()
        for thread in threads:
            thread.join()
    failover.bring_back(project.cluster, seen.former)
    seen.found = db.run(owners)
    return seen


@contextmanager
def noting_the_promotion(seen: Takeover) -> Iterator[None]:
    """Note the time at which a reader has been promoted."""

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "pg_promote" in statement:
            seen.promoted_at = time.perf_counter()

    event.listen(Engine, "after_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(Engine, "after_cursor_execute", note)


def gap(ground: Ground) -> Measured:
    """Measure the longest time without a commit after a promotion, in the worst case."""
    found = takeovers(ground)
    gaps = [seen.gap * 1000 for seen in found]
    whole = [seen.whole_gap * 1000 for seen in found]
    each = ", ".join(f"{value:.0f}" for value in gaps)
    return Measured(
        max(gaps),
        f"{max(gaps):.0f} ms",
        note=f"each: {each} ms; from the last commit before the kill to the first after it {min(whole):.0f} "
        f"to {max(whole):.0f} ms",
    )


def lost(ground: Ground) -> Measured:
    """Count writes that were acknowledged and are missing on the new writer."""
    found = takeovers(ground)
    count = sum(len(seen.lost) for seen in found)
    acknowledged = sum(len(seen.acknowledged) for seen in found)
    ambiguous = sum(len(seen.ambiguous) for seen in found)
    happened = sum(len(seen.ambiguous & seen.found) for seen in found)
    errors = sum((seen.errors for seen in found), Counter[str]())
    what = ", ".join(f"{count} {name}" for name, count in errors.items())
    return Measured(
        count,
        str(count),
        note=f"{acknowledged:,} acknowledged in {len(found)} kills; {ambiguous} ambiguous, of which "
        f"{happened} were committed; {what or 'no other error'}",
    )


ROWS = [
    Row(
        name="replicas: write gap after the promotion, the writer killed",
        measure=gap,
        goal=at_most(500),
        unit="ms",
    ),
    Row(
        name="replicas: acknowledged writes lost, the writer killed",
        measure=lost,
        goal=Goal("=", 0),
        unit="",
    ),
]
