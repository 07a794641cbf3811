"""The runtime against the one that an older build renders, on the same server, in one run."""

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import select

from benchmarks.bulk import ROWS_LOADED, compared
from benchmarks.ground import Ground
from benchmarks.rows import Measured, Row, at_least, at_most
from benchmarks.schema import empty, tables
from benchmarks.timing import alternate, interleave, seconds_of, short, spread


def run(ground: Ground) -> Measured:
    """Compare `db.run` on the smallest useful unit of work, a row read and changed."""
    balance = tables(ground.project(backend="pgedge")).Balance

    def work(session: Any) -> None:
        session.get_one(balance, 1).amount += 1

    return _databases(ground, lambda db: db.run(work), calls=200)


def query(ground: Ground) -> Measured:
    """Compare a read-only session with one query."""
    balance = tables(ground.project(backend="pgedge")).Balance
    statement = select(balance.amount).where(balance.id == 1)

    def read(db: Any) -> None:
        with db.session(readonly=True) as session:
            session.scalar(statement)

    return _databases(ground, read, calls=400)


def run_asyncio(ground: Ground) -> Measured:
    """Compare `AsyncDatabase.run` on the smallest useful unit of work."""
    new, old = ground.project(backend="pgedge"), ground.project_before(backend="pgedge")
    balance = tables(new).Balance

    async def work(session: Any) -> None:
        (await session.get_one(balance, 1)).amount += 1

    async def measure() -> list[tuple[float, float]]:
        nodes = {"n1": new.url}
        databases = [
            project.module("db.aio").AsyncDatabase.from_settings(project.settings(nodes))
            for project in (new, old)
        ]
        rounds = []
        for _ in range(ground.effort(15, 3)):
            for db in databases:
                await db.dispose()
            durations: list[list[float]] = [[], []]
            for number in range(200):
                for which in (0, 1) if number % 2 else (1, 0):
                    start = time.perf_counter()
                    await databases[which].run(work)
                    durations[which].append(time.perf_counter() - start)
            rounds.append((statistics.median(durations[0]), statistics.median(durations[1])))
        for db in databases:
            await db.dispose()
        return rounds

    return _ratio(asyncio.run(measure()))


def bulk(ground: Ground) -> Measured:
    """Compare rows per second of `bulk_load`."""
    new, old = ground.project(backend="pgedge"), ground.project_before(backend="pgedge")
    found = tables(new)
    count = ground.effort(ROWS_LOADED, 20_000)
    rows = [{"name": f"name {number}", "value": number} for number in range(count)]

    def rate(project: Any) -> Callable[[], float]:
        def measure() -> float:
            empty(found.engine, found.Ours)
            with project.database({"n1": new.url}) as db:
                load = project.module("db.bulk").bulk_load
                return count / seconds_of(lambda: load(db, found.Ours, rows))

        return measure

    rates = interleave({"new": rate(new), "old": rate(old)}, ground.effort(9, 2))
    return compared(count, rates["new"], rates["old"])


def _databases(ground: Ground, call: Callable[[Any], None], *, calls: int) -> Measured:
    new, old = ground.project(backend="pgedge"), ground.project_before(backend="pgedge")
    nodes = {"n1": new.url}
    rounds = []
    with new.database(nodes) as mine, old.database(nodes) as theirs:
        for _ in range(ground.effort(15, 3)):
            # Server processes differ by some percent among themselves: each round has new ones.
            mine.dispose()
            theirs.dispose()
            rounds.append(alternate(lambda: call(mine), lambda: call(theirs), calls))
    return _ratio(rounds)


def _ratio(rounds: list[tuple[float, float]]) -> Measured:
    found = spread([ours / theirs for ours, theirs in rounds])
    ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Measured(found.value, short(ours), short(theirs), str(found))


ROWS = [
    Row(name="before: db.run", measure=run, goal=at_most(1.03)),
    Row(name="before: db.run on asyncio", measure=run_asyncio, goal=at_most(1.03)),
    Row(name="before: a read-only session with one query", measure=query, goal=at_most(1.03)),
    Row(name="before: bulk_load", measure=bulk, goal=at_least(1 / 1.03)),
]
