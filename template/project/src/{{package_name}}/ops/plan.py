"""Rehearse revisions, so that `migrate --plan` reports facts of the server: locks, rewrites, scans and refusals.

The rehearsal runs in a scratch database on one node. It repeats the revisions that the nodes have and then runs those
that they lack, each statement in a transaction of its own, and asks the server about it. No table of the application is
locked or read; row numbers are the statistics of the real tables.
"""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import URL, Connection, event, text
from sqlalchemy.exc import DBAPIError

from .base import Changes, MigrationError
from .connections import connect, connect_all, engine_for
from .effects import compare, read_catalogue
from .migrate import (
    applied,
    changes_of,
    find_path,
    guard,
    is_contract,
    load_config,
    load_scripts,
    named_faults,
    only,
    statements_of,
    version_of,
)
from .privileges import quoted
from .topology import Topology

DELETING = {"drop table", "drop column", "truncate", "change type"}
"""Effects that no downgrade can take back."""

BLOCKED = {
    "ShareUpdateExclusiveLock": "nobody",
    "ShareLock": "writes",
    "ShareRowExclusiveLock": "writes",
    "ExclusiveLock": "writes",
    "AccessExclusiveLock": "reads and writes",
}
"""Clients that a lock blocks, weakest first: https://www.postgresql.org/docs/current/explicit-locking.html"""


@dataclass(frozen=True)
class PlannedStatement:
    """One statement, and what the server did for it."""

    sql: str
    locks: Mapping[str, str] = field(default_factory=dict)
    """Strongest lock on each table that there was before."""
    rewritten: Sequence[str] = ()
    scanned: Sequence[str] = ()
    """Tables that are read as a whole while the lock is held."""
    deleted: Sequence[str] = ()
    """Tables and columns whose content is lost."""

    def lines(self, rows: Mapping[str, int]) -> Iterator[str]:
        """Return a line for each table; `rows` has their numbers of rows."""
        for table, lock in self.locks.items():
            size = f" (about {rows[table]} rows)" if table in rows else ""
            work = [
                *([f"rewrites it{size}"] if table in self.rewritten else []),
                *([f"reads all of it{size}"] if table in self.scanned and table not in self.rewritten else []),
            ]
            yield "; ".join([f"{table}: {_spelled(lock)}, blocks {BLOCKED[lock]}", *work])
        if self.deleted:
            yield f"irreversible: deletes {', '.join(self.deleted)}"


@dataclass(frozen=True)
class PlannedRevision:
    """One revision, the nodes it runs on, and its statements."""

    revision: str
    title: str
    back: bool
    changes: Changes
    contract: bool
    nodes: Sequence[str]
    followers: str
    """Description of how the other nodes get it; empty if there are none."""
    statements: Sequence[PlannedStatement]
    is_reversible: bool
    refusal: str | None = None
    """Reason for which `migrate` would refuse it; those that follow are not rehearsed."""


@dataclass(frozen=True)
class Plan:
    """The revisions between where the nodes are and the target."""

    revisions: Sequence[PlannedRevision]
    rows: Mapping[str, int]
    """Approximate number of rows of each table, from the server's statistics."""

    def lines(self) -> Iterator[str]:
        """Return the plan as text."""
        if not self.revisions:
            yield "nothing to do"
        for one in self.revisions:
            kind = ", ".join([one.changes, *(["contract"] if one.contract else [])])
            where = f"runs on {', '.join(one.nodes)}" + (", one after the other" if len(one.nodes) > 1 else "")
            yield f"{'back from ' if one.back else ''}{one.revision} {one.title} [{kind}]: {where}{one.followers}"
            for statement in one.statements:
                yield f"  {' '.join(statement.sql.split())}"
                yield from (f"    {line}" for line in statement.lines(self.rows))
            if not one.is_reversible:
                yield "  irreversible: it has no way back"
            if one.refusal:
                yield f"  {one.refusal}"

    def json(self) -> str:
        """Return the plan as one JSON object."""
        return json.dumps(asdict(self), indent=2)

    def sql(self) -> Iterator[str]:
        """Return the statements, with a comment for each revision."""
        for one in self.revisions:
            yield f"-- {'back from ' if one.back else ''}{one.revision} {one.title} on {', '.join(one.nodes)}"
            yield from (f"{statement.sql.rstrip(';')};" for statement in one.statements)
            if one.refusal:
                yield f"-- {' '.join(one.refusal.split())}"


