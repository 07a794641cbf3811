"""The checks that only CockroachDB needs. What a stand-in cannot show is skipped, and said.

They read `crdb_internal`, which is open to the role of the operations, and whose contents may change with a version.
"""

import re
from abc import abstractmethod
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from ...db import PrimaryKeyMixin, RetryPolicy, PinnedSession
from ...db.retry import sqlstate_of
from ..cluster import Cluster
from ..connections import Unreachable, connect_all
from ..topology import internals, is_stand_in, software
from .check import Check, Finding, Status, Subject
from .checks import SurvivesALoss, mark
from .scratch import Base

MOST_SKEW = 0.25
"""Seconds of clock offset, half of what a node is allowed (`--max-offset`); one that is off by more stops itself."""

GRACE = timedelta(days=7)
"""For which more than one node runs without a licence key. https://www.cockroachlabs.com/docs/stable/licensing-faqs"""

SOON = 30
"""Days before a licence key ends from which on that is said. Arbitrary: time to get another."""

REPLICAS = 3
"""Copies of every range: one node may be lost."""


def unproven(subject: Subject) -> Mapping[str, str]:
    """The general checks that mean nothing on this cluster, by name, each with the reason."""
    try:
        with connect_all(subject.admin_urls) as connections:
            if not any(map(is_stand_in, connections.values())):
                return {}
    except Unreachable:
        return {}
    return {
        "RowsReachEveryNode": "a stand-in: one PostgreSQL answers under every name, so nothing has to reach anyone",
{% if keys == 'identity' %}
        "KeysNeverCollide": "a stand-in: its unique_rowid() is a sequence of one server, not what CockroachDB's nodes make",
{% endif %}
    }


class Note(PrimaryKeyMixin, Base):
    """A row that is edited by people who read it a while ago."""

    __tablename__ = "note"

    said: Mapped[str]
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}


class OfCockroachDB(Check):
    """A question to CockroachDB itself. A subclass asks it."""

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)

    def run(self, subject: Subject) -> Finding:
        """Ask, if it is CockroachDB."""
        with connect_all(subject.admin_urls) as connections:
            for connection in connections.values():
                if is_stand_in(connection):
                    return Finding(Status.SKIP, f"a {software(connection)}")
            try:
                return self.ask(connections, subject)
            except DBAPIError as error:
                if sqlstate_of(error) in ("42501", "42P01"):
                    return Finding(Status.SKIP, f"it may not or cannot look: {str(error.orig).splitlines()[0]}")
                raise

    @abstractmethod
    def ask(self, connections: Mapping[str, Connection], subject: Subject) -> Finding:
        """Put the question."""


