"""The nodes of a cluster as the operations see them, with one hook for everything that depends on the database.

`BaseTopology` describes independent servers. `ops/topology.py` has the subclass for the database of this project.
"""

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from sqlalchemy import URL, Connection, MetaData, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DropSchema
from typer import Typer

from ..db import Database
from ..settings import Settings
from . import indexes
from .effects import Effect

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

Lock: TypeAlias = Literal["migration", "verify"]
"""Lock that one process can have."""

Changes: TypeAlias = Literal["schema", "data", "indexes"]
"""Subject of a revision, `changes` in its file: the schema, rows, or indexes without blocking writers."""

Pause: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Function that keeps clients from writing within a block, which begins when every node has what they wrote."""


class OperationError(Exception):
    """The operation cannot be done; commands print the message and exit with status 2."""


class MigrationError(OperationError):
    """A migration could not be run, or the nodes do not agree; the message names the place and the cause."""


class TopologyError(OperationError):
    """The cluster is not in the state it should be in; the message names the nodes and the cause."""


@dataclass(frozen=True)
class Step:
    """One revision on one node, about to run, or to be undone."""

    revision: str
    title: str
    node: str
    back: bool = False


@dataclass(frozen=True)
class Link:
    """One direction of replication, from `origin` to `receiver`."""

    origin: str
    receiver: str
    state: str
    is_up: bool
    """True if changes flow, as far as both ends can tell."""
    is_lost: bool = False
    """True if it does not come back by waiting."""
    advice: str = ""
    """Statement that mends it, after the name of the node to run it on and a colon."""
    lag: float | None = None
    """Seconds by which the receiver is behind, by the origin's view of it; None if nothing is on its way."""

    @property
    def name(self) -> str:
        """Return both ends."""
        return f"{self.origin}→{self.receiver}"

    @property
    def explanation(self) -> str:
        """Return the link with its state, and with the advice if there is one."""
        return f"{self}; {self.advice}" if self.advice else str(self)

    def __str__(self) -> str:
        return f"{self.name} {self.state}"


