LOCK = 20_011
"""Of the advisory lock that keeps two runners of migrations apart. Arbitrary."""


@contextmanager
def alone(connection: Connection) -> Iterator[bool]:
    """Whether nobody else is inside such a block on the same node; the server forgets who is gone."""
    is_alone = connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LOCK}) is True
    try:
        yield is_alone
    finally:
        if is_alone:
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": LOCK})
