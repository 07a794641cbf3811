"""The application's databases as if they were empty, for checks to work with."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import MetaData, delete
from sqlalchemy.exc import DBAPIError

from ....databases import DATABASES, DECISION_LOG
from ....db import DistributedSQLError, PinnedSession, RetryPolicy, outbox, table_sync, twophase
from ....db.databases import Databases, NamedDatabase
from ...topology import roll_back_prepared
from ..check import CheckContext
from ..scratch import Base


@contextmanager
def playground(context: CheckContext, *models: MetaData) -> Iterator[Databases]:
    """Yield the databases with empty tables: in the scratch schema, and in a SQLite file of its own.

    Args:
        context: cluster to work on.
        models: tables to create on each server, beside those of the runtime.
    """
    owned = [twophase.metadata, outbox.metadata, table_sync.source_metadata, table_sync.target_metadata]
    with context.topology() as topology:
        for spec in DATABASES:
            if spec.node is not None:
                context.scratch.create_tables(topology.connections[spec.node], *owned, *models)
    with (
        tempfile.TemporaryDirectory() as folder,
        Databases(
            DATABASES,
            context.urls,
            folder=Path(folder),
            decision_log=DECISION_LOG,
            application_name="verify",
            transaction_pooler=context.transaction_pooler,
            retry=RetryPolicy(attempts=50, deadline=10.0),
            execution_options=context.scratch.options,
        ) as databases,
    ):
        with databases.file("catalog").engine_for().begin() as connection:
            outbox.metadata.create_all(connection)
            connection.exec_driver_sql("CREATE TABLE entry (amount int)")
        try:
            yield databases
        finally:
            with suppress(DBAPIError, DistributedSQLError):
                for database in databases.servers.values():
                    _roll_back(database, prefix_of(context))
                    # Other checks use the same tables, and count their rows.
                    database.run(_clear)


def prefix_of(context: CheckContext) -> str:
    """Return the beginning of the names of transactions that this run prepares; dropping its schema ends them."""
    return f"{twophase.PREFIX}{context.scratch.schema}"


def _roll_back(database: NamedDatabase, prefix: str) -> None:
    """Roll back the transactions prepared under names with this prefix."""
    with database.engine_for().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        roll_back_prepared(connection, prefix)


def _clear(session: PinnedSession) -> None:
    for table in reversed(Base.metadata.sorted_tables):
        session.execute(delete(table))
