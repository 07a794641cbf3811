"""Tables for the checks to write to, in a schema of their own, made the way the application's tables are made.

They depend on no model of the application, so `verify` outlives every change of the domain.
"""

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import BigInteger, Connection, ForeignKey, text
from sqlalchemy.engine import URL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateSchema, DropSchema

from ...db import Database, Key, Keyed, RetryPolicy, keys
from ..connections import connect_all, engine_for
from ..schema import SCRATCH_PREFIX
from ..topology import drop_schema, node_number, schema_nodes, settle, writers

STALE = 3600
"""Seconds after which the scratch schema of a run that was killed may be removed by another."""


class Base(DeclarativeBase):
    """The scratch tables."""

    type_annotation_map = {int: BigInteger}


class Marker(Keyed, Base):
    """A row that is looked for on the other nodes."""

    __tablename__ = "marker"

    origin: Mapped[str]


class Account(Keyed, Base):
    """An account of the ledger."""

    __tablename__ = "account"

    owner: Mapped[str]


class Entry(Keyed, Base):
    """One side of a transfer."""

    __tablename__ = "entry"

    account_id: Mapped[Key] = mapped_column(ForeignKey("account.id"), index=True)
    amount: Mapped[int]


@dataclass(frozen=True)
class Scratch:
    """The scratch schema on every node, and the application's way to write to it."""

    schema: str
    database: Database
    admin_urls: Mapping[str, URL]

    @classmethod
    def create(cls, urls: Mapping[str, URL], admin_urls: Mapping[str, URL], owner: str) -> "Scratch":
        """Make the tables on every node, and let every node know of them before the first row."""
        schema = f"{SCRATCH_PREFIX}{int(time.time())}_{secrets.token_hex(3)}"
        database = Database(
            urls,
            retry=RetryPolicy(attempts=50, deadline=10.0),
            application_name="verify",
            execution_options={"schema_translate_map": {None: schema}},
        )
        scratch = cls(schema, database, admin_urls)
        with connect_all(admin_urls) as connections:
            _drop_stale(connections)
            nodes = schema_nodes(connections)
            try:
                for node in nodes:
                    with scratch.admin(node) as connection:
                        connection.execute(CreateSchema(schema))
                        Base.metadata.create_all(connection)
                        quote = connection.dialect.identifier_preparer.quote
                        if connection.engine.url.username != owner:
                            for kind in ("TABLES", "SEQUENCES"):
                                connection.exec_driver_sql(
                                    f"GRANT ALL ON ALL {kind} IN SCHEMA {schema} TO {quote(owner)}"
                                )
                            connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {quote(owner)}")
                settle(connections)
                for node in writers(connections):
                    keys.claim_node(connections[node], node_number(connections[node]))
            except BaseException:
                # Nothing was written yet, so nothing can be on its way to tables that are gone.
                for node in nodes:
                    connections[node].execute(DropSchema(schema, cascade=True, if_exists=True))
                raise
        return scratch

    @contextmanager
    def admin(self, node: str) -> Iterator[Connection]:
        """A transaction on one node, for the role that may do everything."""
        engine = engine_for(self.admin_urls[node])
        with (
            engine.connect().execution_options(schema_translate_map={None: self.schema}) as connection,
            connection.begin(),
        ):
            yield connection

    def drop(self) -> None:
        """Remove the schema from every node."""
        self.database.dispose()
        with connect_all(self.admin_urls) as connections:
            drop_schema(connections, self.schema)


def _drop_stale(connections: Mapping[str, Connection]) -> None:
    """Remove what a killed run left behind."""
    first = next(iter(connections.values()))
    names = first.scalars(
        text("SELECT nspname FROM pg_namespace WHERE starts_with(nspname, :prefix)"), {"prefix": SCRATCH_PREFIX}
    )
    for name in names.all():
        born = name.removeprefix(SCRATCH_PREFIX).partition("_")[0]
        if born.isdigit() and int(born) < time.time() - STALE:
            drop_schema(connections, name)