class BaseTopology:
    """Independent servers: no links, and nothing to wait for.

    The connections, one per node, are in autocommit, for an administrator: they read and change the state of the nodes
    and of their links, and nothing that the owner of the tables or the application defines. Methods that look at links
    raise TopologyError if a link does not work.
    """

    system_schemas: ClassVar[frozenset[str]] = frozenset()
    """Schemas that belong to the software of the cluster, not to the application."""
    link_extensions: ClassVar[frozenset[str]] = frozenset()
    """Extensions of the server that link nodes, which a scratch database must not have."""
    nodes_without_models: ClassVar[frozenset[str]] = frozenset()
    """Nodes whose database does not hold the tables of models.py."""
    unlogged_tables: ClassVar[str] = "a crash of its server empties it"
    """Reason why a migration must not make a table UNLOGGED."""
    refused: ClassVar[Sequence[tuple[str, str]]] = ()
    """Statements that no revision may contain: a pattern for the result of `without_literals`, and the reason."""
    refused_in: ClassVar[Mapping[Changes, Sequence[tuple[str, str]]]] = {}
    """Statements that a revision with this subject must not contain."""
    each_node_computes: ClassVar[bool] = False
    """True if each node computes the default of a new column for the rows there are, so that functions can differ."""
    refused_effects: ClassVar[Mapping[str, str]] = {}
    """Effects of a revision that cannot be had, by their kind, each with the reason and the way out."""
    paused_effects: ClassVar[Mapping[str, str]] = {}
    """Effects that only a revision with `contract = True` may have, by their kind, each with reason and way out."""
    can_rehearse: ClassVar[bool] = True
    """True if a transaction shows its locks and its schema changes, so that `migrate --plan` can rehearse revisions."""
    followers: ClassVar[str] = "{} gets it, too"
    """Description of how the nodes in the braces get what a revision changes on the others."""
    databases: ClassVar[str] = ""
    """Names that `--database` takes, in a word; empty if there is one database."""
    migrate_help: ClassVar[str] = "Migrate every node to one revision, and prove that all nodes agree."
    """Help text of the command `migrate`."""

    @classmethod
    @contextmanager
    def open_database(cls, name: str | None = None) -> Iterator[Database]:
        """Open the application's database, or the one beside it of that name.

        Raises:
            OperationError: there is none with this name.
        """
        opened = Database.from_settings(Settings()) if name is None else cls.open_other_database(name)
        with opened as database:
            yield database

    @staticmethod
    def open_other_database(name: str) -> AbstractContextManager[Database]:
        """Return the database of that name beside the application's, to be opened; raise OperationError without one."""
        raise OperationError("there is one database; leave --database out")

    @staticmethod
    def database_of(table: str) -> str | None:
        """Return the name of a table's database, as `open_database` takes it; None: the application's."""
        return None

    def __init__(self, connections: Mapping[str, Connection]) -> None:
        self.connections = connections

    def writers(self) -> list[str]:
        """Return the nodes that take writes."""
        return list(self.connections)

    def ddl_nodes(self) -> list[str]:
        """Return the nodes on which a schema change has to be run for every node to have it."""
        return list(self.connections)

    def receivers(self, node: str) -> list[str]:
        """Return the nodes that get what is written on `node`, itself included."""
        return [node]

    def links(self) -> list[Link]:
        """Return every link there should be, with its state."""
        return []

    def apply_errors(self) -> dict[str, int]:
        """Return how often each link, `origin→receiver`, has failed to apply a change."""
        return {}

    def conflicts(self) -> dict[str, int]:
        """Return how many conflicts each node has met: on a replica, queries that it ended to replay WAL."""
        return {node: connection.scalar(text(_CONFLICTS)) or 0 for node, connection in self.connections.items()}

    def explain_blocked(self, link: Link, log: str) -> str:
        """Return why a link cannot apply a change, with the way out; `log` is the end of its receiver's log."""
        return "; the receiver's log has the reason"

    def wait_for_catchup(self, *, timeout: float = 30.0) -> None:
        """Wait until everything committed before the call is visible on every node that receives it.

        Raises:
            TopologyError: not within `timeout` seconds, or a link is known to be broken.
        """

    def wait_for_ddl(self) -> None:
        """Wait until every node has the schema changes made so far; write no rows before that."""

    def drop_schemas(self, *schemas: str) -> None:
        """Drop schemas, with everything in them, on every node."""
        for schema in schemas:
            for node in self.ddl_nodes():
                self.connections[node].execute(DropSchema(schema, cascade=True, if_exists=True))
        self.wait_for_ddl()

    def node_number(self, node: str) -> int:
        """Return the number of a node that keys carry; 0 if it has none, 1 on every node if keys do not carry one."""
        return 1

    def unreplicable_tables(self, connection: Connection) -> list[tuple[str, str]]:
        """Return the tables whose rows can be lost or stay behind, each with the reason."""
        return [(table, f"it is UNLOGGED: {self.unlogged_tables}") for table in connection.scalars(text(_UNLOGGED))]

    def left_out_tables(self) -> list[tuple[str, str]]:
        """Return the nodes and the tables, with their schemas, that no link of the node carries though it could."""
        return []

    def refusal(self, statement: str, changes: Changes) -> str | None:
        """Return why a revision with this subject must not send `statement`, one or several; None if it may."""
        for plain in split_statements(statement):
            if changes == "indexes" and " ALEMBIC_VERSION" not in plain and not indexes.ALLOWED.match(plain):
                return indexes.NOT_ALLOWED
            of_kind = () if " ALEMBIC_VERSION" in plain else self.refused_in.get(changes, ())
            for pattern, reason in (*self.refused, *of_kind):
                if re.match(pattern, plain):
                    return reason
        return None

    def effect_refusal(self, effect: Effect, *, contract: bool) -> str | None:
        """Return why a revision must not have an effect; None if it may. `contract`: clients do not write meanwhile."""
        return self.refused_effects.get(effect.kind) or (None if contract else self.paused_effects.get(effect.kind))

    def pausable_writes(self, owners: Mapping[str, Connection]) -> AbstractContextManager[Pause]:
        """Prepare to pause the writes of clients: needed where a row on its way can meet another schema.

        Args:
            owners: connections to the same nodes, in autocommit, as the owner of the tables.
        """
        return nullcontext(nullcontext)

    def wrongly_changed(self, connection: Connection, changes: Changes) -> list[tuple[str, str]]:
        """Return the tables whose rows this transaction, of a revision, must not have changed, each with the reason."""
        return []

    @contextmanager
    def migration_lock(self, *, wait: float = 0.0) -> Iterator[None]:
        """Hold the lock that one migration of these nodes can have; see `verify_lock`."""
        with self._hold("migration", "; `migrate --wait SECONDS` does that", wait=wait):
            yield

    @contextmanager
    def verify_lock(self, *, wait: float = 0.0) -> Iterator[None]:
        """Hold the lock that one run of `verify` can have; a lost connection releases it.

        Args:
            wait: time in seconds to wait for another holder to end.

        Raises:
            MigrationError: another process has the lock; the message names its session.
        """
        with self._hold("verify", "", wait=wait):
            yield

    @contextmanager
    def _hold(self, lock: Lock, advice: str, *, wait: float) -> Iterator[None]:
        deadline = time.monotonic() + wait
        with ExitStack() as held:
            while holder := self.try_lock(held, lock):
                held.close()
                if time.monotonic() > deadline:
                    raise MigrationError(f"another {lock} is running: {holder}. Wait for it to end{advice}")
                # At random, because two that try at once may refuse each other.
                time.sleep(random.uniform(0.1, 0.3))  # noqa: S311
            yield

    def try_lock(self, held: ExitStack, lock: Lock = "migration") -> str | None:
        """Take a lock until `held` is closed, and return None; otherwise return the session that has it.

        The lock is on every node, because callers may list the nodes in different orders, and is taken in an order that
        the servers determine, because two that begin at once would otherwise refuse each other. The time at which a
        server was started identifies it; servers made from one backup share the system identifier.
        """
        key = _LOCKS[lock]
        started = text("SELECT pg_postmaster_start_time()::text || current_database()")
        for node in sorted(self.writers(), key=lambda node: str(self.connections[node].scalar(started))):
            connection = self.connections[node]
            if not connection.scalar(text(f"SELECT pg_try_advisory_lock({key})")):
                found = connection.execute(text(_HOLDER), {"lock": key}).one_or_none()
                return f"{found.application_name}, pid {found.pid} on {node}, since {found.since}" if found else node
            held.callback(_unlock, connection, key)
        return None

    def check_peers(self, nodes: int) -> None:
        """Raise MigrationError if the connected nodes have more peers than the number of nodes that are configured."""

    def revision_nodes(self, changes: Changes) -> list[str]:
        """Return the nodes on which a revision has to be run for every node to have what it changes."""
        return self.ddl_nodes()

    def check_revision(self, revision: ModuleType, *, back: bool) -> None:
        """Raise MigrationError to refuse a revision, run or undone, before any revision runs."""

    def configure_revision(self, connection: Connection, changes: Changes) -> None:
        """Prepare the connection, of the tables' owner, that one revision runs on, before its first transaction."""

    def run_revision(self, run: Callable[[], None], node: str, changes: Changes) -> None:
        """Call `run`, which runs one revision on `node`; call it again after an error that this may follow."""
        run()

    @staticmethod
    def refuse_models(models: Sequence[MetaData]) -> None:
        """Raise MigrationError if the nodes cannot hold the tables of the models, before a revision is written."""

    @staticmethod
    def load_comparison() -> None:
        """Import the class with which Alembic compares models and database, if it is another one than PostgreSQL's."""

    @staticmethod
    def migrate_other_databases(
        owner_urls: Mapping[str, URL], *, on_step: Callable[[Step], None], wait: float
    ) -> dict[str, str]:
        """Migrate the databases that do not hold the models' tables; return the revision of each by its name.

        `wait` is the time in seconds to wait for another migration.
        """
        return {}

    @staticmethod
    def versions_of_other_databases(
        owner_urls: Mapping[str, URL], *, project: Path
    ) -> dict[str, tuple["ScriptDirectory", str, str | None]]:
        """Return the revisions and the version of each database that does not hold the models' tables.

        The third element is the reason why the version, empty then, is unknown.
        """
        return {}

    @staticmethod
    def register_commands(app: Typer) -> None:
        """Add the commands that only this database needs."""


