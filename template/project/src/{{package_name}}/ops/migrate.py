"""Run the migrations on every node that needs them, and prove that all nodes agree afterwards."""

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from traceback import extract_tb
from types import ModuleType, SimpleNamespace
from typing import Any

from alembic import context
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import URL, Connection, MetaData, event, text
from sqlalchemy.dialects import registry
from sqlalchemy.exc import DBAPIError

from ..db import keys
from ..db.retry import sqlstate_of
from ..settings import Settings
from ..urls import URL_SCHEME
from . import PROGRAM
from .base import Changes, MigrationError, OperationError, Pause, Step, numbered
from .connections import connect_all, engine_for
from .effects import Catalogue, compare, read_catalogue
from .indexes import drop_leftovers
from .privileges import protect_version_table
from .topology import Topology

COUNTED_ROWS = 1_000_000
"""Limit on the rows that are counted in a table that would be lost; counting more would take minutes."""

MIGRATIONS = Path(__file__).parents[1] / "migrations"
"""Folder of the revisions, in the package, so that they are installed with it."""

SCRATCH_PREFIX = "_verify_"
"""Prefix of the schemas that `verify` makes and drops; they belong to no migration."""


@dataclass(frozen=True)
class Loss:
    """The revisions that are about to be undone, and what their `downgrade()` deletes."""

    revisions: Sequence[str]
    """Revisions with their titles, newest first."""
    rows: Mapping[str, int]
    """Number of rows of each table, and of the table of each column, that is dropped or emptied."""

    def __str__(self) -> str:
        """Return two lines: the revisions, and the tables with their rows."""
        lost = [f"{name} ({_count(number)})" for name, number in self.rows.items()]
        return f"to be undone: {', '.join(self.revisions)}\nto be lost: {', '.join(lost) or 'no table and no column'}"


def load_config(project: Path = Path()) -> Config:
    """Return Alembic's configuration: that of a folder with an `alembic.ini` for this program, or the package's own."""
    file = project / "alembic.ini"
    if file.exists() and (config := Config(file)).get_main_option("program") == PROGRAM:
        return config
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def migrate(
    admin_urls: Mapping[str, URL],
    *,
    owner_urls: Mapping[str, URL],
    target: str = "head",
    down: bool = False,
    contract: bool = False,
    wait: float = 0.0,
    project: Path = Path(),
    on_step: Callable[[Step], None] = lambda step: None,
    confirm: Callable[[Loss], None] = lambda loss: None,
) -> str:
    """Bring every node that has the models' tables to `target`; return the revision they are at.

    Args:
        admin_urls: the nodes, for a role that may read and change the state of replication.
        owner_urls: the same nodes, for the role that runs the revisions and owns what they create.
        target: a revision of the project, `head`, `heads` or `base`; `+1` or `-1` counts revisions from
            where the nodes are.
        down: undo the revisions that follow `target`; without it, a target behind the nodes is refused.
        contract: run revisions with `contract = True`, which take away what earlier code may use.
        wait: time in seconds to wait for another migration to end.
        project: a folder with an `alembic.ini` for this program; else the revisions are those of the package.
        on_step: called for each revision on each node before it runs.
        confirm: called before the first revision is undone, with what that deletes; it raises to prevent it.

    Raises:
        MigrationError: the target or a revision was refused or failed; earlier ones stay, and that node does not
            record it.
        TopologyError: a node does not receive what others write.
        Unreachable: a node cannot be reached.
    """
    config = load_config(project)
    admin_urls = {node: url for node, url in admin_urls.items() if node not in Topology.nodes_without_models}
    owner_urls = {node: owner_urls[node] for node in admin_urls}
    scripts = load_scripts(config)
    # Imported here, because it imports this module.
    from .glance import version_if_reached

    if reached := version_if_reached(admin_urls, owner_urls=owner_urls, scripts=scripts, target=target):
        return reached
    with (
        connect_all(admin_urls, statement_timeout=60, pinned=True) as links,
        connect_all(owner_urls, statement_timeout=60) as connections,
    ):
        topology = Topology(links)
        with topology.migration_lock(wait=wait):
            topology.check_peers(len(connections))
            with ExitStack() as unused:
                if topology.try_lock(unused, "verify") is None and (left := scratch_schemas(topology)):
                    drop_scratch(topology, left)
            topology.wait_for_catchup()
            try:
                run = _Run(config, scripts, owner_urls, topology, connections, on_step)
                found = [applied(scripts, version_of(connection)) for connection in connections.values()]
                path = find_path(scripts, found, target, down=down)
                if not contract and any(found):
                    _refuse_contracts(path)
                undone = [script for script, back in path if back]
                _refuse_irreversible(undone)
                for script, back in path:
                    topology.check_revision(script.module, back=back)
                if undone:
                    confirm(find_loss(connections.values(), undone))
                for script, back in path:
                    run.step(script, back)
            except (CommandError, RevisionError) as error:
                raise MigrationError(str(error)) from error
            except DBAPIError as error:
                raise MigrationError(f"the revision failed: {str(error.orig).strip()}") from error
            for node in topology.writers():
                keys.set_sequence_node(connections[node], topology.node_number(node))
            for node in topology.ddl_nodes():
                protect_version_table(connections[node])
            prove_replication(topology)
            return prove_agreement(connections)


