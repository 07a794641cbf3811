"""Foreign tables: show the tables of the other databases in the reporting database, through `postgres_fdw`.

On each source there is a role that may log in and read the tables of its models, and nothing else. Its password is
generated and stored only in the user mappings of the reporting database, and as a verifier on the source. The tables
belong to the owner of the others; the application sees them in a schema with the name of the source and cannot write
through them.

A condition or a join that is not pushed down fetches whole tables. `explain` finds it in the plan of a query.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import sql
from sqlalchemy import ClauseElement, Connection, Enum, Integer, Numeric, String, Uuid, func, select, text
from sqlalchemy.engine import URL
from sqlalchemy.types import TypeEngine

from ..databases import DATABASES
from ..db.databases import DatabaseSpec
from ..urls import URL_SCHEME
from .base import OperationError
from .cluster import HOME, Cluster
from .cluster.drivers import open_cluster
from .cluster.nodes import DATABASE
from .connections import connect, unlogged, verification

TARGET = "reports"
"""The reporting database."""

FETCH = 10_000
"""Rows that are fetched from a source at once; the default of 100 costs a round trip for every hundred rows."""

Raw = psycopg.Connection[tuple[Any, ...]]


class ForeignError(OperationError):
    """A server refused the setup of foreign tables; the message names it and the reason."""


class NoTables(ForeignError):
    """The models declare no table for the reporting database to show, or a database has none of those of its models."""


@dataclass(frozen=True)
class Plan:
    """The parts of a query that run on other servers, and those that run here."""

    remote: list[str] = field(default_factory=list)
    """Statements that are sent to other servers."""
    local: list[str] = field(default_factory=list)
    """Joins and conditions that are applied to fetched rows."""

    @property
    def is_pushed_down(self) -> bool:
        """Only matching rows are fetched."""
        return bool(self.remote) and not self.local


def local_cluster(urls: Mapping[str, URL], home: Path = HOME) -> Cluster | None:
    """Return the local cluster in the folder `home` if these are its URLs."""
    if not (home / "env").exists():
        return None
    cluster = open_cluster(home=home)
    return cluster if cluster.urls() == urls else None


def sources() -> list[DatabaseSpec]:
    """Return the databases that get foreign tables: every other one that is on a server and whose models declare one.

    Raises:
        NoTables: there is none.
    """
    found = [spec for spec in _others() if spec.models.metadata.tables]
    if not found:
        names = " or ".join(spec.name for spec in _others())
        raise NoTables(f"no model declares a table of {names}, so {TARGET} has none to show: add a model first")
    return found


def set_up(
    admin_urls: Mapping[str, URL],
    *,
    owner_urls: Mapping[str, URL],
    application: str,
    cluster: Cluster | None = None,
    rotate: bool = False,
    prefix: str = "",
) -> dict[str, list[str]]:
    """Create or update the foreign tables of every source; return their names by schema.

    Args:
        admin_urls: URL of each node, for a role that may create roles and extensions.
        owner_urls: URL of each node, for the role that owns the tables.
        application: the application's role, which may read the tables.
        cluster: local cluster of these nodes; its servers reach each other at other addresses. None: the URLs hold.
        rotate: give the roles new passwords.
        prefix: prefix of every name, so that a trial does not touch the tables in use.

    Raises:
        ForeignError: a server refused; the message names it and the reason.
        NoTables: there are no tables to show.
        Unreachable: a server cannot be reached; nothing was changed.
    """
    with ExitStack() as stack:
        # Connects to all of them first, so that a server that is down is noticed before anything is changed.
        target = stack.enter_context(_connect(admin_urls, _target(), pinned=True))
        importing = stack.enter_context(_connect(owner_urls, _target()))
        owner = importing.info.user
        others = {spec.name: stack.enter_context(_connect(admin_urls, spec, pinned=True)) for spec in sources()}
        schemas = {}
        for spec in sources():
            tables = _existing(others[spec.name], spec)
            if not tables:
                raise NoTables(f"{spec.name} has none of its tables: run `migrate` first")
            try:
                with unlogged(target):
                    target.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw SCHEMA public")
                    name, role = f"{prefix}{spec.name}", f"{prefix}{DATABASE}_{TARGET}"
                    address = _address(admin_urls[spec.node or ""], spec.node or "", cluster, target)
                    password = (None if rotate else _password(target, name, owner)) or secrets.token_urlsafe(24)
                    _grant(others[spec.name], role, password, tables)
                    login = {"user": role, "password": password}
                    _link(target, name, address, login, users=(owner, application), owner=owner)
                with importing.transaction():
                    _import(importing, name, application, tables)
            except psycopg.Error as error:
                raise ForeignError(f"{spec.name}: {str(error).strip()}") from error
            schemas[name] = tables
        return schemas


def take_down(admin_urls: Mapping[str, URL], *, prefix: str = "") -> None:
    """Remove everything that `set_up` created, the roles on the sources included.

    Args:
        admin_urls: as for `set_up`.
        prefix: as for `set_up`.

    Raises:
        Unreachable: a server cannot be reached.
    """
    with ExitStack() as stack:
        target = stack.enter_context(_connect(admin_urls, _target(), pinned=True))
        for spec in _others():
            other = stack.enter_context(_connect(admin_urls, spec, pinned=True))
            name, role = f"{prefix}{spec.name}", f"{prefix}{DATABASE}_{TARGET}"
            _execute(target, "DROP SERVER IF EXISTS {} CASCADE", name)
            _execute(target, "DROP SCHEMA IF EXISTS {} CASCADE", name)
            if _has_role(other, role):
                # Its privileges on tables would keep the role from being dropped.
                _execute(other, "DROP OWNED BY {}", role)
                _execute(other, "DROP ROLE {}", role)


def explain(connection: Connection, query: str) -> Plan:
    """Return the parts of `query` that run on other servers, and those that run here."""
    rows = connection.execute(text(f"EXPLAIN (VERBOSE, FORMAT JSON) {query}")).scalar_one()
    plan = Plan()
    for statement in rows:
        _walk(statement["Plan"], plan)
    return plan


def examples(schema: str) -> dict[str, str]:
    """Return queries on the first source's foreign tables that its server has to answer.

    Args:
        schema: schema of the foreign tables in the reporting database.

    Returns:
        A filter; a join and a count, if one of the tables refers to another.
    """
    found: dict[str, ClauseElement] = {}
    tables = sources()[0].models.metadata.sorted_tables
    for table in tables:
        for key in table.primary_key:
            least = next((value for kind, value in _LEAST.items() if isinstance(key.type, kind)), None)
            if least is not None:
                found["filter"] = select(table).where(key > least)
        for reference in sorted(table.foreign_key_constraints, key=lambda one: str(one.name)):
            parent, [first, *rest] = reference.referred_table, reference.elements
            if parent is not table and parent in tables and not rest:
                both = table.join(parent, first.parent == first.column)
                found["join"] = select(first.column, *table.primary_key).select_from(both)
                found["count"] = select(first.column, func.count()).select_from(both).group_by(first.column)
    return {name: _in_schema(query, schema) for name, query in found.items()}


def control(schema: str) -> str:
    """Return a query on a foreign table whose condition can only be applied in the reporting database."""
    return _in_schema(select(sources()[0].models.metadata.sorted_tables[0]).where(func.random() < _CERTAIN), schema)


def _in_schema(query: ClauseElement, schema: str) -> str:
    """Return the text of a query on tables in that schema."""
    compiled = query.compile(
        dialect=URL.create(URL_SCHEME).get_dialect()(),
        schema_translate_map={None: schema},
        render_schema_translate=True,
        compile_kwargs={"literal_binds": True},
    )
    return str(compiled)


_CERTAIN = 2
"""More than `random()` ever returns."""

_LEAST: dict[type[TypeEngine[Any]], Any] = {Enum: None, Uuid: UUID(int=0), Integer: 0, Numeric: 0, String: ""}
"""A value of each type of key that a filter can compare it with."""


def _walk(node: Mapping[str, Any], plan: Plan) -> None:
    kind = node["Node Type"]
    if kind == "Foreign Scan":
        plan.remote.append(node["Remote SQL"])
    elif kind.endswith(("Join", "Loop")):
        condition = node.get("Hash Cond") or node.get("Merge Cond") or node.get("Join Filter") or ""
        plan.local.append(f"{kind} {condition}".strip())
    if "Filter" in node:
        plan.local.append(f"filter {node['Filter']}")
    for child in node.get("Plans", ()):
        _walk(child, plan)


def _target() -> DatabaseSpec:
    return next(spec for spec in DATABASES if spec.name == TARGET)


def _others() -> list[DatabaseSpec]:
    return [spec for spec in DATABASES if spec.node is not None and spec.name != TARGET]


@contextmanager
def _connect(urls: Mapping[str, URL], spec: DatabaseSpec, *, pinned: bool = False) -> Iterator[Raw]:
    if spec.node is None or spec.node not in urls:
        raise ForeignError(f"{spec.name} is on {spec.node}, and no URL of that node is configured")
    with connect(urls[spec.node], node=spec.name, statement_timeout=30, pinned=pinned) as connection:
        raw: Any = connection.connection.driver_connection
        yield raw


def _existing(source: Raw, spec: DatabaseSpec) -> list[str]:
    declared = [table.name for table in spec.models.metadata.sorted_tables]
    rows = source.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename = ANY(%s) ORDER BY 1", [declared]
    )
    return [name for (name,) in rows]


def _address(url: URL, node: str, cluster: Cluster | None, target: Raw) -> dict[str, str]:
    """Return the address at which `target` reaches a node; in a local cluster it differs from the URL."""
    database = url.database or DATABASE
    verified = verification(url, target)
    if cluster is None:
        return {"host": url.host or "localhost", "port": str(url.port or 5432), "dbname": database, **verified}
    if cluster.driver == "compose":
        return {"host": node, "port": "5432", "dbname": database, **verified}
    # By service name, because a server of the embedded cluster may restart on another port.
    return {"service": node, "dbname": database}


def _password(target: Raw, name: str, owner: str) -> str | None:
    """Return the password in use; with the same one, a setup that fails half-way leaves the foreign tables working."""
    row = target.execute(
        "SELECT option_value FROM pg_user_mappings, pg_options_to_table(umoptions) "
        "WHERE srvname = %s AND usename = %s AND option_name = 'password'",
        [name, owner],
    ).fetchone()
    return str(row[0]) if row else None


def _has_role(source: Raw, role: str) -> bool:
    return source.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone() is not None


def _grant(source: Raw, role: str, password: str, tables: Sequence[str]) -> None:
    """Create or update a role that may log in and read these tables and no others."""
    verifier = source.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    with source.transaction():
        if not _has_role(source, role):
            _execute(source, "CREATE ROLE {}", role)
        _execute(source, "ALTER ROLE {} LOGIN NOINHERIT CONNECTION LIMIT 20 PASSWORD {}", role, sql.Literal(verifier))
        _execute(source, "ALTER ROLE {} SET default_transaction_read_only = on", role)
        _execute(source, "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {}", role)
        _execute(source, "GRANT CONNECT ON DATABASE {} TO {}", source.info.dbname, role)
        _execute(source, "GRANT USAGE ON SCHEMA public TO {}", role)
        readable = sql.SQL(", ").join(sql.Identifier("public", table) for table in tables)
        _execute(source, "GRANT SELECT ON {} TO {}", readable, role)


def _link(
    target: Raw, name: str, address: Mapping[str, str], login: Mapping[str, str], *, users: Sequence[str], owner: str
) -> None:
    """Create or update the server, the logins of its users there, and the schema for its tables."""
    options = {**address, "fetch_size": str(FETCH), "use_remote_estimate": "true", "updatable": "false"}
    _execute(target, "CREATE SERVER IF NOT EXISTS {} FOREIGN DATA WRAPPER postgres_fdw", name)
    row = target.execute("SELECT srvoptions FROM pg_foreign_server WHERE srvname = %s", [name]).fetchone()
    _execute(target, "ALTER SERVER {} OPTIONS ({})", name, _changes(row, options))
    _execute(target, "GRANT USAGE ON FOREIGN SERVER {} TO {}", name, owner)
    for user in users:
        _execute(target, "CREATE USER MAPPING IF NOT EXISTS FOR {} SERVER {}", user, name)
        mapping = "SELECT umoptions FROM pg_user_mappings WHERE srvname = %s AND usename = %s"
        changes = _changes(target.execute(mapping, [name, user]).fetchone(), login)
        _execute(target, "ALTER USER MAPPING FOR {} SERVER {} OPTIONS ({})", user, name, changes)
    _execute(target, "CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}", name, owner)


def _import(importing: Raw, name: str, application: str, tables: Sequence[str]) -> None:
    """Import the tables into the schema `name`, again if they are there, because their columns may have changed."""
    for table in tables:
        _execute(importing, "DROP FOREIGN TABLE IF EXISTS {}", sql.Identifier(name, table))
    names = sql.SQL(", ").join(map(sql.Identifier, tables))
    _execute(importing, "IMPORT FOREIGN SCHEMA public LIMIT TO ({}) FROM SERVER {} INTO {}", names, name, name)
    _execute(importing, "GRANT USAGE ON SCHEMA {} TO {}", name, application)
    _execute(importing, "REVOKE ALL ON ALL TABLES IN SCHEMA {} FROM {}", name, application)
    _execute(importing, "GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}", name, application)


def _execute(connection: Raw, statement: LiteralString, *parts: str | sql.Composable) -> None:
    """Execute a statement with its parts filled in; text is an identifier."""
    filled = (sql.Identifier(part) if isinstance(part, str) else part for part in parts)
    connection.execute(sql.SQL(statement).format(*filled))


def _changes(row: tuple[Any, ...] | None, wanted: Mapping[str, str]) -> sql.Composed:
    """Return the list of options that turns the existing ones, of a row with an array, into the wanted ones."""
    have = {option.partition("=")[0] for option in (row and row[0]) or ()}
    parts: list[sql.Composable] = [
        sql.SQL("{} {} {}").format(sql.SQL("SET" if key in have else "ADD"), sql.Identifier(key), sql.Literal(value))
        for key, value in wanted.items()
    ]
    parts += [sql.SQL("DROP {}").format(sql.Identifier(key)) for key in sorted(have - wanted.keys())]
    return sql.SQL(", ").join(parts)
