"""Checks that prove nothing where one PostgreSQL stands in for the cluster."""

from abc import abstractmethod
from typing import ClassVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from ....db.retry import sqlstate_of
from ...topology import is_stand_in
from ..check import Check, CheckContext, CheckResult, skipped
from ..scratch import Entry
from . import concurrency, replication


class RealClusterCheck(Check):
    """Base of the checks that are skipped on a stand-in; the next base class has the check itself."""

    missing: ClassVar[str]
    """Reason why a stand-in proves nothing."""

    def run(self, context: CheckContext) -> CheckResult:
        """Skip on a stand-in."""
        with context.topology() as topology:
            if any(map(is_stand_in, topology.connections.values())):
                return skipped(f"a stand-in: {self.missing}")
        return super().run(context)  # type: ignore[safe-super]


class CockroachDBCheck(Check):
    """Base of the checks that ask CockroachDB about itself.

    They read `crdb_internal`, whose contents may change with a version and which not every role may read.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Ask, and skip if the cluster cannot or may not answer."""
        try:
            with context.topology() as topology:
                connection = next(iter(topology.connections.values()))
                if is_stand_in(connection):
                    return skipped("a stand-in: it cannot answer this")
                return self.ask(connection, context)
        except DBAPIError as error:
            if sqlstate_of(error) in ("42501", "42P01", "0A000"):
                return skipped(f"no answer: {str(error.orig).splitlines()[0]}")
            raise

    @abstractmethod
    def ask(self, connection: Connection, context: CheckContext) -> CheckResult:
        """Run the check with a connection to one node."""


class RowsReachEveryNode(RealClusterCheck, replication.RowsReachEveryNode):
    """Rows reach every node.

    `status` and the logs of the nodes show which of them has lost the others.
    """

    missing = "one PostgreSQL answers under every name, so there is nothing to replicate"


class KeysNeverCollide(RealClusterCheck, concurrency.KeysNeverCollide):
    """Keys never collide.

    Let the default of the column make the keys, and set none by hand.
    """

    missing = "its unique_rowid() is a sequence of one server, not what CockroachDB's nodes make"

    def run(self, context: CheckContext) -> CheckResult:
        """Skip on a stand-in if the server makes the keys."""
        if Entry.metadata.tables[Entry.__tablename__].autoincrement_column is None:
            return concurrency.KeysNeverCollide.run(self, context)
        return super().run(context)


class TheOthersGoOn(RealClusterCheck, replication.NodeLossCheck):
    """The others go on when a node is lost.

    Make sure that every range has three replicas, and that the application can reach the other nodes.
    """

    missing = "there is one copy of the data, and no node has it to lose"
    timeout = 120.0
    # Another node takes over after 5 to 14 s.
    DEADLINE = 30.0
    AFTER = 15.0
