"""Comparing rows: `diff` of three nodes against reladiff, which compares two at a time."""

import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ground import ROOT, Ground, Project, child_environment
from benchmarks.keys import pgedge
from benchmarks.proxy import CountingProxy
from benchmarks.rows import Measured, Row, Skip, at_most

PEER = ("reladiff==0.6.0", "psycopg2-binary>=2.9")
"""Distributions of the peer, as it was measured first."""

FULL, QUICK = 1_000_000, 30_000
"""Number of rows on each node."""

TEN_TIMES = 10

MEGABYTE = 1 << 20

DIFFERENCES = 4

SCHEMA, COLUMNS = "bench_diff", ("name", "amount", "made_at", "note")

_ROWS = """
    INSERT INTO {table}
    SELECT g, 'name ' || g, g / 7.0, timestamptz '2026-01-01' + g * interval '1 s', md5(g::text)
    FROM generate_series(1, {count}) AS g
"""
_CHANGE = "UPDATE {table} SET note = 'other' WHERE id = {id}"
_COLUMNS = "(id bigint PRIMARY KEY, name text, amount numeric, made_at timestamptz, note text)"


@dataclass(frozen=True)
class Outcome:
    """Result of one run of the command."""

    seconds: float
    peak: int
    """Largest resident memory of the process in bytes."""
    status: int


