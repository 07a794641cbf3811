"""CockroachDB, as the application and its operations have to treat it.

One database is spread over all nodes, and every node serves all of it. Transactions are SERIALIZABLE: who loses a race is told so
(40001), perhaps only by COMMIT. Codes: https://www.cockroachlabs.com/docs/stable/common-errors, and those of PostgreSQL.
"""

import re
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection

IsolationLevel: TypeAlias = Literal["READ COMMITTED", "SERIALIZABLE"]
"""The levels that a unit of work may ask for. READ COMMITTED loses updates that are not locked first."""

ISOLATION: IsolationLevel = "SERIALIZABLE"
"""Of a unit of work that asks for nothing else."""

HISTORY_IS_SHARED = True
"""What became of a COMMIT that was not answered, every node knows, whoever was asked."""

COPY = True
"""Whether there is COPY FROM STDIN."""

CHUNK_ROWS = 2_000
"""How many rows of a bulk load make a transaction, if nobody says: each row is written to a majority of the nodes."""

CHUNK_BYTES = 4_000_000
"""About how many bytes of text and the like do: a transaction has to fit into commands of 64 MB, indexes included."""

RETRYABLE = frozenset({"40001", "40P01"})
"""serialization_failure ("restart transaction"); deadlock_detected comes from the local stand-in only."""

AMBIGUOUS = frozenset({"40003", "08007"})
"""statement_completion_unknown ("result is ambiguous"), transaction_resolution_unknown: also in the middle of a transaction."""

UNAVAILABLE = frozenset(
    {"08000", "08001", "08003", "08004", "08006", "53300", "57P01", "57P02", "57P03", "25P03", "58C00", "58C01"}
)
"""The connection is gone, the node drains or takes no more, or it does not reach a majority (58C00)."""

READ_ONLY = frozenset({"25006"})
"""read_only_sql_transaction."""

ROOM_FOR_CONNECTIONS: str | None = None
"""Nothing to ask: no node has a limit of its own. What slows the cluster down is in `PoolLimits.vcpus`."""

LOGIN_REFUSED = re.compile(
    r"authentication failed|does not exist|no pg_hba\.conf entry|permission denied|not permitted|no password supplied"
    r"|password authentication|is not valid|NOLOGIN|certificate|identity"
)
"""What a server says (in English) when the same login will fail again. libpq reports no SQLSTATE for it."""


def is_aborted(connection: Connection) -> bool:
    """Whether a statement failed in the current transaction, so that COMMIT would roll it back."""
    driver_connection = connection.connection.driver_connection
    return driver_connection is not None and driver_connection.info.transaction_status.name == "INERROR"


def software(driver_connection: Any) -> str | None:
    """What a server calls itself at login; None if it is no CockroachDB.

    A stand-in says so in words.
    """
    version: str | None = driver_connection.info.parameter_status("crdb_version")
    return version
