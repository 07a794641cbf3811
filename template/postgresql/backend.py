CHUNK_ROWS = 10_000
"""How many rows of a bulk load make a transaction, if nobody says."""

CHUNK_BYTES = 64_000_000
"""About how many bytes of text and the like do: what memory holds of a load."""

RETRYABLE = frozenset({"40001", "40P01"})
"""serialization_failure, deadlock_detected: the transaction is rolled back and may simply run again."""

AMBIGUOUS = frozenset({"40003", "08007"})
"""statement_completion_unknown, transaction_resolution_unknown."""

UNAVAILABLE = frozenset({"08000", "08001", "08003", "08004", "08006", "53300", "57P01", "57P02", "57P03", "25P03"})
"""The connection is gone, or the node takes no more: connection exceptions, too_many_connections, shutdown, starting up."""

READ_ONLY = frozenset({"25006"})
"""read_only_sql_transaction."""

ROOM_FOR_CONNECTIONS = """
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true)::int, 0)
"""
"""How many connections a server has for applications."""

LOGIN_REFUSED = re.compile(
    r"authentication failed|does not exist|no pg_hba\.conf entry|permission denied|not permitted|no password supplied"
)
"""What a server says (in English) when the same login will fail again. libpq reports no SQLSTATE for it."""


def is_aborted(connection: Connection) -> bool:
    """Whether a statement failed in the current transaction, so that COMMIT would roll it back."""
    driver_connection = connection.connection.driver_connection
    return driver_connection is not None and driver_connection.info.transaction_status.name == "INERROR"