@functools.cache
def table(ground: Ground, count: int, differing: int) -> str:
    """Return a table that no link carries, with `count` rows on every node, of which `differing` differ."""
    project = pgedge(ground)
    name = f"{SCHEMA}.t{count}_{differing}"
    ground.console.log(f"filling {name}")
    with project.module("ops.connections").connect_all(
        project.cluster.admin_urls(), statement_timeout=0
    ) as nodes:
        for number, connection in enumerate(nodes.values()):
            owner = next(iter(project.cluster.owner_urls().values())).username
            for statement in (
                f"SET ROLE {owner}",
                f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}",
                f"CREATE TABLE {name} {_COLUMNS}",
                _ROWS.format(table=name, count=count),
            ):
                connection.exec_driver_sql(statement)
            if number:
                ids = range(number, count, count // max(1, differing // 2))[: differing // 2]
                for row in ids:
                    connection.exec_driver_sql(_CHANGE.format(table=name, id=row))
            connection.exec_driver_sql(f"ANALYZE {name}")
    return name


def ours(ground: Ground, name: str, nodes: Sequence[dict[str, Any]] | None = None) -> Outcome:
    """Run `diff` on a table, on the nodes of the cluster or behind other ports."""
    project = pgedge(ground)
    ports = [node["port"] for node in nodes] if nodes else None
    environment = {**child_environment(ROOT, project.source), **_settings(project, ports)}
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.diff_process", project.package, name]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(process.stderr.strip().rpartition("\n")[2])
    status, peak = process.stdout.split()[-2:]
    return Outcome(seconds, int(peak), int(status))


def theirs(ground: Ground, name: str) -> tuple[float, list[int]]:
    """Run the comparisons of the peer; return seconds and the numbers of rows that differ."""
    command = [
        str(_peer_environment()),
        str(Path(__file__).with_name("peer_reladiff.py")),
        name,
        "id",
        *COLUMNS,
    ]
    environment = {**os.environ, "BENCH_NODES": json.dumps(_nodes(pgedge(ground)))}
    started = time.perf_counter()
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(process.stderr.strip().rpartition("\n")[2])
    found: list[int] = json.loads(process.stdout)
    return seconds, found


@functools.cache
def runs(ground: Ground) -> dict[str, list[Any]]:
    """Run both in turn, on a table of which four rows differ."""
    name = table(ground, ground.effort(FULL, QUICK), DIFFERENCES)
    found: dict[str, list[Any]] = {"ours": [], "theirs": []}
    for _ in range(ground.effort(5, 2)):
        found["ours"].append(ours(ground, name))
        found["theirs"].append(theirs(ground, name))
    if any(outcome.status != 1 for outcome in found["ours"]):
        raise RuntimeError("diff did not find the differences")
    if any(sum(numbers) != DIFFERENCES for _, numbers in found["theirs"]):
        raise RuntimeError(f"reladiff found {found['theirs'][0][1]} differences, not {DIFFERENCES} in all")
    return found


def against_reladiff(ground: Ground) -> Measured:
    """Compare the time of one `diff` of three nodes with that of the peer's two comparisons."""
    found = runs(ground)
    mine = statistics.median(outcome.seconds for outcome in found["ours"])
    other = statistics.median(seconds for seconds, _ in found["theirs"])
    count = ground.effort(FULL, QUICK)
    note = (
        f"{count:,} rows of 5 columns on each of three nodes, {DIFFERENCES} differ; with the start of Python"
    )
    return Measured(mine / other, f"{mine:.2f} s", f"{other:.2f} s", note)


def ten_times_the_rows(ground: Ground) -> Measured:
    """Compare the time with that of ten times the rows."""
    count = ground.effort(FULL, QUICK)
    few = statistics.median(outcome.seconds for outcome in runs(ground)["ours"])
    many = ours(ground, table(ground, TEN_TIMES * count, DIFFERENCES))
    return Measured(
        many.seconds / few, f"{many.seconds:.2f} s", f"{few:.2f} s", f"{TEN_TIMES * count:,} rows"
    )


def memory(ground: Ground) -> Measured:
    """Measure the resident memory of the process, imports included."""
    peak = max(outcome.peak for outcome in runs(ground)["ours"]) / MEGABYTE
    return Measured(peak, f"{peak:.1f} MB", note="peak of the whole process, imports included")


def memory_of_many(ground: Ground) -> Measured:
    """Measure the same with ten times the rows."""
    count = TEN_TIMES * ground.effort(FULL, QUICK)
    peak = ours(ground, table(ground, count, DIFFERENCES)).peak / MEGABYTE
    return Measured(peak, f"{peak:.1f} MB", note=f"{count:,} rows")


def wire(ground: Ground) -> Measured:
    """Count the bytes between the process and all nodes where nothing differs."""
    name = table(ground, ground.effort(FULL, QUICK), 0)
    with contextlib.ExitStack() as stack:
        nodes = _nodes(pgedge(ground))
        proxies = [stack.enter_context(CountingProxy(node["port"])) for node in nodes]
        for node, proxy in zip(nodes, proxies, strict=True):
            node["port"] = proxy.port
        outcome = ours(ground, name, nodes)
        total = sum(proxy.bytes for proxy in proxies)
    if outcome.status:
        raise RuntimeError("diff found differences where there are none")
    return Measured(
        total / MEGABYTE, f"{total / MEGABYTE:.2f} MB", note=f"{total:,} bytes in both directions"
    )


def _nodes(project: Project) -> list[dict[str, Any]]:
    """Return the parameters of the owner's connections to the nodes, in the form that the peer takes."""
    urls = project.cluster.owner_urls().values()
    return [
        {
            "driver": "postgresql",
            "host": url.host,
            "port": url.port,
            "user": url.username,
            "password": url.password,
            "dbname": url.database,
            **{key: value for key, value in url.query.items() if key.startswith("ssl")},
        }
        for url in urls
    ]


def _settings(project: Project, ports: Sequence[int] | None) -> dict[str, str]:
    """Return the settings of the command, with other ports if there are some."""
    found = {}
    for role in ("urls", "owner_urls", "admin_urls"):
        urls = getattr(project.cluster, role)()
        moved = (url.set(port=ports[number]) if ports else url for number, url in enumerate(urls.values()))
        given = [
            f"{node}={url.render_as_string(hide_password=False)}"
            for node, url in zip(urls, moved, strict=True)
        ]
        key = role.removesuffix("urls").upper()
        found[f"{project.package.upper()}_{key}NODES"] = " ".join(given)
    return found


def _peer_environment() -> Path:
    """Return the Python of an environment with the peer, or raise Skip; it is created on first use."""
    if sys.prefix == sys.base_prefix:
        raise Skip("run `make bench`: reladiff goes into an environment inside .venv")
    folder = Path(sys.prefix) / "bench-reladiff"
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        venv.create(folder, clear=True, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEER]
        result = subprocess.run(install, capture_output=True, text=True, check=False)
        if result.returncode:
            raise Skip(f"reladiff cannot be installed: {result.stderr.strip().rpartition(chr(10))[2]}")
        complete.touch()
    return python


ROWS = [
    Row(
        name="diff: three nodes against two comparisons of reladiff",
        measure=against_reladiff,
        goal=at_most(0.35),
    ),
    Row(name="diff: ten times the rows", measure=ten_times_the_rows, goal=at_most(12)),
    Row(
        name="diff: memory of the process",
        measure=memory,
        goal=at_most(64),
        unit="MB",
        why_missed="SQLAlchemy with asyncio, its ORM, psycopg and pydantic take 66 MB when they are imported",
    ),
    Row(name="diff: memory at ten times the rows", measure=memory_of_many, goal=at_most(64), unit="MB"),
    Row(name="diff: bytes over the wire where nothing differs", measure=wire, goal=at_most(1), unit="MB"),
]
