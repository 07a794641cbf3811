"""A database per tenant: what finding it costs, how few connections many take, how they migrate and move."""

import contextlib
import functools
import random
import re
import secrets
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sqlalchemy import NullPool, create_engine, insert, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from benchmarks.ground import ROUND_TRIP, Ground, Project, administration
from benchmarks.rows import Goal, Measured, Row, at_most
from benchmarks.timing import alternate, per_second, seconds_of, short, spread

CONNECTIONS = 20
"""Connections of a process to each server, as in a new project."""
CLIENTS = 16
FULL = re.compile("too many clients|remaining connection slots")
"""Messages of a server without a free connection."""


def tenants(ground: Ground) -> Project:
    """Return the project that the rows about tenants are about."""
    return ground.project(backend="tenants", keys="uuid")


def admin_of(project: Project, **changed: Any) -> Any:
    """Return the tenants' admin of a project."""
    urls, admin_urls = project.cluster.urls(), project.cluster.admin_urls()
    given = {
        "servers": admin_urls,
        "registry": project.module("db.tenants.registry").registry_url(admin_urls),
        "application": next(iter(urls.values())).username,
        "project": project.path,
        "owners": project.cluster.owner_urls(),
        "secret": project.cluster.derived("tenant_secret"),
        **changed,
    }
    return project.module("ops.provisioning").TenantAdmin(**given)


def application(project: Project, **settings: Any) -> Any:
    """Return what an application holds, as its settings describe it."""
    urls = {name: url.render_as_string(hide_password=False) for name, url in project.cluster.urls().items()}
    secret = project.cluster.derived("tenant_secret")
    configured = project.module("settings").Settings(nodes=urls, tenant_secret=secret, **settings)
    return project.module("db.tenants").Tenants.from_settings(configured)


def url_of(project: Project, found: Any) -> URL:
    """Return the URL of a tenant's database for its own role."""
    url: URL = found.url(project.cluster.urls()[found.server], project.cluster.derived("tenant_secret"))
    return url


def make(project: Project, names: list[str]) -> None:
    """Add tenants with empty databases; without migrations, a thousand take two minutes."""
    admin = admin_of(project)
    registry = project.module("db.tenants.registry")
    admin.create_registry()
    engine = create_engine(admin.registry, poolclass=NullPool)

    def on_one(server: str, mine: list[str]) -> None:
        with admin.on_server(server) as there:
            for name in mine:
                salt = secrets.token_urlsafe(24)
                admin.create(there, server, name, salt)
                row = {"name": name, "server": server, "state": "active", "salt": salt}
                with engine.begin() as connection:
                    connection.execute(insert(registry.tenant).values(**row))

    servers = list(admin.servers)
    with ThreadPoolExecutor(len(servers)) as threads:
        list(threads.map(on_one, servers, [names[number :: len(servers)] for number in range(len(servers))]))


@functools.cache
def made(ground: Ground, prefix: str, count: int) -> list[str]:
    """Return the names of so many tenants, made once per run."""
    names = [f"{prefix}{number}" for number in range(count)]
    ground.console.log(f"adding {count} tenants")
    make(tenants(ground), names)
    return names


def ask(session: Session) -> None:
    """Do one small unit of work."""
    session.execute(text("SELECT 1"))


def warm(ground: Ground) -> Measured:
    """Compare a unit of work for a known tenant with the same on a plain database of one node."""
    project = tenants(ground)
    [name] = made(ground, "warm", 1)
    found = admin_of(project).find(name)
    node = {found.server: url_of(project, found)}
    rounds = []
    with application(project) as db, project.database(node) as plain:

        def ours() -> None:
            with db.session(tenant=name) as session:
                ask(session)

        def theirs() -> None:
            with plain.session() as session:
                ask(session)

        for _ in range(ground.effort(15, 3) + 1):
            rounds.append(alternate(ours, theirs, 400))
    ratio = spread([mine / other for mine, other in rounds[1:]])
    mine, other = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
    return Measured(ratio.value, short(mine), short(other), str(ratio))


