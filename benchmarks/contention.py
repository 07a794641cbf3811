"""Eight threads that move amounts between ten accounts: commits per second, latencies, attempts per commit.

Used by the rows of `retry.py`, and by `peer_cockroachdb.py` in an environment with another SQLAlchemy.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

THREADS = 8
HOT = tuple(range(1000, 11_000, 1000))
"""Accounts that all threads want, spread over the table so that they do not share an index page."""

Work: TypeAlias = Callable[[Session], None]
RunWork: TypeAlias = Callable[[Work], object]


class Stopped(Exception):
    """A unit of work had not ended at the time limit."""


@dataclass
class Outcome:
    """Outcome of one round."""

    seconds: float = 0.0
    attempts: int = 0
    latencies: list[float] = field(default_factory=list)
    """Duration of each committed unit of work, in seconds."""
    given_up: int = 0
    stopped: int = 0
    """Units of work that had not ended at the time limit."""

    @property
    def committed(self) -> int:
        """Number of committed units of work."""
        return len(self.latencies)

    @property
    def rate(self) -> float:
        """Committed units of work per second."""
        return self.committed / self.seconds

    @property
    def attempts_per_commit(self) -> float:
        """Calls of the function per commit."""
        return self.attempts / max(1, self.committed)


def contend(run: RunWork, model: Any, engine: Engine, *, each: int, time_limit: float = 60.0) -> Outcome:
    """Let every thread run `each` transfers through `run`.

    Raises:
        AssertionError: money was made or lost, so the other numbers are void.
    """
    outcome = Outcome()
    lock = threading.Lock()
    start = threading.Barrier(THREADS + 1)
    deadline = time.monotonic() + time_limit

    def client(number: int) -> None:
        choice = random.Random(number)  # noqa: S311
        mine = Outcome()
        start.wait()
        for _ in range(each):
            source, target = choice.sample(HOT, 2)

            def transfer(session: Session, source: int = source, target: int = target) -> None:
                mine.attempts += 1
                if time.monotonic() > deadline:
                    raise Stopped
                taken, given = session.get_one(model, source), session.get_one(model, target)
                taken.amount -= 1
                given.amount += 1

            begun = time.perf_counter()
            try:
                run(transfer)
            except Stopped:
                mine.stopped += 1
                break
            except Exception:
                mine.given_up += 1
            else:
                mine.latencies.append(time.perf_counter() - begun)
        with lock:
            outcome.attempts += mine.attempts
            outcome.latencies += mine.latencies
            outcome.given_up += mine.given_up
            outcome.stopped += mine.stopped

    before = _total(engine, model)
    threads = [threading.Thread(target=client, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    start.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    outcome.seconds = time.perf_counter() - begun
    after = _total(engine, model)
    if before != after:
        raise AssertionError(f"the total went from {before} to {after}")
    return outcome


def naive(engine: Engine) -> RunWork:
    """Return the loop that most programs start with: run the whole transaction again, at once, for ever."""

    def run(work: Work) -> None:
        while True:
            try:
                with Session(engine) as session, session.begin():
                    work(session)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in {"40001", "40P01"}:
                    raise
            else:
                return

    return run


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the sum of all rounds."""
    return Outcome(
        seconds=sum(outcome.seconds for outcome in outcomes),
        attempts=sum(outcome.attempts for outcome in outcomes),
        latencies=[latency for outcome in outcomes for latency in outcome.latencies],
        given_up=sum(outcome.given_up for outcome in outcomes),
        stopped=sum(outcome.stopped for outcome in outcomes),
    )


def _total(engine: Engine, model: Any) -> int:
    with engine.connect() as connection:
        return int(connection.execute(select(func.sum(model.amount))).scalar_one())
