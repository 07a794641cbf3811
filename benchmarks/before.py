"""The project against the one that an older build renders, in one run.

The runtimes work on the same server; the operations have a cluster each, because the roles differ.
"""

import asyncio
import functools
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from uuid import uuid4

from sqlalchemy import select

from benchmarks.bulk import ROWS_LOADED, compared
from benchmarks.contention import Outcome, merged
from benchmarks.ground import Ground, Project, owner
from benchmarks.rows import Measured, Row, at_least, at_most
from benchmarks.schema import empty, tables
from benchmarks.tenants import admin_of, tenants, url_of
from benchmarks.timing import alternate, interleave, per_second, percentile, ratio, seconds_of, short, spread

HOT_ACCOUNTS, HOT_THREADS = 20, 6


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


@functools.cache
def hot_transfers(ground: Ground) -> tuple[list[Outcome], list[Outcome]]:
    """Run the sample's transfers between hot accounts of a tenant; return the rounds of each build."""
    new, old = tenants(ground), ground.project_before(backend="tenants", keys="uuid")
    admin_of(new).add("hot", "n1")
    tenant = admin_of(new).find("hot")
    nodes = {tenant.server: url_of(new, tenant)}
    seconds = ground.effort(8, 2)
    with new.database(nodes) as mine, old.database(nodes) as theirs:
        accounts = [mine.run(new.module("bank").open_account, owner="hot").id for _ in range(HOT_ACCOUNTS)]
        rounds: dict[str, list[Outcome]] = {"new": [], "old": []}

        def played(name: str, project: Project, db: Any) -> Callable[[], float]:
            transfer = project.module("bank").transfer

            def play() -> float:
                rounds[name].append(_transfers(lambda **work: db.run(transfer, **work), accounts, seconds))
                return rounds[name][-1].rate

            return play

        interleave({"new": played("new", new, mine), "old": played("old", old, theirs)}, ground.effort(5, 1))
    # The first round of each filled the pools.
    return rounds["new"][1:], rounds["old"][1:]


def _transfers(transfer: Callable[..., object], accounts: list[Any], seconds: float) -> Outcome:
    """Let each thread transfer between random accounts for some seconds."""
    deadline = time.perf_counter() + seconds

    def client(number: int) -> Outcome:
        choice, mine = random.Random(number), Outcome()  # noqa: S311 - the same order in every run
        while (begun := time.perf_counter()) < deadline:
            source, target = choice.sample(accounts, 2)
            try:
                transfer(source=source, target=target, amount=Decimal(1), idempotency_key=uuid4())
            except Exception:
                mine.given_up += 1
            else:
                mine.latencies.append(time.perf_counter() - begun)
        return mine

    with ThreadPoolExecutor(HOT_THREADS) as threads:
        outcome = merged(list(threads.map(client, range(HOT_THREADS))))
    outcome.seconds = seconds
    return outcome


def hot_rate(ground: Ground) -> Measured:
    """Compare transfers per second between hot accounts."""
    new, old = hot_transfers(ground)
    ours, theirs = ([outcome.rate for outcome in outcomes] for outcomes in (new, old))
    found = ratio(ours, theirs)
    given_up = f"given up: {merged(new).given_up} against {merged(old).given_up}"
    mine, other = (per_second(statistics.median(rates)) for rates in (ours, theirs))
    return Measured(found.value, mine, other, f"{found}; {given_up}")


def hot_tail(ground: Ground) -> Measured:
    """Compare the 99th percentile of a transfer between hot accounts."""
    new, old = hot_transfers(ground)
    ours, theirs = (percentile(merged(outcomes).latencies, 99) for outcomes in (new, old))
    return Measured(ours / theirs, short(ours), short(theirs))


def migrate(ground: Ground) -> Measured:
    """Compare a migration of a cluster that is at the newest revision."""

    def again(project: Project, cluster: Any) -> None:
        project.module("ops.migrate").migrate(cluster.admin_urls(), **owner(cluster), project=project.path)

    return _operations(ground, again)


def verify(ground: Ground) -> Measured:
    """Compare a verification of a sound cluster, without chaos."""

    def check(project: Project, cluster: Any) -> None:
        if failures := _verified(project, cluster):
            raise AssertionError(f"{project.package} is not sound: {'; '.join(failures)}")

    return _operations(ground, check)


def _verified(project: Project, cluster: Any) -> list[str]:
    """Run the checks, each build by its own names; return the failures."""
    module, urls = project.module("ops.verify"), (cluster.urls(), cluster.admin_urls())
    if hasattr(module, "CheckContext"):
        context = module.CheckContext(*urls, seed=1, **owner(cluster), project=project.path)
        results = [(run.check, run.result) for run in module.verify(context, module.ALL).runs]
    else:
        answers = module.verify(*urls, seed=1, project=project.path).answers
        results = [(answer.check, answer.finding) for answer in answers]
    return [f"{check.__name__}: {found.summary}" for check, found in results if found.status == "FAIL"]


@functools.cache
def _sound(ground: Ground) -> dict[str, tuple[Project, Any]]:
    """Return both projects, with clusters that no other row writes to."""
    projects = {"new": ground.project(backend="pgedge"), "old": ground.project_before(backend="pgedge")}
    return {name: (project, project.started("sound", may_create=False)) for name, project in projects.items()}


def _operations(ground: Ground, work: Callable[[Project, Any], None]) -> Measured:
    contenders = {
        name: functools.partial(seconds_of, functools.partial(work, *pair))
        for name, pair in _sound(ground).items()
    }
    seconds = interleave(contenders, ground.effort(9, 1))
    return _ratio(list(zip(seconds["new"], seconds["old"], strict=True)))


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
    Row(name="before: transfers on hot accounts per second", measure=hot_rate, goal=at_least(2)),
    Row(name="before: transfers on hot accounts, p99", measure=hot_tail, goal=at_most(0.3)),
    Row(
        name="before: migrate of an up-to-date cluster",
        measure=migrate,
        goal=at_most(0.5),
        why_missed="against 04254f5: all nodes and both roles are asked at once, but here they share two "
        "cores, and reading the schema takes 8 ms in a new session and 2 in a used one",
    ),
    Row(
        name="before: verify of a sound cluster",
        measure=verify,
        goal=at_most(0.6),
        why_missed="against 04254f5, which has 9 of the 15 checks: the other six take 0.4 s; the three that "
        "write and wait for links took 1.3 s of 2.1, and there 1.2 of 1.4",
    ),
]
