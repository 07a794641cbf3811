"""The table on isolation in README.md, whose lines `verify --isolation` shows."""

from ...topology import is_stand_in
from ..check import CheckContext, CheckResult, Status, skipped
from ..isolation import Expected, Line, LineCheck
from ..probes import LongFork, LostUpdate, MonotonicReads, OwnWrites, ReadSkew, WriteSkew

POSSIBLE, RULED_OUT = Expected

REFUSED = "the cluster refuses one with 40001, and `db.run` retries it"

TABLE = (
    Line(LostUpdate(where="two nodes, SERIALIZABLE", nodes=2), RULED_OUT, REFUSED),
    Line(
        LostUpdate(where="two nodes, READ COMMITTED", level="READ COMMITTED", nodes=2),
        POSSIBLE,
        "lock the row, or change it in one UPDATE",
    ),
    Line(
        LostUpdate(where="two nodes, READ COMMITTED, `with_for_update()`", level="READ COMMITTED", nodes=2, lock=True),
        RULED_OUT,
        "the second transaction waits for the lock",
    ),
    Line(ReadSkew(where="two nodes, SERIALIZABLE", nodes=2), RULED_OUT, "a transaction reads as of one time"),
    Line(ReadSkew(where="two nodes, READ COMMITTED", level="READ COMMITTED", nodes=2), POSSIBLE, "SERIALIZABLE"),
    Line(WriteSkew(where="two nodes, SERIALIZABLE", nodes=2), RULED_OUT, REFUSED),
    Line(
        WriteSkew(where="two nodes, READ COMMITTED", level="READ COMMITTED", nodes=2),
        POSSIBLE,
        "SERIALIZABLE, or lock both rows",
    ),
    Line(LongFork(where="writers and readers on all nodes"), RULED_OUT, "there is one history"),
    Line(MonotonicReads(where="a client that moves from node to node", moves=True), RULED_OUT, "there is one history"),
    Line(OwnWrites(where="a client that moves from node to node", moves=True), RULED_OUT, "there is one history"),
    Line(OwnWrites(where="`db.using(stale=True)`", options={"stale": True}), POSSIBLE, "read without `stale`"),
)
"""Lines of this cluster."""


class CHECK(LineCheck):
    """Base of the checks of the lines."""

    def run(self, context: CheckContext) -> CheckResult:
        """Run the probe on a stand-in, too, where it shows that the probe works, and nothing else."""
        result = super().run(context)
        with context.topology() as topology:
            if result.status is Status.PASS and any(map(is_stand_in, topology.connections.values())):
                return skipped(f"a stand-in: {result.summary}, which says nothing about CockroachDB", result.evidence)
        return result
