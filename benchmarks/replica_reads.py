"""Reads per second of two readers against the writer alone, with the servers as the bottleneck.

Servers that share a machine share its cores, so a second one adds nothing. Therefore each is pinned to one
core, as if its machine had no other; the note has the result without pinning.
"""

import os
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from benchmarks.ground import Ground, Project, administration
from benchmarks.replicas import aurora, writer_of
from benchmarks.rows import Measured, Row, Skip, at_least
from benchmarks.timing import interleave, per_second, ratio

THREADS = 16
"""Number of threads. With N units of work on two servers, one is idle for 1 in N + 1 of the time."""

QUERY = text("SELECT sum(number) FROM (SELECT generate_series(1, 600000) AS number) AS numbers")
"""Query that takes a server about 20 ms and the client almost no time."""

ALONE, ONE, TWO = "the writer alone", "one reader", "two readers"


def scaling(ground: Ground) -> Measured:
    """Measure reads per second of two readers, of one, and of the writer alone."""
    if not hasattr(os, "sched_setaffinity"):
        raise Skip("this system cannot pin a process to a core")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        raise Skip("two readers on one core are no faster than one")
    project = aurora(ground)
    writer = writer_of(project)
    first, second = (node for node in project.cluster.urls() if node != writer)
    served_by = {TWO: (writer, first, second), ONE: (writer, first), ALONE: (writer,)}
    length, rounds = ground.effort(2, 1), ground.effort(7, 2)

    def measure(rounds: int) -> dict[str, list[float]]:
        return interleave(
            {name: partial(reads_per_second, project, nodes, length) for name, nodes in served_by.items()},
            rounds,
        )

    together = measure(ground.effort(3, 1))
    busy = time.process_time()
    with held_to_cores(project, {writer: cores[0], first: cores[0], second: cores[1]}):
        apart = measure(rounds)
    busy = (time.process_time() - busy) / (length * len(served_by) * (rounds + 1))
    found = ratio(apart[TWO], apart[ALONE])
    mine, single, alone = (statistics.median(apart[name]) for name in (TWO, ONE, ALONE))
    return Measured(
        found.value,
        per_second(mine),
        per_second(alone),
        f"{found}; one reader {per_second(single)}; the client took {busy:.0%} of a core; "
        f"without pinning on {len(cores)} cores {ratio(together[TWO], together[ALONE]).value:.3g}",
    )


def reads_per_second(project: Project, nodes: tuple[str, ...], length: float) -> float:
    """Return the reads per second of all threads on a cluster of `nodes`, measured for `length` seconds."""
    urls = project.cluster.urls()
    counts = [0] * THREADS
    start = threading.Barrier(THREADS + 1)
    finished = threading.Event()

    with project.database({node: urls[node] for node in nodes}, pool={"size": THREADS}) as db:

        def client(number: int) -> None:
            for _ in range(2 * len(nodes)):
                db.read(_ping)
            start.wait()
            while not finished.is_set():
                db.read(_work)
                counts[number] += 1

        threads = [threading.Thread(target=client, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        start.wait()
        begun = time.perf_counter()
        time.sleep(length)
        done = sum(counts)
        seconds = time.perf_counter() - begun
        finished.set()
        for thread in threads:
            thread.join()
    return done / seconds


@contextmanager
def held_to_cores(project: Project, cores: Mapping[str, int]) -> Iterator[None]:
    """Pin the processes that each server starts in this block to a core of its own."""
    servers = {}
    for node, url in project.cluster.admin_urls().items():
        with administration(url) as execute:
            ((lines,),) = execute("SELECT pg_read_file('postmaster.pid')")
        servers[node] = int(lines.split()[0])
    before = {pid: os.sched_getaffinity(pid) for pid in servers.values()}
    try:
        for node, pid in servers.items():
            os.sched_setaffinity(pid, {cores[node]})
        yield
    finally:
        for pid, allowed in before.items():
            os.sched_setaffinity(pid, allowed)


def _ping(session: Session) -> Any:
    return session.scalar(text("SELECT 1"))


def _work(session: Session) -> Any:
    return session.scalar(QUERY)


ROWS = [
    Row(
        name="replicas: reads/s of two readers against the writer alone, one core each",
        measure=scaling,
        goal=at_least(1.6),
        why_missed="three servers, the client and everything else share two cores; and readers chosen at "
        "random are not evenly busy. Quartiles on a busy machine: at random 1.52 to 1.76, the reader with "
        "the fewest connections in use 1.76 to 1.82, divided evenly by hand 1.84 to 1.88",
    ),
]