def make_plan(
    admin_urls: Mapping[str, URL],
    *,
    owner_urls: Mapping[str, URL],
    target: str = "head",
    down: bool = False,
    rehearse: bool = True,
    project: Path = Path(),
) -> Plan:
    """Return what `migrate` with these arguments would do, without changing anything but a scratch database.

    Args:
        admin_urls: the nodes, for a role that may create databases.
        owner_urls: the same nodes, for the role that runs the revisions.
        target: the target of `migrate`.
        down: undo the revisions that follow `target`.
        rehearse: run the revisions in a scratch database; otherwise only their statements are read.
        project: the folder of `alembic.ini`.

    Raises:
        MigrationError: there is no such target, or the revisions that the nodes have do not run in an empty database.
        Unreachable: a node cannot be reached.
    """
    config = load_config(project)
    admin_urls = {node: url for node, url in admin_urls.items() if node not in Topology.nodes_without_models}
    owner_urls = {node: owner_urls[node] for node in admin_urls}
    with (
        connect_all(admin_urls, statement_timeout=60, pinned=True) as links,
        connect_all(owner_urls, statement_timeout=60) as connections,
    ):
        topology = Topology(links)
        scripts = load_scripts(config)
        try:
            found = [applied(scripts, version_of(connection)) for connection in connections.values()]
            path = find_path(scripts, found, target, down=down)
            if not path:
                return Plan([], {})
            node = topology.ddl_nodes()[0]
            if not rehearse or not topology.can_rehearse:
                return Plan([_unrehearsed(topology, *step) for step in path], {})
            rows = read_rows(connections[node])
            with _scratch_database(links[node], admin_urls[node], connections[node], owner_urls[node]) as url:
                rehearsal = _Rehearsal(config, scripts, topology, url)
                for script in reversed(list(scripts.walk_revisions())):
                    if script.revision in set[str]().union(*found):
                        rehearsal.repeat(script)
                return Plan(list(rehearsal.run(path)), rows)
        except (CommandError, RevisionError) as error:
            raise MigrationError(str(error)) from error


def read_rows(connection: Connection) -> dict[str, int]:
    """Return the approximate number of rows of each table, from the server's statistics."""
    return {row.name: row.rows for row in connection.execute(text(_ROWS))}


def _unrehearsed(topology: Topology, script: Script, back: bool) -> PlannedRevision:
    """Return a revision with the statements that it would send to an unknown database."""
    refusal = None
    try:
        topology.check_revision(script.module, back=back)
    except MigrationError as error:
        refusal = str(error)
    statements = [PlannedStatement(sql) for sql in statements_of(script.module, back=back)]
    return _read(topology, script, back, statements, refusal)


def _read(
    topology: Topology, script: Script, back: bool, statements: Sequence[PlannedStatement], refusal: str | None
) -> PlannedRevision:
    changes = changes_of(script)
    nodes = topology.revision_nodes(changes)
    others = [node for node in topology.connections if node not in nodes]
    is_deleting = any(statement.deleted for statement in statements)
    return PlannedRevision(
        script.revision,
        script.doc,
        back,
        changes,
        is_contract(script),
        nodes,
        f"; {topology.followers.format(', '.join(others))}" if others else "",
        statements,
        is_reversible=is_deleting or not statements or _has_statements(script, back=not back),
        refusal=refusal,
    )


