"""The table on isolation in README.md, whose lines `verify --isolation` shows."""

from ..isolation import Expected, Line, LineCheck
from ..probes import ConflictingUpdates, LongFork, MonotonicReads, OwnWrites, WriteSkew
from .one_server import ONE_SERVER

POSSIBLE, RULED_OUT = Expected

TABLE = (
    *ONE_SERVER,
    Line(
        ConflictingUpdates(where="two nodes, SERIALIZABLE and locks", level="SERIALIZABLE", nodes=2, lock=True),
        POSSIBLE,
        "the last update wins: add rows instead, or use `db.using(key=…)`",
    ),
    Line(
        WriteSkew(where="two nodes, SERIALIZABLE and locks", level="SERIALIZABLE", nodes=2, lock=True),
        POSSIBLE,
        "send work on the same rows to one node: `db.using(key=…)`",
    ),
    Line(
        LongFork(where="two writers and readers on all nodes"), POSSIBLE, "read where it is written: `db.using(key=…)`"
    ),
    Line(
        MonotonicReads(where="a client that moves from node to node", moves=True), POSSIBLE, "stay: `db.using(key=…)`"
    ),
    Line(
        MonotonicReads(where="a client that stays", options={"key": "client"}),
        RULED_OUT,
        "one node serves it, as long as that node answers",
    ),
    Line(OwnWrites(where="a client that moves from node to node", moves=True), POSSIBLE, "stay: `db.using(key=…)`"),
    Line(OwnWrites(where="a client that stays"), RULED_OUT, "one node serves it, as long as that node answers"),
)
"""Lines of this cluster."""

CHECK: type[LineCheck] = LineCheck
"""Base of the checks of the lines."""
