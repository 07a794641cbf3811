"""The checks that only a writer with readers needs."""

import time
from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import ClassVar

from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema

from ...db import Key, PinnedSession, WrongNode, backend
from ...db.retry import sqlstate_of
from ..cluster import Cluster
from ..connections import connect_all
from ..failover import bring_back, fail_over
from ..schema import SCRATCH_PREFIX
from ..topology import TopologyError, is_aurora, links, the_writer, unreplicable_tables, writers
from .check import Check, Finding, Status, Subject
from .checks import SurvivesALoss, in_scratch, mark
from .scratch import Marker

CLOCK_SKEW = 0.5
"""Seconds by which the clocks may differ. Arbitrary: far above what NTP allows, far below what harms."""


def unproven(subject: Subject) -> Mapping[str, str]:
    """The general checks that mean nothing on this cluster, by name, each with the reason: there are none."""
    return {}


class ServersAreSetUp(Check):
    """The servers are set up to follow each other.

    Correct the setting on the node that is named and restart it: any node may be the writer tomorrow.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)

    def run(self, subject: Subject) -> Finding:
        """Read versions, settings and clocks."""
        wrong: list[str] = []
        versions: dict[str, str] = {}
        skews: dict[str, float] = {}
        names: dict[str, str] = {}
        with connect_all(subject.admin_urls) as connections:
            for node, connection in connections.items():
                versions[node] = str(connection.scalar(text("SHOW server_version"))).partition(" ")[0]
                names[node] = str(connection.scalar(text("SHOW cluster_name")))
                if connection.scalar(text("SHOW wal_level")) == "minimal":
                    wrong.append(f"{node}: wal_level is minimal, which nobody can follow")
                if (
                    connection.scalar(text("SHOW fsync")) == "off"
                    and connection.scalar(text("SHOW full_page_writes")) == "off"
                ):
                    wrong.append(f"{node}: full_page_writes is off, so a former writer could not be rewound")
                before = time.time()
                theirs = float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())::float8")) or 0)
                skews[node] = round(theirs - (before + time.time()) / 2, 3)
        if len({version.partition(".")[0] for version in versions.values()}) > 1:
            wrong.append(
                "different major versions: " + ", ".join(f"{node} {version}" for node, version in versions.items())
            )
        if max(skews.values()) - min(skews.values()) > CLOCK_SKEW:
            wrong.append(f"the clocks differ by more than {CLOCK_SKEW} s: {skews}")
        evidence = {"versions": versions, "cluster_names": names, "clock_skew_s": skews}
        if wrong:
            return Finding(Status.FAIL, "; ".join(wrong), evidence)
        return Finding(Status.PASS, f"PostgreSQL {next(iter(versions.values()))}", evidence)


class ExactlyOneNodeWrites(Check):
    """Exactly one node takes writes.

    Two writers go their own ways: stop the wrong one, then `rejoin` it. No writer: `failover` to the reader that is furthest ahead.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)

    def run(self, subject: Subject) -> Finding:
        """Ask every node whether it is in recovery."""
        with connect_all(subject.admin_urls) as connections:
            try:
                writer = the_writer(connections)
            except TopologyError as error:
                return Finding(Status.FAIL, str(error))
        return Finding(Status.PASS, f"{writer} writes", {"writer": writer})


class EveryReaderStreams(Check):
    """Every reader follows the writer.

    The reader's log has the reason. One that fell too far behind, or went ahead of the writer, comes back with `rejoin`.
    """

    requires: ClassVar[tuple[str, ...]] = ("ExactlyOneNodeWrites",)

    PATIENCE: ClassVar[float] = 3.0
    """Seconds: a reader that looks for a new writer finds it within that."""

    def run(self, subject: Subject) -> Finding:
        """Look at both ends of every link until all are up or patience ends."""
        deadline = time.monotonic() + self.PATIENCE
        with connect_all(subject.admin_urls) as connections:
            if is_aurora(connections[the_writer(connections)]):
                return Finding(Status.SKIP, "Aurora's readers share the writer's storage and receive no log")
            while True:
                found = links(connections)
                broken = [link for link in found if not link.is_up]
                if not broken or any(link.is_lost for link in broken) or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        evidence = {f"{link.origin}→{link.receiver}": link.state for link in found}
        if broken:
            return Finding(Status.FAIL, ", ".join(map(str, broken)), evidence)
        return Finding(Status.PASS, f"{len(found)} readers streaming", evidence)


class EveryTableIsReplicated(Check):
    """Every table is replicated.

    `ALTER TABLE … SET LOGGED`, in a migration.
    """

    requires: ClassVar[tuple[str, ...]] = ("ExactlyOneNodeWrites",)

    def run(self, subject: Subject) -> Finding:
        """Look for tables whose rows are not in the log."""
        with connect_all(subject.admin_urls) as connections:
            wrong = [
                f"{table}: {reason}" for table, reason in unreplicable_tables(connections[the_writer(connections)])
            ]
        if wrong:
            return Finding(Status.FAIL, "; ".join(wrong))
        return Finding(Status.PASS, "no table left out")