def _has_statements(script: Script, *, back: bool) -> bool:
    try:
        return bool(statements_of(script.module, back=back))
    except MigrationError:
        return True


@dataclass
class _Rehearsal:
    config: Config
    scripts: ScriptDirectory
    topology: Topology
    url: URL

    def repeat(self, script: Script) -> None:
        """Run a revision that the nodes have."""
        try:
            with self._connection() as connection:
                self._run(connection, script, back=False)
        except (DBAPIError, MigrationError) as error:
            raise MigrationError(
                f"revision {script.revision}, which the nodes have, does not run in an empty database, so nothing can "
                f"be rehearsed ({str(getattr(error, 'orig', None) or error).splitlines()[0]}). `--sql` reads the files"
            ) from error

    def run(self, path: Sequence[tuple[Script, bool]]) -> Iterator[PlannedRevision]:
        """Run the revisions of `path` up to the first that is refused."""
        for script, back in path:
            statements: list[PlannedStatement] = []
            refusal = None
            try:
                self.topology.check_revision(script.module, back=back)
                with self._connection() as connection:
                    if changes_of(script) == "indexes":
                        connection.execution_options(isolation_level="AUTOCOMMIT")
                    guard(connection, self.topology, script, back=back)
                    self._record(connection, changes_of(script), statements)
                    self._run(connection, script, back=back)
            except MigrationError as error:
                refusal = str(error)
            except DBAPIError as error:
                refusal = f"it fails: {str(error.orig).strip()}"
            if changes_of(script) == "data" and not statements:
                # A backfill of an empty table has nothing to do.
                with suppress(MigrationError):
                    statements = [PlannedStatement(sql) for sql in statements_of(script.module, back=back)]
            yield _read(self.topology, script, back, statements, refusal)
            if refusal:
                return

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with engine_for(self.url, statement_timeout=60).connect() as connection:
            yield connection

    def _run(self, connection: Connection, script: Script, *, back: bool) -> None:
        self.config.attributes["connection"] = connection
        steps = only(self.scripts, script, back=back)
        with named_faults(script), EnvironmentContext(self.config, self.scripts, fn=steps):
            self.scripts.run_env()

    def _record(self, connection: Connection, changes: Changes, statements: list[PlannedStatement]) -> None:
        """Append each statement of the revision, once it has run, to `statements`."""
        driver: Any = connection.connection.driver_connection

        def look() -> Any:
            return read_catalogue(connection, without=self.topology.system_schemas)

        state = [look()] if changes == "schema" else []
        # Reads up to here would count as a scan by the first statement.
        driver.execute("SELECT pg_stat_force_next_flush()")
        connection.commit()
        is_looking = [False]

        @event.listens_for(connection, "after_cursor_execute")
        def record(_connection: Connection, cursor: Any, statement: str, *_rest: Any) -> None:
            is_own = "alembic_version" in statement or statement.startswith("SET LOCAL search_path")
            if is_looking[0] or is_own or cursor.description is not None:
                return
            if changes != "schema":
                locks = {"its table": "ShareUpdateExclusiveLock"} if changes == "indexes" else {}
                statements.append(PlannedStatement(statement.strip(), locks))
                return
            is_looking[0] = True
            held = driver.execute(_LOCKS, [list(BLOCKED)]).fetchall()
            scanned = {name for (name,) in driver.execute(_SCANS)}
            before, after = state[0], look()
            effects = compare(before, after)
            names = {relation: row.table for relation, row in before.tables.items()}
            ranked = sorted(((names[one], mode) for one, mode in held if one in names), key=lambda one: _rank(one[1]))
            statements.append(
                PlannedStatement(
                    statement.strip(),
                    dict(ranked),
                    [effect.table for effect in effects if effect.kind == "rewrite"],
                    sorted(scanned.intersection(names.values())),
                    [f"{effect.table} {effect.name}".strip() for effect in effects if effect.kind in DELETING],
                )
            )
            state[0] = after
            # The next statement shows its own locks only.
            driver.execute("SELECT pg_stat_force_next_flush()")
            driver.commit()
            is_looking[0] = False


