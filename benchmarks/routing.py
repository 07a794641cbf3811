"""Cost of routing a unit of work, gain of a reader, and the node that everyday statements run on."""

import asyncio
import importlib.util
import statistics
import time
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from benchmarks import routing_cases
from benchmarks.ground import Ground
from benchmarks.keys import far_engine, pgedge
from benchmarks.rows import Goal, Measured, Row, Skip, at_most
from benchmarks.schema import tables
from benchmarks.timing import alternate, short, spread


def per_query(ground: Ground) -> Measured:
    """Compare queries in one transaction with those of a plain session."""
    project = pgedge(ground)
    found = tables(project)
    query = _read(found.Balance)
    rounds = []
    with project.database({"n1": project.url}) as db:
        for _ in range(ground.effort(15, 3)):
            # Server processes differ by some percent among themselves: each round has new ones.
            found.engine.dispose()
            db.dispose()
            with db.session() as ours, Session(found.engine) as plain:
                rounds.append(alternate(lambda: ours.scalar(query), lambda: plain.scalar(query), 500))
    return _compared(rounds)


def per_query_asyncio(ground: Ground) -> Measured:
    """Compare queries in one transaction with those of a plain session, on asyncio."""
    if importlib.util.find_spec("greenlet") is None:
        raise Skip("greenlet is not installed, which SQLAlchemy needs for asyncio")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine  # noqa: PLC0415

    project = pgedge(ground)
    try:
        database = project.module("db.aio").AsyncDatabase
    except ImportError as error:
        raise Skip(f"the project has no AsyncDatabase ({error})") from None
    query = _read(tables(project).Balance)

    async def measure() -> list[tuple[float, float]]:
        engine = create_async_engine(project.url)
        db = database.from_settings(project.settings({"n1": project.url}))
        rounds = []
        for _ in range(ground.effort(15, 3)):
            await engine.dispose()
            await db.dispose()
            async with db.session() as ours, AsyncSession(engine) as plain:
                durations: dict[Any, list[float]] = {ours: [], plain: []}
                for number in range(500):
                    for session in (ours, plain) if number % 2 else (plain, ours):
                        start = time.perf_counter()
                        await session.scalar(query)
                        durations[session].append(time.perf_counter() - start)
                rounds.append((statistics.median(durations[ours]), statistics.median(durations[plain])))
        await engine.dispose()
        await db.dispose()
        return rounds

    return _compared(asyncio.run(measure()))


def one_query_read(ground: Ground) -> Measured:
    """Compare a unit of work that reads once with a plain session, at a distance."""
    project = pgedge(ground)
    query = _read(tables(project).Balance)
    plain_session = sessionmaker(far_engine(project))

    with project.database({"n1": project.far_url}) as db:

        def ours() -> None:
            with db.session(readonly=True) as session:
                session.scalar(query)

        def plain() -> None:
            with plain_session() as session:
                session.scalar(query)

        alternate(ours, plain, 2)
        rounds = [alternate(ours, plain, 20) for _ in range(ground.effort(7, 3))]
    return _compared(rounds)


def sixteen_cases(ground: Ground) -> Measured:
    """Count the cases on the right node; the alternative is the `get_bind` of SQLAlchemy's documentation."""
    project = pgedge(ground)
    ours = routing_cases.run(project, routing_cases.database_session)
    tutorial = routing_cases.run(project, routing_cases.tutorial_session)
    note = ", ".join(f"{name}: {result}" for name, result in ours.items() if result != routing_cases.RIGHT)
    right = [
        sum(result == routing_cases.RIGHT for result in results.values()) for results in (ours, tutorial)
    ]
    return Measured(right[0], f"{right[0]} of {len(ours)}", f"{right[1]} of {len(tutorial)}", note)


def _read(model: Any) -> Any:
    return select(model.amount).where(model.id == 1)


def _compared(rounds: list[tuple[float, float]]) -> Measured:
    found = spread([ours / theirs for ours, theirs in rounds])
    ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Measured(found.value, short(ours), short(theirs), str(found))


ROWS = [
    Row(
        name="routing: a query inside a transaction against a plain Session",
        measure=per_query,
        goal=at_most(1.03),
    ),
    Row(name="routing: the same on asyncio", measure=per_query_asyncio, goal=at_most(1.03)),
    Row(name="routing: a one-query read through a reader, 2 ms", measure=one_query_read, goal=at_most(0.45)),
    Row(
        name="routing: everyday cases on the right node",
        measure=sixteen_cases,
        goal=Goal("=", 16),
        unit="of 16",
    ),
]