def run_environment(*tables: MetaData) -> None:
    """Run Alembic's command, with the tables that a new revision is to create: the whole of `env.py`.

    It runs on the connection of `migrate`, or else on the first configured node that takes schema changes, where it may
    only compare and look.
    """
    # Imported here, because it imports Alembic's autogenerate, which `migrate` does without.
    from . import autogenerate

    def refuse(*_: Any, **__: Any) -> None:
        raise CommandError(f"this would migrate one node of several: run `{PROGRAM} migrate`")

    if context.is_offline_mode():
        raise CommandError("there is no offline mode: the statements for a node depend on its state")
    Topology.load_comparison()
    options: dict[str, Any] = {}
    connection = context.config.attributes.get("connection")
    with ExitStack() as stack:
        if connection is None:
            settings = Settings()
            if not settings.owner_nodes:
                raise CommandError(f"no node is configured for the owner of the tables: run `{PROGRAM} up` first")
            url = settings.owner_urls()[node_to_compare(settings.admin_urls())]
            connection = stack.enter_context(engine_for(url).connect())
            options["on_version_apply"] = refuse
            # Alembic creates its version table before the first revision; this transaction is rolled back.
            connection.begin()
        compared = autogenerate.options(connection, tables)
        context.configure(connection=connection, **compared, **options)
        with context.begin_transaction():
            context.run_migrations()


def node_to_compare(admin_urls: Mapping[str, URL]) -> str:
    """Return a node that has the models' tables and takes schema changes."""
    urls = {node: url for node, url in admin_urls.items() if node not in Topology.nodes_without_models}
    with connect_all(urls, pinned=True) as connections:
        return Topology(connections).ddl_nodes()[0]


def scratch_schemas(topology: Topology) -> list[str]:
    """Return the schemas of `verify`. One of a killed run can be on some nodes only, which stops a migration."""
    names = text("SELECT nspname FROM pg_namespace")
    found = {name for node in topology.ddl_nodes() for name in topology.connections[node].scalars(names)}
    return sorted(name for name in found if re.fullmatch(rf"{SCRATCH_PREFIX}\d+_[0-9a-f]+", name))