def cold(ground: Ground) -> Measured:
    """Compare the first unit of work for each of some tenants with the first on a plain database of each."""
    project = tenants(ground)
    names = made(ground, "cold", ground.effort(60, 12))
    nodes = {one.name: {one.server: url_of(project, one)} for one in admin_of(project).all()}
    pairs = []
    with application(project) as db:
        db.using(tenant=names[0]).run(ask)
        for number, name in enumerate(names[1:]):

            def ours(name: str = name) -> None:
                db.using(tenant=name).run(ask)

            def theirs(name: str = name) -> None:
                with project.database(nodes[name]) as plain:
                    plain.run(ask)

            if number % 2:
                pair = (seconds_of(ours), seconds_of(theirs))
            else:
                pair = (seconds_of(theirs), seconds_of(ours))[::-1]
            pairs.append(pair)
    ratio = spread([mine / other for mine, other in pairs])
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Measured(ratio.value, short(mine), short(other), f"{ratio}; ours also asks the registry")


def connections_of_many(ground: Ground) -> Measured:
    """Work for a thousand tenants in random order, and count the connections to a server."""
    project = tenants(ground)
    names = made(ground, "many", ground.effort(1000, 60))
    calls = ground.effort(6000, 600)
    rng = random.Random(1)  # noqa: S311 - the same order in every run
    order = [rng.choice(names) for _ in range(calls)]
    failed: list[str] = []
    with application(project, server_connections=CONNECTIONS) as db, watched(project) as most:

        def work(name: str) -> None:
            try:
                db.using(tenant=name).run(ask)
            except Exception as error:
                failed.append(f"{type(error).__name__}: {error}")

        with ThreadPoolExecutor(CLIENTS) as threads:
            started = time.perf_counter()
            list(threads.map(work, order))
            seconds = time.perf_counter() - started
            started = time.perf_counter()
            list(threads.map(work, [names[0]] * calls))
            alone = time.perf_counter() - started
        opened = max(budget.open for budget in db._budgets.values())
    if failed:
        raise AssertionError(f"{len(failed)} units of work failed: {failed[0]}")
    bearable = min(len(names), unbounded(project, names))
    return Measured(
        opened,
        f"{opened}",
        f"{bearable} tenants",
        f"{len(names)} tenants, {CLIENTS} threads, {calls} units of work, none failed, "
        f"{per_second(calls / seconds)}, for one tenant alone {per_second(calls / alone)}; the servers saw "
        f"{most[0]} sessions at most, those that end included; the alternative is an engine per tenant, and "
        "how many of those a server of 100 connections bears",
    )


def unbounded(project: Project, names: list[str]) -> int:
    """Return the number of tenants that can have an engine with a connection before a server refuses more."""
    admin = admin_of(project)
    server = next(iter(admin.servers))
    mine = [one for one in admin.all() if one.server == server and one.name in set(names)]
    engines: list[Any] = []
    try:
        for one in mine:
            engine = create_engine(url_of(project, one))
            engines.append(engine)
            try:
                with engine.connect() as connection:
                    connection.execute(text("SELECT 1"))
            except OperationalError as error:
                if not FULL.search(str(error)):
                    raise
                return len(engines) - 1
        return len(engines)
    finally:
        for engine in engines:
            engine.dispose()


@contextlib.contextmanager
def watched(project: Project) -> Iterator[list[int]]:
    """Yield the most sessions of tenants that any server has seen at once, so far."""
    most = [0]
    finished = threading.Event()
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 't\\_%' AND backend_type = 'client backend'"
    )

    def watch(url: Any) -> None:
        with administration(url) as execute:
            while not finished.wait(0.05):
                most[0] = max(most[0], execute(query)[0][0])

    threads = [threading.Thread(target=watch, args=(url,)) for url in project.cluster.admin_urls().values()]
    for thread in threads:
        thread.start()
    try:
        yield most
    finally:
        finished.set()
        for thread in threads:
            thread.join()


