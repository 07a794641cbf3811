"""The lines on isolation that hold for transactions on one PostgreSQL server."""

from ..isolation import Expected, Line
from ..probes import LostUpdate, ReadSkew, WriteSkew

POSSIBLE, RULED_OUT = Expected

REFUSED = "the server refuses one with 40001, and `db.run` retries it"

ONE_SERVER = (
    Line(
        LostUpdate(where="one node, READ COMMITTED"),
        POSSIBLE,
        "lock the row, or change it in one UPDATE",
    ),
    Line(
        LostUpdate(where="one node, READ COMMITTED, `with_for_update(key_share=True)`", lock=True),
        RULED_OUT,
        "the second transaction waits for the lock",
    ),
    Line(LostUpdate(where="one node, REPEATABLE READ", level="REPEATABLE READ"), RULED_OUT, REFUSED),
    Line(ReadSkew(where="one node, READ COMMITTED"), POSSIBLE, "read with REPEATABLE READ"),
    Line(
        ReadSkew(where="one node, REPEATABLE READ", level="REPEATABLE READ"),
        RULED_OUT,
        "all statements have one snapshot",
    ),
    Line(
        WriteSkew(where="one node, REPEATABLE READ", level="REPEATABLE READ"),
        POSSIBLE,
        "SERIALIZABLE, or lock both rows",
    ),
    Line(WriteSkew(where="one node, SERIALIZABLE", level="SERIALIZABLE"), RULED_OUT, REFUSED),
)
"""Lines for two transactions whose node is the same."""