class ItIsCockroachDB(Check):
    """It is CockroachDB, the same version everywhere.

    Finish the upgrade: start the nodes that run the older version with the newer one.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)

    def run(self, subject: Subject) -> Finding:
        """Ask every node what it is."""
        with connect_all(subject.admin_urls) as connections:
            versions = {node: _short(software(connection)) for node, connection in connections.items()}
            stand_in = any(map(is_stand_in, connections.values()))
        if len(set(versions.values())) > 1:
            return Finding(Status.FAIL, ", ".join(f"{node} {version}" for node, version in versions.items()), versions)
        version = next(iter(versions.values()))
        if stand_in:
            return Finding(
                Status.WARN, f"{version}: what is asked of the cluster itself is skipped, the rest is real", versions
            )
        return Finding(Status.PASS, version, versions)


class EveryNodeIsLive(OfCockroachDB):
    """Every node is live.

    Start the node, or, if it is gone for good, decommission it: `cockroach node decommission`.
    """

    def ask(self, connections: Mapping[str, Connection], subject: Subject) -> Finding:
        """Ask one node what it has heard of the others."""
        found = _rows(connections, "SELECT node_id, address, is_live, locality::text FROM {}.gossip_nodes ORDER BY 1")
        dead = [f"node {row.node_id} at {row.address}" for row in found if not row.is_live]
        evidence = {str(row.node_id): {"address": row.address, "locality": row.locality} for row in found}
        if dead:
            return Finding(Status.FAIL, f"not live: {', '.join(dead)}", evidence)
        if len(found) < REPLICAS:
            return Finding(Status.WARN, f"{len(found)} of the {REPLICAS} nodes that it takes to lose one", evidence)
        places = len({row.locality for row in found})
        return Finding(Status.PASS, f"{len(found)} nodes, in {places} localities", evidence)


class EveryRangeHasItsReplicas(OfCockroachDB):
    """Every range has its replicas.

    It takes a minute after a node came back. If it stays: is there room on the disks, and are there nodes enough for the zone?
    """

    def ask(self, connections: Mapping[str, Connection], subject: Subject) -> Finding:
        """Read the zone and what the stores say about themselves."""
        first = next(iter(connections.values()))
        zone = str(first.execute(text("SHOW ZONE CONFIGURATION FOR RANGE default")).one())
        wanted = int(found[1]) if (found := re.search(r"num_replicas = (\d+)", zone)) else 0
        stores = _rows(
            connections,
            "SELECT node_id, range_count, metrics->>'ranges.underreplicated' AS under, metrics->>'ranges.unavailable' AS unavailable "
            "FROM {}.kv_store_status ORDER BY node_id",
        )
        under = sum(int(float(row.under or 0)) for row in stores)
        unavailable = sum(int(float(row.unavailable or 0)) for row in stores)
        evidence = {
            "num_replicas": wanted,
            "under_replicated": under,
            "unavailable": unavailable,
            "ranges": {str(row.node_id): row.range_count for row in stores},
        }
        if unavailable:
            return Finding(Status.FAIL, f"{unavailable} ranges have no majority: they serve nobody", evidence)
        if wanted < REPLICAS:
            return Finding(Status.FAIL, f"num_replicas is {wanted}: the loss of one node stops the cluster", evidence)
        if under:
            return Finding(Status.WARN, f"{under} ranges have fewer than {wanted} replicas", evidence)
        return Finding(Status.PASS, f"{wanted} replicas of each range, none missing", evidence)


class ClocksAgree(OfCockroachDB):
    """The clocks agree.

    Let all nodes follow the same source of time: https://www.cockroachlabs.com/docs/stable/operational-faqs
    """

    def ask(self, connections: Mapping[str, Connection], subject: Subject) -> Finding:
        """Read what each node measured against the others."""
        measured = "SELECT node_id, metrics->>'clock-offset.meannanos' AS nanos FROM {}.kv_node_status ORDER BY 1"
        found = _rows(connections, measured)
        offsets = {str(row.node_id): round(float(row.nanos or 0) / 1e9, 6) for row in found}
        worst = max(offsets, key=lambda node: abs(offsets[node]))
        said = f"node {worst} is {1000 * abs(offsets[worst]):.1f} ms off"
        if abs(offsets[worst]) > MOST_SKEW:
            return Finding(Status.FAIL, said, {"offset_s": offsets})
        return Finding(Status.PASS, f"{said} at worst", {"offset_s": offsets})


class TheLicenceLasts(OfCockroachDB):
    """The licence lasts.

    Without a key a cluster of several nodes runs for seven days, and then takes five transactions at a time:
    https://www.cockroachlabs.com/docs/stable/licensing-faqs
    """

    def ask(self, connections: Mapping[str, Connection], subject: Subject) -> Finding:
        """Read the key, and how long it is valid or how old the cluster is."""
        first = next(iter(connections.values()))
        if not software(first).startswith("CockroachDB"):
            return Finding(Status.SKIP, f"another licence: {_short(software(first))}")
        key = first.scalar(text("SHOW CLUSTER SETTING enterprise.license"))
        if key:
            found = _rows(connections, _EXPIRY)
            if all(row.seconds is None for row in found):
                return Finding(Status.WARN, "a key, and this version does not say for how long it is valid")
            days = int(max(float(row.seconds or 0) for row in found) // 86400)
            status = Status.FAIL if days <= 0 else Status.WARN if days < SOON else Status.PASS
            return Finding(status, f"a key that is valid for {days} days", {"days": days})
        internals(first)
        since = first.scalar(text('SELECT min("timestamp") FROM system.eventlog'))
        age = datetime.now(UTC) - since.replace(tzinfo=since.tzinfo or UTC) if since else GRACE
        left_days = (GRACE - age).days
        evidence = {"age_days": age.days, "grace_left_days": left_days}
        if age >= GRACE:
            return Finding(Status.FAIL, f"no key, and {age.days} days old: five transactions at a time", evidence)
        return Finding(Status.WARN, f"no key: {left_days} of the {GRACE.days} days without one are left", evidence)


class InjectedRaceIsSurvived(OfCockroachDB):
    """A race that CockroachDB lets one lose is run again.

    `db.run` has to be what the application uses: a session of one's own is not run again.
    """

    LOST: ClassVar[int] = 3

    def ask(self, connections: Mapping[str, Connection], subject: Subject) -> Finding:
        """Let the cluster refuse the first attempts of a unit of work."""
        attempts = 0

        def work(unit: PinnedSession) -> None:
            nonlocal attempts
            attempts += 1
            # As a statement of its own it is exempt, and it would stay with the connection.
            unit.execute(text("SET inject_retry_errors_enabled = false"))
            if attempts <= self.LOST:
                unit.execute(text("SET inject_retry_errors_enabled = true"))
            mark(unit, "injected")

        try:
            subject.scratch.database.using(retry=RetryPolicy(attempts=10)).run(work)
        except DBAPIError as error:
            if sqlstate_of(error) == "42704":
                return Finding(Status.SKIP, "this version cannot be told to let one lose a race")
            raise
        if attempts != self.LOST + 1:
            return Finding(Status.FAIL, f"{attempts} attempts where {self.LOST} were to be refused")
        return Finding(Status.PASS, f"{self.LOST} attempts refused with 40001, the next one committed")


class LostUpdateIsNoticed(Check):
    """A lost update is noticed.

    A version column finds what others changed since a row was read by the number of rows that its UPDATE changed: the driver, or
    a proxy in between, has to pass that on.
    """

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)

    def run(self, subject: Subject) -> Finding:
        """Let two people edit what both have read."""
        database = subject.scratch.database

        def write(unit: PinnedSession) -> Note:
            note = Note(said="first")
            unit.add(note)
            return note

        def edit(unit: PinnedSession, note: Note, said: str) -> None:
            # As it was read, whatever has become of it.
            mine = unit.merge(note, load=False)
            mine.said = said

        note = database.run(write)
        database.run(edit, note, "second")
        try:
            database.run(edit, note, "third")
        except StaleDataError:
            return Finding(Status.PASS, "who edits what another has changed meanwhile is told so")
        return Finding(Status.FAIL, "an edit went over another one, and nobody was told")


class TheOthersGoOn(SurvivesALoss):
    """The others go on when a node is lost.

    Has every range three replicas? Did the application reach the other nodes?
    """

    limit: ClassVar[float] = 120.0
    # Another node takes over after 5 to 14 s.
    DEADLINE: ClassVar[float] = 30.0
    AFTER: ClassVar[float] = 15.0

    def run(self, subject: Subject) -> Finding:
        """Kill the first node under load, if it has anything to lose."""
        with connect_all(subject.admin_urls) as connections:
            if any(map(is_stand_in, connections.values())):
                return Finding(Status.SKIP, "a stand-in: there is one copy of the data, and no node has it to lose")
        return super().run(subject)

    def take_away(self, cluster: Cluster) -> str:
        """Kill the first node."""
        node = cluster.status()[0].name
        cluster.stop_node(node, kill=True)
        return f"{node} killed and started again"

    def give_back(self, cluster: Cluster) -> None:
        """Start it again."""
        cluster.start_node(cluster.status()[0].name)


# The metric goes by either name, by version.
_EXPIRY = """
    SELECT coalesce(metrics->>'seconds.until.enterprise.license.expiry', metrics->>'seconds.until.license.expiry') AS seconds
    FROM {}.kv_node_status
"""


def _rows(connections: Mapping[str, Connection], query: str) -> list[Row[Any]]:
    """What one node answers; `{}` stands for the schema of the internals."""
    first = next(iter(connections.values()))
    return list(first.execute(text(query.format(internals(first)))))


def _short(software: str) -> str:
    """The name and the version, without when and by what it was built."""
    return software.partition(" (")[0]


CHECKS = (
    ItIsCockroachDB,
    EveryNodeIsLive,
    EveryRangeHasItsReplicas,
    ClocksAgree,
    TheLicenceLasts,
    InjectedRaceIsSurvived,
    LostUpdateIsNoticed,
)

CHAOS = (TheOthersGoOn,)
