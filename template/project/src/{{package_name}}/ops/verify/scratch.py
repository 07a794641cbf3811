"""The scratch schema: tables for checks to write to, created as the application's tables are.

They depend on no model of the application, so `verify` works with any domain.
"""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import BigInteger, Connection, ForeignKey, select, text
from sqlalchemy.engine import URL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateSchema, DropSchema

from ...db import Database, Key, PinnedSession, PrimaryKeyMixin, RetryPolicy, keys
from ..schema import SCRATCH_PREFIX
from ..topology import Topology

STALE = 3600
"""Age in seconds at which the scratch schema of a killed run is dropped by the next one."""


class Base(DeclarativeBase):
    """Base of the scratch tables."""

    type_annotation_map = {int: BigInteger}


class Account(PrimaryKeyMixin, Base):
    """An account of the ledger, or a row to be found on other nodes."""

    __tablename__ = "account"

    owner: Mapped[str]


class Entry(PrimaryKeyMixin, Base):
    """One side of a transfer."""

    __tablename__ = "entry"

    account_id: Mapped[Key] = mapped_column(ForeignKey("account.id"), index=True)
    amount: Mapped[int]


@dataclass(frozen=True)
class Scratch:
    """The scratch schema, which exists on every node, and a Database that writes to it."""

    schema: str
    database: Database
    owner: str

    @classmethod
    def create(cls, topology: Topology, urls: Mapping[str, URL], owner: str) -> "Scratch":
        """Create the tables on every node, for the role `owner` to use, and drop what killed runs left behind.

        Raises:
            TopologyError: a link does not work.
        """
        schema = f"{SCRATCH_PREFIX}{int(time.time())}_{secrets.token_hex(3)}"
        database = Database(
            urls,
            retry=RetryPolicy(attempts=50, deadline=10.0),
            application_name="verify",
            execution_options={"schema_translate_map": {None: schema}},
        )
        scratch = cls(schema, database, owner)
        _drop_stale(topology)
        nodes = topology.ddl_nodes()
        views = scratch.views(topology.connections)
        try:
            for node in nodes:
                views[node].execute(CreateSchema(schema))
                Base.metadata.create_all(views[node])
                scratch.grant(views[node])
            topology.wait_for_ddl()
            for node in topology.writers():
                keys.set_sequence_node(topology.connections[node], topology.node_number(node))
        except BaseException:
            # No row was written, so none can still be on its way to a table that is gone.
            for node in nodes:
                topology.connections[node].execute(DropSchema(schema, cascade=True, if_exists=True))
            raise
        return scratch

    def views(self, connections: Mapping[str, Connection]) -> Mapping[str, Connection]:
        """Return connections on which the tables without a schema are those in the scratch schema."""
        options = {"schema_translate_map": {None: self.schema}}
        return {node: connection.execution_options(**options) for node, connection in connections.items()}

    def grant(self, connection: Connection) -> None:
        """Let the application's role use the tables that are in the schema by now."""
        if connection.engine.url.username != self.owner:
            owner = connection.dialect.identifier_preparer.quote(self.owner)
            for kind in ("ALL TABLES IN SCHEMA", "ALL SEQUENCES IN SCHEMA", "SCHEMA"):
                connection.exec_driver_sql(f"GRANT ALL ON {kind} {self.schema} TO {owner}")


def open_accounts(session: PinnedSession, owner: str, count: int = 1) -> list[Key]:
    """Open `count` accounts at once and return their keys."""
    accounts = [Account(owner=owner) for _ in range(count)]
    session.add_all(accounts)
    session.flush()
    return [account.id for account in accounts]


def open_once(session: PinnedSession, owner: str) -> None:
    """Open an account unless `owner` has one."""
    if session.scalar(select(Account.id).where(Account.owner == owner)) is None:
        open_accounts(session, owner)


def _drop_stale(topology: Topology) -> None:
    """Drop the schemas that killed runs left behind."""
    first = next(iter(topology.connections.values()))
    for name in first.scalars(text("SELECT nspname FROM pg_namespace")).all():
        born = name.removeprefix(SCRATCH_PREFIX).partition("_")[0]
        if name.startswith(SCRATCH_PREFIX) and born.isdigit() and int(born) < time.time() - STALE:
            topology.drop_schema(name)
