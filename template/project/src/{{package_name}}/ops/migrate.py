"""Run the migrations on every node that needs them, and prove that all nodes agree afterwards."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

from alembic import command, context
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import URL, Connection, MetaData, event, text
from sqlalchemy.exc import DBAPIError

from ..db import keys
from ..settings import Settings
from . import PROGRAM
from .base import Changes, MigrationError, Step
from .connections import as_owner, become_owner, connect_all, engine_for
from .topology import Topology

SCRATCH_PREFIX = "_verify_"
"""Prefix of the schemas that `verify` makes and drops; they belong to no migration."""


def load_config(project: Path = Path()) -> Config:
    """Return Alembic's configuration of this project; raise MigrationError if this is not its folder."""
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
    """Bring every node that has the models' tables to revision `target`; return the revision they are at.

    Args:
        admin_urls: the nodes, for a role that may change the schema.
        owner: the role that is to own what is created, usually the application's.
        target: a revision of `migrations/versions`, older ones included, or `head`.
        project: the folder of `alembic.ini`.
        on_step: called for each revision on each node before it runs.

    Raises:
        MigrationError: a revision was refused or failed; earlier ones stay, and that node does not record it.
        TopologyError: a node does not receive what others write.
        Unreachable: a node cannot be reached.
    """
    config = load_config(project)
    admin_urls = {node: url for node, url in admin_urls.items() if node not in Topology.nodes_without_models}
    with connect_all(admin_urls, statement_timeout=60, owner=owner) as connections:
        topology = Topology(connections)
        with topology.migration_lock() as is_held:
            if not is_held:
                raise MigrationError("another migration is running; wait for it to end")
            topology.wait_for_catchup()
            run = _Run(config, admin_urls, topology, owner, on_step)
            try:
                path = _path(config, map(version_of, connections.values()), target)
                for script, back in path:
                    topology.check_revision(script.module, back=back)
                for script, back in path:
                    run.step(script, back)
            except (CommandError, RevisionError) as error:
                raise MigrationError(str(error)) from error
            except DBAPIError as error:
                raise MigrationError(f"the revision failed: {str(error.orig).strip()}") from error
            for node in topology.writers():
                number = topology.node_number(node)
                with as_owner(connections[node]):
                    keys.set_sequence_node(connections[node], number)
            return prove_agreement(connections)


def run_environment(*tables: MetaData) -> None:
    """Run Alembic's command, with the tables that a new revision is to create: the whole of `migrations/env.py`.

    It runs on the connection of `migrate`, or else on the first configured node, where it may only compare and look.
    """

    def refuse(*_: Any, **__: Any) -> None:
        raise CommandError(f"this would migrate one node of several: run `{PROGRAM} migrate`")

    if context.is_offline_mode():
        raise CommandError("there is no offline mode: the statements for a node depend on its state")
    options = {"target_metadata": list(tables), **Topology.autogenerate_options()}
    connection = context.config.attributes.get("connection")
    with ExitStack() as stack:
        if connection is None:
            settings = Settings()
            if not settings.nodes:
                raise CommandError(f"no node is configured: run `{PROGRAM} up` first")
            owner = next(iter(settings.urls().values())).username
            url = next(iter(settings.admin_urls().values()))
            connection = stack.enter_context(engine_for(url, owner=owner).connect())
            become_owner(connection)
            connection.commit()
            options["on_version_apply"] = refuse
            # Alembic creates its version table before the first revision; this transaction is rolled back.
            connection.begin()
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()


def prove_agreement(connections: Mapping[str, Connection]) -> str:
    """Return the revision all nodes are at; raise MigrationError if they disagree on it or on their schemas."""
    versions = {node: version_of(connection) for node, connection in connections.items()}
    if len(set(versions.values())) > 1:
        found = ", ".join(f"{node} at {version}" for node, version in versions.items())
        raise MigrationError(f"the nodes are at different revisions: {found}")
    if disagreements := differences({node: read_schema(connection) for node, connection in connections.items()}):
        raise MigrationError("the nodes do not have the same schema: " + "; ".join(disagreements[:5]))
    return next(iter(versions.values())) or "base"


def version_of(connection: Connection) -> str | None:
    """Return the revision a node is at; None before the first."""
    if "owner" in connection.info and (found := connection.scalars(text(_TREACHEROUS)).all()):
        raise MigrationError(
            f"{found[0]} is no ordinary table, so reading it could run code of somebody else. Look who made it, and why"
        )
    with as_owner(connection):
        return MigrationContext.configure(connection).get_current_revision()


