"""The table on isolation in README.md, whose lines `verify --isolation` shows."""

from ....db.replicas import use_token
from ..isolation import Expected, Line, LineCheck
from ..probes import LongFork, MonotonicReads, OwnWrites
from .one_server import ONE_SERVER

POSSIBLE, RULED_OUT = Expected

TABLE = (
    *ONE_SERVER,
    Line(LongFork(where="readers beside the writer"), POSSIBLE, "read on the writer, with `db.run`"),
    Line(MonotonicReads(where="`db.read`, of what others write"), POSSIBLE, "stay on a reader: `db.using(key=…)`"),
    Line(
        MonotonicReads(where="`db.using(key=…).read`", options={"key": "client"}),
        RULED_OUT,
        "one reader serves it, as long as that reader answers",
    ),
    Line(
        OwnWrites(where="`db.read` without the token of the write", between=lambda: use_token(None), elsewhere=True),
        POSSIBLE,
        "pass the token on: `ReadYourWrites`, `use_token(…)`",
    ),
    Line(
        OwnWrites(where="`db.read` with the token of the write", elsewhere=True),
        RULED_OUT,
        "a reader that has not replayed the write serves no read",
    ),
)
"""Lines of this cluster."""

CHECK: type[LineCheck] = LineCheck
"""Base of the checks of the lines."""