def drop_scratch(topology: Topology, schemas: Sequence[str]) -> None:
    """Drop schemas of killed runs of `verify`; the caller has both locks."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return topology.drop_schemas(*schemas)
        except DBAPIError as error:
            # A session of the killed run ends with its present statement.
            if sqlstate_of(error) != "55P03" or time.monotonic() > deadline:
                raise


def prove_replication(topology: Topology) -> None:
    """Raise MigrationError if the rows of a table do not reach every node."""
    if topology.left_out_tables():
        # A link that was not told of a table is told then.
        topology.wait_for_ddl()
    left_out = sorted(
        f"{table} ({node})" for node, table in topology.left_out_tables() if not table.startswith(SCRATCH_PREFIX)
    )
    if left_out:
        raise MigrationError(
            f"no link carries {', '.join(left_out[:5])}, so rows stay on their node. Add the table to what every node "
            f"replicates, and run `{PROGRAM} migrate` again"
        )


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
    """Return the revision a node is at, or those of its branches in the order of their names; None before the first."""
    if connection.dialect.driver != "psycopg":
        return ", ".join(sorted(MigrationContext.configure(connection).get_current_heads())) or None
    # Without Alembic, whose look for the table is another query, and this one is made at every start.
    found = connection.execute(text(_VERSION_TABLES)).all()
    if treacherous := [table.name for table in found if not table.is_plain]:
        raise MigrationError(
            f"{treacherous[0]} is no ordinary table, so reading it could run code of somebody else. Look who made it, "
            "and why"
        )
    if not any(table.is_visible for table in found):
        return None
    return ", ".join(sorted(connection.scalars(text("SELECT version_num FROM alembic_version")))) or None


def read_schema(connection: Connection) -> dict[str, str]:
    """Return the definition of every object of the application by name, without those of the cluster's software."""
    query = Path(__file__).with_name("catalogue.sql").read_text()
    return {
        name: definition
        for schema, name, definition in connection.execute(text(query)).all()
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
        elif not lacking and len({_as_restored(schema[name]) for schema in schemas.values()}) > 1:
            definitions = "; ".join(f"{node} has {schema[name]}" for node, schema in schemas.items())
            found.append(f"{name} differs: {definitions}")
    return found


def _as_restored(definition: str) -> str:
    """Return a definition as the server writes it once it has read it from a dump."""
    cast_values = r"(\1)::text"
    return _ARRAY.sub(lambda array: f"ARRAY[{_VALUE.sub(cast_values, array[1])}]", definition)


_VALUE = re.compile(r"('(?:[^']|'')*'::character varying)")
_ARRAY = re.compile(rf"\(ARRAY\[((?:{_VALUE.pattern}(?:, )?)+)\]\)::text\[\]")
"""The values of `x IN (…)` for a column of type varchar, as the server writes what it has not read from a dump."""


def applied(scripts: ScriptDirectory, version: str | None) -> set[str]:
    """Return the revisions that a node has if it is at `version`, as `version_of` returns it."""
    heads = version.split(", ") if version and version != "base" else []
    return {script.revision for head in heads for script in scripts.iterate_revisions(head, "base")}


def resolve(scripts: ScriptDirectory, target: str) -> str:
    """Return the version that `target` means, in the form of `version_of`; raise MigrationError if there is none."""
    try:
        heads = [script.revision for script in scripts.get_revisions("heads") if script]
        if target == "head" and len(heads) > 1:
            raise MigrationError(
                f"there is more than one head, {' and '.join(sorted(heads))}: join them in a revision with "
                '`alembic merge heads -m "…"`'
            )
        given = [name for name in target.split(", ") if name]
        if target in ("head", "heads"):
            names = heads
        else:
            names = [script.revision for name in given for script in scripts.get_revisions(name) if script]
    except (CommandError, RevisionError) as error:
        raise MigrationError(str(error)) from error
    if not names and target not in ("base", "head", "heads"):
        raise MigrationError(f"there is no revision {target!r}")
    return ", ".join(sorted(names)) or "base"


def find_path(
    scripts: ScriptDirectory, found: Sequence[set[str]], target: str, *, down: bool
) -> list[tuple[Script, bool]]:
    """Return the revisions to undo, newest first, each with True, and then those to run, oldest first, with False.

    They include a revision that only some nodes have, because an earlier run was interrupted between two nodes.

    Args:
        scripts: the revisions of the project.
        found: the revisions that each node has.
        target: the target of `migrate`.
        down: allow revisions to be undone.

    Raises:
        MigrationError: there is no such target, or it is behind a node and `down` is not set.
    """
    newest_first = list(scripts.walk_revisions())
    somewhere, everywhere = set[str]().union(*found), set[str].intersection(*found)
    wanted = surplus = set[str]()
    if re.fullmatch(r"[+-]\d+", target):
        count = int(target)
        if count < 0:
            candidates = [script.revision for script in newest_first if script.revision in somewhere]
            surplus = set(candidates[:-count])
        else:
            candidates = [script.revision for script in reversed(newest_first) if script.revision not in everywhere]
            wanted = set(candidates[:count])
        if len(candidates) < abs(count):
            number = "no revision" if not candidates else f"only {', '.join(candidates)}"
            raise MigrationError(f"{target}: there is {number} to {'undo' if count < 0 else 'run'}")
    else:
        version = resolve(scripts, target)
        wanted = applied(scripts, version)
        tops = set(version.split(", "))
        surplus = {one for one in somewhere - wanted if version == "base" or tops & applied(scripts, one)}
    lacking = (somewhere - surplus | wanted) - everywhere
    back = [(script, True) for script in newest_first if script.revision in surplus]
    if back and not down:
        undone = ", ".join(script.revision for script, _ in back)
        raise MigrationError(f"{target} is behind the nodes: it would undo {undone}. Add --down if that is meant")
    return back + [(script, False) for script in reversed(newest_first) if script.revision in lacking]


def only(
    scripts: ScriptDirectory, script: Script, *, back: bool, recorded_only: bool = False
) -> Callable[[Sequence[str], MigrationContext], list[RevisionStep]]:
    """Return the function that lets Alembic run, or undo, one revision, and none if that is done already.

    With `recorded_only` the version changes, and nothing else.
    """
    make = MigrationStep.downgrade_from_script if back else MigrationStep.upgrade_from_script
    step = make(scripts.revision_map, script)
    if recorded_only:
        step.migration_fn = lambda **_: None

    def steps(heads: Sequence[str], context: MigrationContext) -> list[RevisionStep]:
        if context.connection is not None:
            protect_version_table(context.connection)
        return [step] if (script.revision in applied(scripts, ", ".join(heads))) == back else []

    return steps


def find_loss(connections: Collection[Connection], undone: Iterable[Script]) -> Loss:
    """Return what undoing revisions deletes, as far as their statements show it."""
    revisions, rows = [], dict[str, int]()
    for script in undone:
        try:
            statements = statements_of(script.module, back=True)
        except MigrationError:
            revisions.append(f"{script.revision} {script.doc} (uncounted: its statements depend on the database)")
            continue
        revisions.append(f"{script.revision} {script.doc}")
        for match in (match for statement in statements for match in _DELETES.finditer(statement)):
            for table in re.split(r"\s*,\s*", match["table"]):
                name = f"{table}.{match['column']}" if match["column"] else table
                rows[name] = max((_count_rows(connection, table) for connection in connections), default=0)
    return Loss(revisions, rows)


def statements_of(revision: ModuleType, *, back: bool) -> list[str]:
    """Return the statements that a revision would send, without a server; raise MigrationError if it needs one."""
    written: list[str] = []
    file = SimpleNamespace(write=written.append, flush=lambda: None)
    dialect = registry.load(URL_SCHEME.replace("+", "."))()
    offline = MigrationContext.configure(dialect=dialect, opts={"as_sql": True, "output_buffer": file})
    try:
        with Operations.context(offline):
            (revision.downgrade if back else revision.upgrade)()
    except Exception as error:
        raise MigrationError(
            f"revision {revision.revision} cannot be read without a database ({_fault(error)}). Put "
            'the queries it needs into a revision of its own with changes = "data"'
        ) from error
    return [statement for part in written if (statement := part.strip())]


def load_scripts(config: Config) -> ScriptDirectory:
    """Return the revisions; raise MigrationError if a file cannot be read as one."""
    try:
        scripts = ScriptDirectory.from_config(config)
        scripts.get_heads()
    except (CommandError, RevisionError) as error:
        raise MigrationError(str(error)) from error
    except Exception as error:
        raise MigrationError(f"a revision cannot be read: {_fault(error)}") from error
    return scripts


@contextmanager
def named_faults(script: Script) -> Iterator[None]:
    """Turn an error of a revision's own code into a MigrationError that names the line."""
    try:
        yield
    except (OperationError, CommandError, RevisionError, DBAPIError):
        raise
    except Exception as error:
        raise MigrationError(f"revision {script.revision} breaks: {_fault(error)}") from error


def _fault(error: Exception) -> str:
    """Return an error with the last line of the project that it passed."""
    frames = [frame for frame in extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    where = f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames and "<" not in frames[-1].filename else ""
    return f"{where}{type(error).__name__}: {error}"


def _refuse_irreversible(undone: Iterable[Script]) -> None:
    for script in undone:
        try:
            statements_of(script.module, back=True)
        except MigrationError as error:
            if isinstance(error.__cause__, NotImplementedError):
                name = f"{script.revision} ({script.doc})"
                raise MigrationError(
                    f"revision {name} has no way back, so nothing is undone: {error.__cause__}"
                ) from error


@dataclass
class _Run:
    config: Config
    scripts: ScriptDirectory
    owner_urls: Mapping[str, URL]
    topology: Topology
    connections: Mapping[str, Connection]
    on_step: Callable[[Step], None]

    def step(self, script: Script, back: bool) -> None:
        changes = changes_of(script)
        left = self._left(script, back)
        # A node may be ahead of the others: an earlier run was interrupted between them. They have its rows, then.
        is_done = changes == "data" and len(left) < len(self.topology.ddl_nodes())
        with ExitStack() as stack:
            pause: Pause = nullcontext
            if (changes == "data" and not is_done) or (changes == "schema" and (back or is_contract(script))):
                pause = stack.enter_context(self.topology.pausable_writes(self.connections))
            if changes == "schema":
                stack.enter_context(pause())
            for node in self.topology.revision_nodes(changes):
                if node in left and not is_done:
                    self.on_step(Step(script.revision, script.doc, node, back))
                    self.topology.run_revision(partial(self._run, script, back, node, changes, pause), node, changes)
            self.topology.wait_for_ddl()
        for node in self._left(script, back) if changes == "data" else ():
            self._run(script, back, node, "schema", nullcontext, recorded_only=True)

    def _left(self, script: Script, back: bool) -> list[str]:
        nodes = self.topology.ddl_nodes()
        return [node for node in nodes if self._has(node, script) == back]

    def _has(self, node: str, script: Script) -> bool:
        return script.revision in applied(self.scripts, version_of(self.connections[node]))

    def _run(
        self, script: Script, back: bool, node: str, changes: Changes, pause: Pause, *, recorded_only: bool = False
    ) -> None:
        with ExitStack() as paused, engine_for(self.owner_urls[node], statement_timeout=0).connect() as connection:
            if changes == "indexes":
                connection.execution_options(isolation_level="AUTOCOMMIT")
            self.topology.configure_revision(connection, changes)
            connection.commit()
            if changes == "indexes":
                drop_leftovers(connection, statements_of(script.module, back=back))
            guard(connection, self.topology, script, back=back)
            if changes == "data":
                # A client of another node could change a row that the revision changes; a backfill ends this pause.
                paused.enter_context(pause())
                connection.info["pause"] = paused, pause
            self.config.attributes["connection"] = connection
            steps = only(self.scripts, script, back=back, recorded_only=recorded_only)
            with named_faults(script), EnvironmentContext(self.config, self.scripts, fn=steps):
                self.scripts.run_env()


def guard(connection: Connection, topology: Topology, script: Script, *, back: bool) -> None:
    """Let a connection refuse what a revision must not do: a statement before it is sent, an effect before COMMIT.

    Args:
        connection: the connection, of the tables' owner, that the revision runs on, before its first transaction.
        topology: the nodes.
        script: the revision.
        back: it is about to be undone.
    """
    changes = changes_of(script)

    def catalogue(*, rows: bool = False) -> Catalogue:
        if changes != "schema" or not topology.refused_effects:
            return Catalogue({}, {}, {}, {})
        return read_catalogue(connection, without=topology.system_schemas, rows=rows)

    before = catalogue(rows=True)
    connection.commit()

    @event.listens_for(connection, "before_cursor_execute")
    def refuse_statement(_connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        if reason := topology.refusal(statement, changes):
            raise MigrationError(f"refused: {shorten(statement, 80)}. Reason: {reason}")

    @event.listens_for(connection, "commit")
    def refuse_effects(connection: Connection) -> None:
        wrong = topology.wrongly_changed(connection, changes)
        for table, reason in (*topology.unreplicable_tables(connection), *wrong):
            raise MigrationError(f"refused: table {table}: {reason}")
        for effect in compare(before, catalogue(), nodes=len(topology.connections)):
            if refusal := topology.effect_refusal(effect, contract=back or is_contract(script)):
                raise MigrationError(f"refused: {effect}. {refusal}")


def changes_of(script: Script) -> Changes:
    """Return the subject of a revision."""
    changes: Changes = getattr(script.module, "changes", "schema")
    return changes


def is_contract(script: Script) -> bool:
    """Return whether a revision takes away what earlier code may use."""
    return getattr(script.module, "contract", False) is True


def waiting_contract(scripts: ScriptDirectory, versions: Collection[str | None]) -> str:
    """Return what databases wait for, if their next revision takes away what earlier code may use; else an empty text.

    Args:
        scripts: the revisions of the project.
        versions: the version of each database, as `version_of` returns it.
    """
    if len(set(versions)) != 1:
        return ""
    try:
        path = find_path(scripts, [applied(scripts, version) for version in versions], "heads", down=False)
    except (CommandError, RevisionError, MigrationError):
        # A revision that this version of the project does not have.
        return ""
    if not path or not is_contract(script := path[0][0]):
        return ""
    title = f"{script.revision} ({script.doc})"
    return f"revision {title} waits for --contract, until every process has code that does without"


def _refuse_contracts(path: Sequence[tuple[Script, bool]]) -> None:
    for number, (script, back) in enumerate(path):
        if not back and is_contract(script):
            before = f"migrate to {path[number - 1][0].revision} first, and " if number else ""
            raise MigrationError(
                f"revision {script.revision} ({script.doc}) takes away what earlier code may still use: {before}"
                "run it with --contract once every process has code that does without"
            )


_DELETES = re.compile(
    r"""\b(?:DROP\s+TABLE|DELETE\s+FROM|TRUNCATE(?:\s+TABLE)?|(?P<alter>ALTER\s+TABLE))\s+(?:IF\s+EXISTS\s+|ONLY\s+)*
    (?P<table>[\w."]+(?:\s*,\s*[\w."]+)*)
    (?(alter)\s+DROP\s+COLUMN\s+(?:IF\s+EXISTS\s+)?(?P<column>[\w"]+))""",
    re.IGNORECASE | re.VERBOSE,
)
"""Statements that delete rows or values: those that are counted before a revision is undone."""


def _count_rows(connection: Connection, table: str) -> int:
    if connection.scalar(text("SELECT to_regclass(:table) IS NULL"), {"table": table}):
        return 0
    some = f"SELECT 1 FROM {table} LIMIT {COUNTED_ROWS + 1}"  # noqa: S608 - the name is from a revision
    return int(connection.scalar(text(f"SELECT count(*) FROM ({some}) AS counted")) or 0)  # noqa: S608


def _count(number: int) -> str:
    if number > COUNTED_ROWS:
        return f"more than {COUNTED_ROWS} rows"
    return numbered(number, "row")


_VERSION_TABLES = """
    SELECT relnamespace::regnamespace || '.' || relname AS name, pg_table_is_visible(oid) AS is_visible,
           relkind = 'r' AND NOT relhasrules AND NOT relrowsecurity AND NOT relhassubclass AS is_plain
    FROM pg_class WHERE relname = 'alembic_version'
"""
"""Version tables, in any schema; reading one that is not plain involves more than its own rows."""


def _table_of(name: str) -> str:
    """Return the table of a column, or of an object on a table; of anything else, its own name."""
    if name.startswith("column "):
        return name.removeprefix("column ").rpartition(".")[0]
    return name.rpartition(" on ")[2]
