"""Several databases: joining two of them, and committing to two of them, against what one writes by hand."""

import functools
import itertools
import json
import subprocess
import sys
from typing import Any

from sqlalchemy import BigInteger, Column, MetaData, Numeric, Table, Text, create_engine, insert
from sqlalchemy.engine import URL

from benchmarks.bulk import MEGABYTE
from benchmarks.ground import ROOT, Ground, Project, administration, child_environment
from benchmarks.rows import Measured, Row, at_most
from benchmarks.timing import interleave, ratio, seconds_of, short

CUSTOMERS = """
    CREATE TABLE bench_customer (id bigint PRIMARY KEY, name text NOT NULL);
    INSERT INTO bench_customer SELECT n, 'customer ' || n FROM generate_series(1, {customers}) n;
"""

PURCHASES = """
    CREATE TABLE bench_purchase (
        id bigint PRIMARY KEY, customer_id bigint NOT NULL, amount numeric(18, 2) NOT NULL);
    INSERT INTO bench_purchase
        SELECT n, 1 + mod(n::bigint * 7919, {customers}), mod(n, 1000) FROM generate_series(1, {purchases}) n;
    CREATE INDEX ON bench_purchase (customer_id);
"""

metadata = MetaData()
written = Table("bench_written", metadata, Column("id", BigInteger, primary_key=True), Column("note", Text))
customer = Table(
    "bench_customer", MetaData(), Column("id", BigInteger, primary_key=True), Column("name", Text)
)
purchase = Table(
    "bench_purchase",
    MetaData(),
    Column("id", BigInteger, primary_key=True),
    Column("customer_id", BigInteger),
    Column("amount", Numeric(18, 2)),
)


def memory(ground: Ground) -> Measured:
    """Measure the growth of a process that joins two databases as streams, and of one that loads both."""
    project, customers, purchases = joined(ground)
    ours, naive = child(project, "ours"), child(project, "loaded")
    return Measured(
        ours["grown"] / MEGABYTE,
        f"{ours['grown'] / MEGABYTE:.1f} MB",
        f"{naive['grown'] / MEGABYTE:.0f} MB",
        note=f"{customers:,} customers, {purchases:,} purchases; peak resident memory, a process each",
    )


def duration(ground: Ground) -> Measured:
    """Measure the duration of the same two processes."""
    project, _, _ = joined(ground)
    samples = interleave(
        {name: lambda name=name: child(project, name)["seconds"] for name in ("ours", "loaded")},  # type: ignore[misc]
        ground.effort(3, 1),
    )
    found = ratio(samples["ours"], samples["loaded"])
    return Measured(found.value, short(min(samples["ours"])), short(min(samples["loaded"])), note=str(found))


def foreign(ground: Ground) -> Measured:
    """Compare the merge join with a join over foreign tables in the reporting database."""
    project, _, _ = joined(ground)
    see_bench_tables(project)
    samples = interleave(
        {name: lambda name=name: child(project, name)["seconds"] for name in ("ours", "foreign")},  # type: ignore[misc]
        ground.effort(3, 1),
    )
    found = ratio(samples["ours"], samples["foreign"])
    return Measured(found.value, short(min(samples["ours"])), short(min(samples["foreign"])), note=str(found))


def commits(ground: Ground) -> Measured:
    """Compare a two-phase commit on two databases with two transactions, one after the other."""
    return _commits(ground, far=False)


def commits_far(ground: Ground) -> Measured:
    """Compare the same at a distance."""
    return _commits(ground, far=True)


