"""The table on isolation in README.md, whose lines `verify --isolation` shows."""

from ..isolation import Expected, Line, LineCheck
from ..probes import LongFork, MonotonicReads, OwnWrites
from .one_server import ONE_SERVER

TABLE = (
    *ONE_SERVER,
    Line(LongFork(where="one database", seconds=5), Expected.RULED_OUT, "snapshots of one server have one order"),
    Line(MonotonicReads(where="one database"), Expected.RULED_OUT, "there is one copy of each row"),
    Line(OwnWrites(where="one database"), Expected.RULED_OUT, "there is one copy of each row"),
)
"""Lines of this cluster."""

CHECK: type[LineCheck] = LineCheck
"""Base of the checks of the lines."""
