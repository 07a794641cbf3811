"""Loading many rows: `bulk_load` against COPY by hand and against the ORM."""

import dataclasses
import functools
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg

from benchmarks.ground import ROOT, Ground, child_environment
from benchmarks.keys import add_all, pgedge
from benchmarks.rows import Measured, Row, Skip, at_least, at_most
from benchmarks.schema import empty, tables
from benchmarks.timing import interleave, per_second, ratio, seconds_of

ROWS_LOADED = 100_000
MEGABYTE = 1 << 20


def against_copy(ground: Ground) -> Measured:
    """Compare rows per second with the fastest way into PostgreSQL, written by hand for this very table."""
    count, samples = loads(ground, "Ours")
    return compared(count, samples["ours"], samples["copy"])


def against_add_all(ground: Ground, *, table: str) -> Measured:
    """Compare rows per second with the ORM."""
    count, samples = loads(ground, table)
    by_hand = ratio(samples["copy"], samples["add_all"])
    found = compared(count, samples["ours"], samples["add_all"])
    return dataclasses.replace(found, note=f"{found.note}; raw COPY reaches {by_hand.value:.3g}")


def compared(count: int, ours: list[float], theirs: list[float]) -> Measured:
    """Return the ratio of two series of rates."""
    found = ratio(ours, theirs)
    medians = [per_second(statistics.median(rates)) for rates in (ours, theirs)]
    return Measured(found.value, medians[0], medians[1], f"{count:,} rows; {found}")


def memory(ground: Ground) -> Measured:
    """Measure the growth of a fresh process that loads rows from a generator."""
    bulk_load(ground)
    project = pgedge(ground)
    tables(project)
    rows = ground.effort(1_000_000, 200_000)
    url = project.url.render_as_string(hide_password=False)
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.bulk_memory", project.package, str(rows)],
        cwd=ROOT,
        # A URL is a secret: not among the arguments, which everybody can list.
        env={**child_environment(ROOT, project.source), "BENCH_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(process.stderr.strip().rpartition("\n")[2])
    grown = int(process.stdout) / MEGABYTE
    return Measured(grown, f"{grown:.1f} MB", note=f"{rows:,} rows from a generator, peak resident memory")


def bulk_load(ground: Ground) -> Callable[..., Any]:
    """Return the project's function, if it has one."""
    try:
        loaded: Callable[..., Any] = pgedge(ground).module("db.bulk").bulk_load
    except ImportError as error:
        raise Skip(f"the project has no bulk_load ({error})") from None
    return loaded


@functools.cache
def loads(ground: Ground, table: str) -> tuple[int, dict[str, list[float]]]:
    """Measure rows per second of `bulk_load`, of COPY by hand, and of the ORM, into one of the `tables`."""
    load = bulk_load(ground)
    project = pgedge(ground)
    found = tables(project)
    model = getattr(found, table)
    count = ground.effort(ROWS_LOADED, 20_000)
    rows = [{"name": f"name {number}", "value": number} for number in range(count)]
    tuples = [(row["name"], row["value"]) for row in rows]
    url = project.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with project.database({"n1": project.url}) as db, psycopg.connect(url) as connection:

        def ours() -> float:
            empty(found.engine, model)
            return count / seconds_of(lambda: load(db, model, rows))

        def copy() -> float:
            empty(found.engine, model)
            return count / seconds_of(lambda: _copy(connection, model.__tablename__, tuples))

        def orm() -> float:
            empty(found.engine, model)
            return add_all(found.engine, model, count)

        return count, interleave({"ours": ours, "copy": copy, "add_all": orm}, ground.effort(7, 2))


def _copy(connection: psycopg.Connection[Any], table: str, rows: list[tuple[Any, ...]]) -> None:
    with connection.cursor() as cursor:
        with cursor.copy(f"COPY {table} (name, value) FROM STDIN (FORMAT BINARY)".encode()) as copy:
            copy.set_types(["varchar", "int8"])
            for row in rows:
                copy.write_row(row)
        connection.commit()


ROWS = [
    Row(name="bulk: 100 000 rows against raw binary COPY", measure=against_copy, goal=at_least(0.75)),
    Row(
        name="bulk: 100 000 rows against add_all",
        measure=functools.partial(against_add_all, table="Ours"),
        goal=at_least(20),
        why_missed="the server is the limit, for raw COPY too: the local stand-in for snowflake.nextval is "
        "PL/pgSQL and takes half of the load; see the row with identity keys",
    ),
    Row(
        name="bulk: 100 000 rows against add_all, identity keys",
        measure=functools.partial(against_add_all, table="Plain"),
        goal=at_least(20),
    ),
    Row(
        name="bulk: memory growth for 1 000 000 rows",
        measure=memory,
        goal=at_most(20),
        unit="MB",
    ),
]
