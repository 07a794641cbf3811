"""Checks that the application reads and writes on the right nodes."""

import time
from collections import Counter
from contextlib import suppress

from sqlalchemy import insert, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema

from ....db import Key, PinnedSession, WrongNode
from ....db.backend import Backend
from ....db.retry import sqlstate_of
from ...migrate import SCRATCH_PREFIX
from ..check import Check, CheckContext, CheckResult, failed, judge, passed, warned
from ..scratch import Entry, add_entries
from .replication import milliseconds


class ReadersRefuseWrites(Check):
    """A reader refuses writes, and the application is told so.

    The nodes' URLs may all lead to the writer.
    """

    requires = ("ExactlyOneNodeWrites",)

    def run(self, context: CheckContext) -> CheckResult:
        """Try to write on each reader, both through the router and past it."""
        problems = []
        with context.topology() as topology:
            readers = [node for node in topology.connections if node != topology.writer()]
            for reader in readers:
                with suppress(WrongNode):
                    context.scratch.database.using(node=reader).run(lambda session: session.node)
                    problems.append(f"the router let a write through to {reader}")
                try:
                    topology.connections[reader].execute(CreateSchema(f"{SCRATCH_PREFIX}refused"))
                    problems.append(f"{reader} took a write")
                except DBAPIError as error:
                    if sqlstate_of(error) not in Backend.read_only:
                        raise
        return judge(problems, f"{' and '.join(readers)} refuse", {})


class NobodyMissesTheirOwnWrites(Check):
    """Nobody misses their own writes.

    `GRANT pg_read_all_stats` to the application's role, without which no reader can report its progress; else raise
    `read_wait`.
    """

    requires = ("ExactlyOneNodeWrites",)
    timeout = 20.0
    MIN_READS = 100
    MAX_READS = 400  # reads after which the check gives up on catching a reader behind the writer
    SECONDS, LEAST_READS = 10.0, 20  # time after which so many reads are enough, because a busy machine takes too long
    ROWS = 100  # rows per write: they keep a reader busy for a moment, in which it is read, until it has missed some

    def run(self, context: CheckContext) -> CheckResult:
        """Write, then look for the rows at once: on every reader directly, and through the router."""
        database = context.scratch.database
        behind = missed = 0
        served: Counter[str] = Counter()
        waits: list[float] = []
        with context.on_scratch() as topology:
            writer = topology.writer()
            readers = [node for node in topology.connections if node != writer]
            deadline = time.monotonic() + self.SECONDS
            while len(waits) < self.MIN_READS or (not behind and len(waits) < self.MAX_READS):
                if len(waits) >= self.LEAST_READS and time.monotonic() > deadline:
                    break
                raw = f"raw {len(waits)}"
                topology.connections[writer].execute(insert(Entry), [{"owner": raw}] * self.ROWS)
                seen = select(Entry.id).where(Entry.owner == raw).limit(1)
                behind += any(topology.connections[reader].scalar(seen) is None for reader in readers)
                [key] = database.run(add_entries, f"own {len(waits)}")
                started = time.monotonic()
                node, found = database.read(_find, key)
                waits.append(time.monotonic() - started)
                served[node] += 1
                missed += not found
        by_readers = sum(count for node, count in served.items() if node in readers)
        counts = {"reads": len(waits), "missed_by_a_raw_reader": behind, "missed_by_the_router": missed}
        evidence = {**counts, "served": dict(served), "read_ms": milliseconds(waits)}
        if missed:
            return failed(f"{missed} of {len(waits)} reads missed what had just been written", evidence)
        if not by_readers:
            return warned("nothing was missed, but only because the writer served every read", evidence)
        if not behind:
            return warned("nothing was missed, but raw readers missed nothing either: not put to the test", evidence)
        summary = f"0 of {len(waits)} missed, {by_readers} served by readers; a raw reader missed {behind}"
        return passed(summary, evidence)


def _find(session: PinnedSession, key: Key) -> tuple[str, bool]:
    return session.node, session.scalar(select(Entry.id).where(Entry.id == key)) is not None