def migrations(ground: Ground) -> Measured:
    """Migrate 200 tenants over a distance, a few at a time and one by one."""
    project = tenants(ground)
    module = project.module("ops.tenant_migrations")
    count = ground.effort(200, 8)
    far = [
        {server: project.far(url) for server, url in urls.items()}
        for urls in (project.cluster.admin_urls(), project.cluster.owner_urls())
    ]
    admin = admin_of(project, servers=far[0], owners=far[1])
    seconds: dict[int, float] = {}
    at_once = module.PROCESSES
    for number in (at_once, 1):
        names = made(ground, f"migrated{number}x", count)
        started = time.perf_counter()
        outcomes = module.migrate_all(admin, names=names, at_once=number)
        seconds[number] = time.perf_counter() - started
        if behind := module.stragglers(outcomes):
            raise AssertionError(module.describe(behind))
        if not all(outcome.moved for outcome in outcomes) or len(outcomes) != count:
            raise AssertionError(f"{len(outcomes)} of {count} tenants were migrated")
    return Measured(
        seconds[at_once] / seconds[1],
        f"{seconds[at_once]:.1f} s",
        f"{seconds[1]:.1f} s",
        f"{count} tenants, {at_once} processes on two cores, a round trip of {ROUND_TRIP * 1000:g} ms",
    )


@dataclass(frozen=True)
class Moves:
    """Result of moving a tenant under load, again and again."""

    done: list[Any]
    acknowledged: int
    lost: set[str]
    failed: list[str]
    gap: float
    """Longest time without a commit, in seconds."""


@functools.cache
def moves(ground: Ground) -> Moves:
    """Move a tenant from server to server while four threads write to it."""
    project = tenants(ground)
    bank, account = project.module("bank"), project.module("models").Account
    admin, move = admin_of(project), project.module("ops.moving").move
    admin.add("moving", "n1")
    told: set[str] = set()
    failed: list[str] = []
    finished = threading.Event()
    gap, last = [0.0], [time.perf_counter()]
    with application(project) as db:

        def client() -> None:
            while not finished.is_set():
                owner = secrets.token_hex(8)
                try:
                    db.using(tenant="moving").run(bank.open_account, owner=owner)
                except Exception as error:
                    failed.append(f"{type(error).__name__}: {error}")
                else:
                    told.add(owner)
                    now = time.perf_counter()
                    gap[0], last[0] = max(gap[0], now - last[0]), now

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(0.5)
            done = [
                move(admin, "moving", server)
                for number in range(ground.effort(12, 3))
                for server in [("n2", "n3", "n1")[number % 3]]
            ]
            time.sleep(0.5)
        finally:
            finished.set()
            for thread in threads:
                thread.join()
        found = db.using(tenant="moving").read(lambda session: set(session.scalars(select(account.owner))))
    return Moves(done, len(told), told - found, failed, gap[0])


def lost_by_moves(ground: Ground) -> Measured:
    """Count the acknowledged writes that moves lose, and those that fail."""
    found = moves(ground)
    failed = f": {found.failed[0]}" if found.failed else ""
    return Measured(
        len(found.lost) + len(found.failed),
        f"{len(found.lost)} of {found.acknowledged}",
        "",
        f"{len(found.done)} moves under 4 threads that write; {len(found.failed)} failed{failed}",
    )


def pause_of_moves(ground: Ground) -> Measured:
    """Measure for how long writers wait during a move."""
    found = moves(ground)
    pauses = sorted(one.pause for one in found.done)
    whole = statistics.median(one.seconds for one in found.done)
    return Measured(
        pauses[-1],
        short(statistics.median(pauses)),
        "",
        f"longest of {len(pauses)} moves, median on the left; the longest time without a commit was "
        f"{short(found.gap)}; a whole move took {whole:.1f} s",
    )


ROWS = [
    Row(
        name="tenants: a session for a tenant that is known against a plain one",
        measure=warm,
        goal=at_most(1.1),
    ),
    Row(
        name="tenants: the first work for a tenant against a plain database's",
        measure=cold,
        goal=at_most(1.3),
    ),
    Row(
        name="tenants: connections to a server for 1 000 tenants",
        measure=connections_of_many,
        goal=at_most(CONNECTIONS),
        unit="",
    ),
    Row(
        name="tenants: migration of 200 tenants against one by one",
        measure=migrations,
        goal=at_most(0.5),
    ),
    Row(
        name="tenants: acknowledged writes that moves lose", measure=lost_by_moves, goal=Goal("=", 0), unit=""
    ),
    Row(
        name="tenants: how long a move holds writers up", measure=pause_of_moves, goal=at_most(0.5), unit="s"
    ),
]