@contextmanager
def _scratch_database(admin: Connection, admin_url: URL, owner: Connection, owner_url: URL) -> Iterator[URL]:
    """Create an empty database with the extensions and system functions of the node's own, and drop it afterwards.

    Only extensions and the database itself need the administrator.
    """
    name = f"_rehearsal_{secrets.token_hex(6)}"
    values = {"owner": owner_url.username, "links": list(Topology.link_extensions)}
    extensions = admin.scalars(text(_EXTENSIONS), values).all()
    functions = owner.scalars(text(_FUNCTIONS), {"system": list(Topology.system_schemas)}).all()
    try:
        admin.exec_driver_sql(f"CREATE DATABASE {name} OWNER {quoted(owner_url.username or '')}")
    except DBAPIError as error:
        raise MigrationError(
            f"a plan needs a scratch database, which the administrator's role may not create: {error.orig}. Give it "
            "CREATEDB; `--sql` needs none"
        ) from error
    scratch = owner_url.set(database=name)
    try:
        with connect(admin_url.set(database=name), node=name, pinned=True) as prepared:
            # Not in the node's own database, whose links may replicate it.
            prepared.exec_driver_sql(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
            for statement in extensions:
                prepared.exec_driver_sql(statement.replace("%", "%%"))
        with connect(scratch, node=name) as prepared:
            for statement in functions:
                prepared.exec_driver_sql(statement.replace("%", "%%"))
        yield scratch
    finally:
        admin.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _rank(mode: str) -> int:
    return list(BLOCKED).index(mode)


def _spelled(lock: str) -> str:
    """Return the name of a lock as SQL has it: ACCESS EXCLUSIVE."""
    return "".join(f" {letter}" if letter.isupper() else letter for letter in lock.removesuffix("Lock")).strip().upper()


_LOCKS = """
    SELECT relation, mode FROM pg_locks
    WHERE pid = pg_backend_pid() AND granted AND locktype = 'relation' AND mode = ANY (%s)
"""

_ROWS = """
    SELECT relnamespace::regnamespace || '.' || quote_ident(relname) AS name, greatest(reltuples, 0)::bigint AS rows
    FROM pg_class WHERE relkind IN ('r', 'p') AND oid >= 16384
"""

_SCANS = """
    SELECT quote_ident(schemaname) || '.' || quote_ident(relname) FROM pg_stat_xact_user_tables WHERE seq_scan > 0
"""

_EXTENSIONS = """
    SELECT format('CREATE EXTENSION IF NOT EXISTS %I CASCADE', extname)
    FROM pg_extension
    WHERE extname <> 'plpgsql' AND NOT extname = ANY (:links) AND pg_get_userbyid(extowner) <> :owner
    ORDER BY oid
"""
"""Extensions that no revision made."""

_FUNCTIONS = """
    WITH own AS (
        SELECT n.oid, nspname FROM pg_namespace AS n
        WHERE nspname = ANY (:system) AND NOT EXISTS (SELECT FROM pg_extension WHERE extnamespace = n.oid)
          AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = n.oid AND classid = 2615 AND deptype = 'e')
    )
    SELECT format('CREATE SCHEMA IF NOT EXISTS %I', nspname) FROM own
    UNION ALL SELECT format('CREATE SEQUENCE IF NOT EXISTS %I.%I', nspname, relname)
    FROM own JOIN pg_class ON relnamespace = own.oid AND relkind = 'S'
    UNION ALL SELECT 'SET check_function_bodies = off'
    UNION ALL SELECT pg_get_functiondef(p.oid) FROM own JOIN pg_proc AS p ON pronamespace = own.oid AND prokind = 'f'
"""
"""Statements that make what a stand-in for an extension has."""
