"""The checks that only a writer with readers needs."""

import time
from typing import ClassVar

from sqlalchemy import text

from ..connections import connect_all
from ..topology import TopologyError, links, the_writer, unreplicable_tables
from .check import Check, Finding, Status, Subject

CLOCK_SKEW = 0.5
"""Seconds by which the clocks may differ. Arbitrary: far above what NTP allows, far below what harms."""


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
            while True:
                found = links(connections)
                broken = [link for link in found if not link.is_up]
                if not broken or time.monotonic() > deadline:
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


CHECKS = (ServersAreSetUp, ExactlyOneNodeWrites, EveryReaderStreams, EveryTableIsReplicated)
