"""One migration runner for the whole cluster, and the proof that every node agrees afterwards.

Where the nodes replicate DDL a revision runs once; where they do not, on every node in turn, and its bookkeeping stays local.
Either way every node is fenced before the next step, because a row that overtakes its table is lost without a word.

A revision changes the schema or, with `changes = "data"` in its file, rows: never both. Rows are changed once, on one node, and
replicated, after every node has the schema they need. Going back takes the same steps, newest first.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ..db import keys
from .connections import connect_all, engine_for
from .schema import differences, read_schema
from .topology import (
    fence,
    mark_as_local,
    node_number,
    publish_new_tables,
    refusal,
    replicates_ddl,
    unreplicable_tables,
)

Changes: TypeAlias = Literal["schema", "data"]

VERSION_TABLE = "alembic_version"

LOCK = 20_011
"""Of the advisory lock that keeps two runners apart. Arbitrary."""


class MigrationError(Exception):
    """A migration could not be run, or the nodes do not agree; the message says where and why."""


@dataclass(frozen=True)
class Step:
    """One revision on one node, about to run, or to be undone."""

    revision: str
    title: str
    node: str
    back: bool = False


def load_config(project: Path = Path()) -> Config:
    """Alembic's configuration of this project.

    Raises:
        MigrationError: there is none in this folder.
    """
    file = project / "alembic.ini"
    if not file.exists():
        raise MigrationError(f"there is no alembic.ini in {project.resolve()}: run this in the project's folder")
    return Config(file)


def migrate(
    admin_urls: Mapping[str, URL],
    *,
    owner: str,
    target: str = "head",
    project: Path = Path(),
    on_step: Callable[[Step], None] = lambda step: None,
) -> str:
    """Bring every node to revision `target`; returns the revision they are at.

    Args:
        admin_urls: the nodes, for a role that may change the schema.
        owner: the role that is to own what is created, usually the application's.
        target: a revision of `migrations/versions`, older ones included, or `head`.
        project: the folder of `alembic.ini`.
        on_step: is told of each revision on each node before it runs.

    Raises:
        MigrationError: it was refused or failed; earlier revisions stay, the failed one leaves nothing behind on its node.
        TopologyError: a node does not receive what others write.
        Unreachable: a node cannot be reached.
    """
    config = load_config(project)
    scripts = ScriptDirectory.from_config(config)
    with connect_all(admin_urls, statement_timeout=60) as connections, _alone(connections):
        fence(connections)
        run = _Run(config, admin_urls, connections, owner, on_step)
        try:
            back, forward = _path(scripts, run.versions(), target)
            for script in back:
                run.step(script, back=True)
            for script in forward:
                run.step(script)
        except (CommandError, RevisionError) as error:
            raise MigrationError(str(error)) from error
        except DBAPIError as error:
            raise MigrationError(f"the revision failed: {str(error.orig).strip()}") from error
        for connection in connections.values():
            keys.claim_node(connection, node_number(connection))
        return prove_agreement(connections)


def prove_agreement(connections: Mapping[str, Connection]) -> str:
    """The revision all nodes are at.

    Raises:
        MigrationError: they are at different ones, or their schemas differ.
    """
    versions = {node: version_of(connection) for node, connection in connections.items()}
    if len(set(versions.values())) > 1:
        raise MigrationError(
            "the nodes are at different revisions: "
            + ", ".join(f"{node} at {version}" for node, version in versions.items())
        )
    if disagreements := differences({node: read_schema(connection) for node, connection in connections.items()}):
        raise MigrationError("the nodes do not have the same schema: " + "; ".join(disagreements[:5]))
    return next(iter(versions.values())) or "base"


def version_of(connection: Connection) -> str | None:
    """The revision a node is at; None before the first."""
    return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _alone(connections: Mapping[str, Connection]) -> Iterator[None]:
    """Keep other runners out, by a lock on the first node."""
    first = next(iter(connections.values()))
    if not first.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LOCK}):
        raise MigrationError("another migration is running; wait for it to end")
    try:
        yield
    finally:
        first.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": LOCK})


def _path(
    scripts: ScriptDirectory, versions: Mapping[str, str | None], target: str
) -> tuple[list[Script], list[Script]]:
    """The revisions to go back from, newest first, and those to go forward to, oldest first.

    One that only some nodes have is among them: an earlier run was interrupted between two nodes.
    """

    def up_to(revision: str | None) -> set[str]:
        return {script.revision for script in scripts.iterate_revisions(revision or "base", "base")}

    wanted, found = up_to(target), [up_to(version) for version in versions.values()]
    newest_first = list(scripts.walk_revisions())
    surplus = {revision for has in found for revision in has - wanted}
    lacking = {revision for has in found for revision in wanted - has}
    back = [script for script in newest_first if script.revision in surplus]
    forward = [script for script in reversed(newest_first) if script.revision in lacking]
    return back, forward


@dataclass
class _Run:
    config: Config
    admin_urls: Mapping[str, URL]
    connections: Mapping[str, Connection]
    owner: str
    on_step: Callable[[Step], None]

    def __post_init__(self) -> None:
        self.once = all(replicates_ddl(connection) for connection in self.connections.values())
        self.first = next(iter(self.connections))

    def versions(self) -> dict[str, str | None]:
        return {node: version_of(connection) for node, connection in self.connections.items()}

    def step(self, script: Script, *, back: bool = False) -> None:
        due = script.revision if back else script.down_revision
        changes: Changes = getattr(script.module, "changes", "schema")
        everywhere = changes == "schema" and not self.once
        for node in self.connections if everywhere else [self.first]:
            # A node may be ahead of the others: an earlier run was interrupted between them.
            if version_of(self.connections[node]) == due:
                self.on_step(Step(script.revision, script.doc, node, back=back))
                with self._session(node, changes, local=everywhere) as connection:
                    self.config.attributes["connection"] = connection
                    if back:
                        command.downgrade(self.config, "-1")
                    else:
                        command.upgrade(self.config, script.revision)
        self._settle()

    def _settle(self) -> None:
        """Nothing is written before every node has the schema and every link carries its tables."""
        publish_new_tables(self.connections)
        fence(self.connections)

    @contextmanager
    def _session(self, node: str, changes: Changes, *, local: bool) -> Iterator[Connection]:
        engine = engine_for(self.admin_urls[node], statement_timeout=0)
        with engine.connect() as connection:
            if local:
                mark_as_local(connection)
            if self.admin_urls[node].username != self.owner:
                connection.exec_driver_sql(f"SET ROLE {connection.dialect.identifier_preparer.quote(self.owner)}")
            connection.commit()
            event.listen(connection, "before_cursor_execute", _guard(changes))
            event.listen(connection, "commit", _refuse_unreplicated_tables)
            yield connection


def _guard(changes: Changes) -> Callable[..., None]:
    """Refuse a statement before it is sent, while nothing has happened yet."""

    def check(_connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        plain = _without_literals(statement)
        if reason := refusal(plain):
            raise MigrationError(
                f"refused, because other nodes would not get it: {_short(statement)}. Reason: {reason}"
            )
        if f" {VERSION_TABLE.upper()}" in plain:
            return
        if changes == "schema" and re.match(r"(WITH .*)?\b(INSERT|UPDATE|DELETE|MERGE|COPY|TRUNCATE)\b", plain):
            raise MigrationError(
                f"refused: {_short(statement)}. A schema revision runs on every node, so it changes no rows; "
                'put this into a revision of its own with changes = "data"'
            )
        if changes == "data" and re.match(r"(CREATE|ALTER|DROP|GRANT|REVOKE|COMMENT)\b", plain):
            raise MigrationError(
                f"refused: {_short(statement)}. A data revision runs on one node, so it changes no schema; "
                "put this into a revision of its own"
            )

    return check


def _refuse_unreplicated_tables(connection: Connection) -> None:
    """Look at what the revision made before it is committed."""
    for table, reason in unreplicable_tables(connection):
        raise MigrationError(f"refused: table {table}: {reason}")


def _without_literals(statement: str) -> str:
    """The statement in upper case with single spaces, without comments, strings and quoted names."""
    plain = _LITERAL.sub(lambda match: " " if match["comment"] else " ? ", statement)
    return " ".join(plain.upper().split())


_LITERAL = re.compile(
    r"""(?P<comment> --[^\n]* | /\*.*?\*/ ) | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ | '(?:[^']|'')*' | "(?:[^"]|"")*" """,
    re.DOTALL | re.VERBOSE,
)


def _short(statement: str) -> str:
    line = " ".join(statement.split())
    return line if len(line) <= 80 else f"{line[:77]}..."