class CommitsWaitForAReader(Check):
    """A commit waits for a reader.

    `synchronous_standby_names = 'ANY 1 (…)'` on every node, with the readers' cluster_name. Without it what the writer acknowledged last is lost if it dies.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryReaderStreams",)

    def run(self, subject: Subject) -> Finding:
        """Ask the writer which readers it counts on."""
        with connect_all(subject.admin_urls) as connections:
            writer = the_writer(connections)
            wanted = connections[writer].scalar(text("SHOW synchronous_standby_names"))
            mode = connections[writer].scalar(text("SHOW synchronous_commit"))
            rows = connections[writer].execute(text("SELECT application_name, sync_state FROM pg_stat_replication"))
            states = {row.application_name: row.sync_state for row in rows}
        counted = sorted(name for name, state in states.items() if state in ("quorum", "sync"))
        evidence = {"synchronous_standby_names": wanted, "synchronous_commit": mode, "states": states}
        if not wanted or mode in ("off", "local"):
            return Finding(
                Status.WARN, f"{writer} waits for nobody: a failover can lose what it acknowledged last", evidence
            )
        if not counted:
            return Finding(
                Status.FAIL, f"{writer} waits for {wanted}, and no reader counts: every commit hangs", evidence
            )
        return Finding(Status.PASS, f"{wanted}: {' and '.join(counted)} can confirm", evidence)


class ReadersRefuseWrites(Check):
    """A reader refuses writes, and the application is told so.

    The nodes' URLs may all lead to the writer.
    """

    requires: ClassVar[tuple[str, ...]] = ("ExactlyOneNodeWrites",)

    def run(self, subject: Subject) -> Finding:
        """Try to write on each reader, in the way the application would and behind its back."""
        database = subject.scratch.database
        with connect_all(subject.admin_urls) as connections:
            readers = [node for node in connections if node not in writers(connections)]
            taken = []
            for reader in readers:
                try:
                    database.using(node=reader).run(lambda unit: unit.node)
                    taken.append(f"the router let a write through to {reader}")
                except WrongNode:
                    pass
                try:
                    connections[reader].execute(CreateSchema(f"{SCRATCH_PREFIX}refused"))
                    taken.append(f"{reader} took a write")
                except DBAPIError as error:
                    if sqlstate_of(error) not in backend.READ_ONLY:
                        raise
        if taken:
            return Finding(Status.FAIL, "; ".join(taken))
        return Finding(Status.PASS, f"{' and '.join(readers)} refuse")


class NobodyMissesTheirOwnWrites(Check):
    """Nobody misses their own writes.

    `GRANT pg_read_all_stats` to the application's role, without which no reader can say how far it is; else raise `read_wait`.
    """

    requires: ClassVar[tuple[str, ...]] = ("ExactlyOneNodeWrites",)
    limit: ClassVar[float] = 20.0

    SAMPLES: ClassVar[int] = 100
    MOST: ClassVar[int] = 400
    ROWS: ClassVar[int] = 100
    """So many at once keep a raw reader busy for a moment, in which it is looked at, until it has missed something."""

    def run(self, subject: Subject) -> Finding:
        """Write, then look for it at once: on a reader as it comes, and by way of the router."""
        database = subject.scratch.database
        behind = missed = 0
        served: Counter[str] = Counter()
        waits: list[float] = []
        with connect_all(subject.admin_urls) as connections:
            writer = the_writer(connections)
            readers = [node for node in connections if node != writer]
            views = in_scratch(subject, connections)
            while len(waits) < self.SAMPLES or (not behind and len(waits) < self.MOST):
                raw = f"raw {len(waits)}"
                views[writer].execute(insert(Marker), [{"origin": raw}] * self.ROWS)
                seen = select(Marker.id).where(Marker.origin == raw).limit(1)
                behind += any(views[reader].scalar(seen) is None for reader in readers)
                key = database.run(mark, f"own {len(waits)}")
                started = time.monotonic()
                node, found = database.read(_look, key)
                waits.append(time.monotonic() - started)
                served[node] += 1
                missed += not found
        by_readers = sum(count for node, count in served.items() if node in readers)
        evidence = {
            "reads": len(waits),
            "missed_by_a_raw_reader": behind,
            "missed_by_the_router": missed,
            "served": dict(served),
            "read_ms": {"p50": round(1000 * median(waits), 2), "max": round(1000 * max(waits), 2)},
        }
        if missed:
            return Finding(Status.FAIL, f"{missed} of {len(waits)} reads missed what had just been written", evidence)
        if not by_readers:
            return Finding(Status.WARN, "nothing was missed, but only because the writer served every read", evidence)
        if not behind:
            return Finding(
                Status.WARN, "nothing was missed, but raw readers missed nothing either: not put to the test", evidence
            )
        return Finding(
            Status.PASS,
            f"0 of {len(waits)} missed, {by_readers} served by readers; a raw reader missed {behind}",
            evidence,
        )


class ANewWriterTakesOver(SurvivesALoss):
    """A new writer takes over when the writer is lost, and the old one comes back as a reader.

    Without `synchronous_standby_names` acknowledged writes can be lost; otherwise the readers' logs have the reason.
    """

    def take_away(self, cluster: Cluster) -> str:
        """Kill the writer and promote the reader that is furthest ahead."""
        done = fail_over(cluster, kill=True)
        self.former = done.former
        return f"{done.former} killed, {done.writer} promoted in {done.seconds:.2f} s"

    def give_back(self, cluster: Cluster) -> None:
        """Bring the former writer back."""
        if self.former is not None:
            bring_back(cluster, self.former)


def _look(unit: PinnedSession, key: Key) -> tuple[str, bool]:
    return unit.node, unit.scalar(select(Marker.id).where(Marker.id == key)) is not None


CHECKS = (
    ServersAreSetUp,
    ExactlyOneNodeWrites,
    EveryReaderStreams,
    EveryTableIsReplicated,
    CommitsWaitForAReader,
    ReadersRefuseWrites,
    NobodyMissesTheirOwnWrites,
)

CHAOS = (ANewWriterTakesOver,)
