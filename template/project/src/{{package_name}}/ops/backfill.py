"""Fill a column of a large table in batches, in a revision with `changes = "data"`.

    def upgrade() -> None:
        backfill("account", "holder = owner", where="holder IS DISTINCT FROM owner")

Each batch is a transaction of its own, which is retried if it loses a race. An interrupted backfill is resumed by
running `migrate` again: `where` leaves out the rows that are done.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

from alembic import op
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from ..db.retry import Verdict, classify
from .base import MigrationError

ATTEMPTS = 50
"""Number of attempts at a batch. Arbitrary; each follows a lost race."""


def backfill(table: str, assignments: str, *, where: str = "true", rows: int = 1000, rest: float = 1.0) -> int:
    """Update the rows of a table in the order of their primary key; return how many.

    Args:
        table: name of the table, as SQL has it.
        assignments: the part of an UPDATE that follows SET.
        where: condition for the rows that still need it; it must not hold for a row that is done.
        rows: number of rows in a batch.
        rest: pause between two batches, in multiples of the time that a batch took.

    Raises:
        MigrationError: the table has no primary key, or a batch lost a race again and again; earlier batches stay.
    """
    context = op.get_context()
    if context.as_sql:
        op.execute(f"UPDATE {table} SET {assignments} WHERE {where}")  # noqa: S608 - as the revision has it
        return 0
    connection = op.get_bind()
    keys: Sequence[str] = connection.scalars(text(_KEY), {"table": table}).all()
    if not keys:
        raise MigrationError(f"a backfill needs a primary key, and table {table} has none")
    paused, pause = connection.info.get("pause", (ExitStack(), nullcontext))
    done, last = 0, None
    with context.autocommit_block():
        # The changes of the revision before this are committed.
        paused.close()
        while True:
            started = time.monotonic()
            with pause():
                found = _update_batch(connection, table, assignments, where, keys, last, rows)
            if found is None:
                break
            *last, number = found
            done += number
            time.sleep(rest * (time.monotonic() - started))
    paused.enter_context(pause())
    return done


def _update_batch(
    connection: Connection, table: str, assignments: str, where: str, keys: Sequence[str], last: Any, rows: int
) -> Any:
    """Return the last key of the batch and its number of rows; None if there was no row left."""
    columns = ", ".join(keys)
    names = [f"key_{number}" for number in range(len(keys))]
    selected = ", ".join(f"{key} AS {name}" for key, name in zip(keys, names, strict=True))
    joined = " AND ".join(f"changed.{key} = batch.{name}" for key, name in zip(keys, names, strict=True))
    after = f"AND ({columns}) > ({', '.join(f':{name}' for name in names)})" if last else ""
    statement = text(f"""
        WITH batch AS MATERIALIZED (
            SELECT {selected} FROM {table} WHERE ({where}) {after} ORDER BY {columns} LIMIT {rows} FOR UPDATE
        ), updated AS (UPDATE {table} AS changed SET {assignments} FROM batch WHERE {joined})
        SELECT {", ".join(names)}, count(*) OVER () FROM batch
        ORDER BY {", ".join(f"{name} DESC" for name in names)} LIMIT 1
    """)  # noqa: S608 - as the revision has it
    values = dict(zip(names, last, strict=True)) if last else {}
    for attempt in range(ATTEMPTS):
        try:
            return connection.execute(statement, values).one_or_none()
        except DBAPIError as error:
            if classify(error) is not Verdict.RETRY or attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.01)
    return None


_KEY = """
    SELECT quote_ident(attname) FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
    WHERE indrelid = to_regclass(:table) AND indisprimary ORDER BY array_position(indkey::int2[], attnum)
"""