def _unlock(connection: Connection, key: int) -> None:
    # The server has released the lock of a connection that is lost.
    with suppress(DBAPIError):
        connection.execute(text(f"SELECT pg_advisory_unlock({key})"))


def numbered(number: int, word: str) -> str:
    """Return a number with a word: `1 row`, `2 rows`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def split_statements(text: str) -> list[str]:
    """Return each statement of a string, as `without_literals` does; the body of a function or a rule is part of it."""
    plain = re.sub(r"\bBEGIN ATOMIC\b.*?; END\b", "?", without_literals(text))
    found, depth = [""], 0
    for part in re.split(r"([();])", plain):
        depth += {"(": 1, ")": -1}.get(part, 0)
        if part == ";" and depth == 0:
            found.append("")
        else:
            found[-1] += part
    return [statement for one in found if (statement := one.strip())]


def without_literals(statement: str) -> str:
    """Return the statement in upper case with single spaces, without comments, strings and quoted names."""
    plain = _LITERAL.sub(lambda match: " " if match["comment"] else " ? ", statement)
    return " ".join(plain.upper().split())


_LITERAL = re.compile(
    r"""(?P<comment> --[^\n]* | /\*.*?\*/ ) | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    | \b[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" """,
    re.DOTALL | re.VERBOSE,
)

_UNLOGGED = """
    SELECT relnamespace::regnamespace || '.' || relname FROM pg_class WHERE relkind = 'r' AND relpersistence = 'u'
"""

_CONFLICTS = "SELECT conflicts FROM pg_stat_database WHERE datname = current_database()"

_LOCKS: Mapping[Lock, int] = {"migration": 20_011, "verify": 20_013}
"""Keys of the advisory locks. Arbitrary."""

_HOLDER = """
    SELECT application_name, pid, coalesce(date_trunc('second', backend_start)::text, 'some time') AS since
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND classid = 0 AND objid = CAST(:lock AS oid) AND objsubid = 1
      AND datname = current_database() AND datid = database
"""