def read_schema(connection: Connection) -> dict[str, str]:
    """Return the definition of every object of the application by name, without those of the cluster's software."""
    query = Path(__file__).with_name("catalogue.sql").read_text()
    with as_owner(connection):
        rows = connection.execute(text(query)).all()
    return {
        name: definition
        for schema, name, definition in rows
        if schema not in Topology.system_schemas and not schema.startswith(SCRATCH_PREFIX)
    }


def differences(schemas: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a line for each object that the nodes do not agree on, naming the nodes; empty if they agree.

    An object that is missing because its table is missing has no line of its own.
    """
    every = sorted({name for schema in schemas.values() for name in schema})
    missing = {name: [node for node, schema in schemas.items() if name not in schema] for name in every}
    found = []
    for name, lacking in missing.items():
        if lacking and lacking != missing.get(f"table {_table_of(name)}"):
            having = ", ".join(node for node in schemas if node not in lacking)
            found.append(f"{name} is missing on {', '.join(lacking)} and exists on {having}")
        elif not lacking and len({schema[name] for schema in schemas.values()}) > 1:
            definitions = "; ".join(f"{node} has {schema[name]}" for node, schema in schemas.items())
            found.append(f"{name} differs: {definitions}")
    return found


def _path(config: Config, versions: Iterable[str | None], target: str) -> list[tuple[Script, bool]]:
    """Return the revisions to undo, newest first, each with True, and then those to run, oldest first, with False.

    They include a revision that only some nodes have, because an earlier run was interrupted between two nodes.
    """
    scripts = ScriptDirectory.from_config(config)

    def up_to(revision: str | None) -> set[str]:
        return {script.revision for script in scripts.iterate_revisions(revision or "base", "base")}

    wanted, found = up_to(target), [up_to(version) for version in versions]
    surplus, lacking = set[str]().union(*found) - wanted, wanted - wanted.intersection(*found)
    newest_first = list(scripts.walk_revisions())
    back = [(script, True) for script in newest_first if script.revision in surplus]
    return back + [(script, False) for script in reversed(newest_first) if script.revision in lacking]


@dataclass
class _Run:
    config: Config
    admin_urls: Mapping[str, URL]
    topology: Topology
    owner: str
    on_step: Callable[[Step], None]

    def step(self, script: Script, back: bool) -> None:
        changes: Changes = getattr(script.module, "changes", "schema")
        due = script.revision if back else script.down_revision
        for node in self.topology.revision_nodes(changes):
            # A node may be ahead of the others: an earlier run was interrupted between them.
            if version_of(self.topology.connections[node]) == due:
                self.on_step(Step(script.revision, script.doc, node, back))
                self.topology.run_revision(partial(self._run, script, back, node, changes), node, changes)
        self.topology.wait_for_ddl()

    def _run(self, script: Script, back: bool, node: str, changes: Changes) -> None:
        url = self.admin_urls[node]
        with engine_for(url, statement_timeout=0, owner=self.owner).connect() as connection:
            self.topology.configure_revision(connection, changes)
            become_owner(connection)
            connection.commit()

            @event.listens_for(connection, "before_cursor_execute")
            def refuse_statement(_connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
                if reason := self.topology.refusal(statement, changes):
                    raise MigrationError(f"refused: {shorten(statement, 80)}. Reason: {reason}")

            @event.listens_for(connection, "commit")
            def refuse_tables(connection: Connection) -> None:
                for table, reason in self.topology.unreplicable_tables(connection):
                    raise MigrationError(f"refused: table {table}: {reason}")

            self.config.attributes["connection"] = connection
            if back:
                command.downgrade(self.config, str(script.down_revision or "base"))
            else:
                command.upgrade(self.config, script.revision)


_TREACHEROUS = """
    SELECT relnamespace::regnamespace || '.' || relname FROM pg_class
    WHERE relname = 'alembic_version' AND (relkind <> 'r' OR relhasrules OR relrowsecurity OR relhassubclass)
"""
"""Version tables, in any schema, whose reading involves more than their own rows."""


def _table_of(name: str) -> str:
    """Return the table of a column, or of an object on a table; of anything else, its own name."""
    if name.startswith("column "):
        return name.removeprefix("column ").rpartition(".")[0]
    return name.rpartition(" on ")[2]