def _commits(ground: Ground, *, far: bool) -> Measured:
    project = several(ground)
    urls = {node: project.far(url) if far else url for node, url in project.cluster.urls().items()}
    application: Any = project.module("databases")
    count = ground.effort(100 if far else 300, 20)
    numbers = itertools.count()
    for node in ("n1", "n2"):
        engine = create_engine(project.cluster.urls()[node])
        metadata.drop_all(engine)
        metadata.create_all(engine)
        engine.dispose()

    def write(*sessions: Any, number: int) -> None:
        for session in sessions:
            session.execute(insert(written), [{"id": number, "note": "x"}])

    databases = project.module("db.databases").Databases
    with databases(application.DATABASES, urls, decision_log=application.DECISION_LOG) as db:

        def two_phase() -> None:
            for _ in range(count):
                db.two_phase("ledger", "orders").run(write, number=next(numbers))

        def one_phase() -> None:
            for _ in range(count):
                number = next(numbers)
                db["ledger"].run(write, number=number)
                db["orders"].run(write, number=number)

        samples = interleave(
            {"ours": lambda: seconds_of(two_phase), "alternative": lambda: seconds_of(one_phase)},
            ground.effort(7, 2),
        )
    found = ratio(samples["ours"], samples["alternative"])
    each = {name: min(values) / count for name, values in samples.items()}
    return Measured(found.value, short(each["ours"]), short(each["alternative"]), note=str(found))


@functools.cache
def several(ground: Ground) -> Project:
    """Return the project, with every database migrated."""
    project = ground.project(backend="multidb")
    cluster = project.cluster
    project.module("ops.histories").migrate(cluster.owner_urls(), folder=cluster.home, project=project.path)
    return project


@functools.cache
def joined(ground: Ground) -> tuple[Project, int, int]:
    """Return the project with customers in one database, purchases in another, and the number of each."""
    project = several(ground)
    customers, purchases = ground.effort(100_000, 10_000), ground.effort(1_000_000, 100_000)
    for node, script in (("n1", CUSTOMERS), ("n2", PURCHASES)):
        engine = create_engine(project.cluster.urls()[node], isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(script.format(customers=customers, purchases=purchases))
            connection.exec_driver_sql("VACUUM ANALYZE")
        engine.dispose()
    return project, customers, purchases


@functools.cache
def see_bench_tables(project: Project) -> None:
    """Show both tables in the reporting database, as `fdw setup` shows those of the models."""
    cluster = project.cluster
    module = project.module("ops.foreign")
    application = next(iter(cluster.urls().values())).username
    module.set_up(
        cluster.admin_urls(), owner_urls=cluster.owner_urls(), application=application, cluster=cluster
    )
    reader = f"{project.package}_{module.TARGET}"
    for node, schema, table in (("n1", "ledger", "bench_customer"), ("n2", "orders", "bench_purchase")):
        with administration(cluster.admin_urls()[node]) as execute:
            execute(f'GRANT SELECT ON {table} TO "{reader}"')
        with administration(cluster.owner_urls()["n3"]) as execute:
            execute(f"IMPORT FOREIGN SCHEMA public LIMIT TO ({table}) FROM SERVER {schema} INTO {schema}")
            execute(f'GRANT SELECT ON {schema}.{table} TO "{application}"')


def child(project: Project, way: str) -> dict[str, Any]:
    """Join in a process of its own, for a peak cannot be reset: by how much it has `grown`, and `seconds`."""
    urls = {node: _written_out(url) for node, url in project.cluster.urls().items()}
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.several_joins", project.package, way],
        cwd=ROOT,
        env={**child_environment(ROOT, project.source), "BENCH_URLS": json.dumps(urls)},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(process.stderr.strip().rpartition("\n")[2])
    found: dict[str, Any] = json.loads(process.stdout)
    return found


def _written_out(url: URL) -> str:
    return url.render_as_string(hide_password=False)


ROWS = [
    Row(
        name="several: memory of a join, 100,000 with 1,000,000 rows",
        measure=memory,
        goal=at_most(50),
        unit="MB",
    ),
    Row(name="several: that join against a list comprehension", measure=duration, goal=at_most(1.0)),
    Row(name="several: that join against foreign tables", measure=foreign, goal=at_most(2.0)),
    Row(
        name="several: a two-phase commit against two commits",
        measure=commits,
        goal=at_most(2.0),
        why_missed="nine statements instead of six, on servers that wait for no disk: there a statement "
        "costs as much as a commit, and so does the Python around it; see the row at 2 ms",
    ),
    Row(name="several: the same, 2 ms", measure=commits_far, goal=at_most(2.0)),
]
