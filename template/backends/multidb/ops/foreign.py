"""The tables of the other databases, seen from the reporting database: `postgres_fdw`, set up by a command.

On each source there is a role that may log in and read the tables of its models, nothing else. Its password is generated, kept
nowhere but in the user mapping of the reporting database, and on the source as a verifier. The application sees the tables there
in a schema that has the source's name, and cannot write through them.

What a query really does is in its plan: a condition or a join that is not sent along fetches whole tables. `explain` finds it.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from ..db.databases import Place
from ..places import PLACES
from .cluster import HOME, Cluster
from .cluster.kinds import open_cluster
from .cluster.nodes import DATABASE
from .connections import connect

TARGET = "reports"
"""The database that looks at the others."""

FETCH = 10_000
"""Rows that are fetched from a source at once; the default of 100 is a round trip for each hundred rows."""

Raw = psycopg.Connection[tuple[Any, ...]]


class ForeignError(Exception):
    """Foreign tables cannot be set up or do not do what they should; the message says where and why."""


@dataclass(frozen=True)
class Seen:
    """One source, as the reporting database sees it."""

    source: str
    schema: str
    tables: Sequence[str]


@dataclass(frozen=True)
class Plan:
    """What a query sends to other servers, and what is left to do here."""

    remote: list[str] = field(default_factory=list)
    """The statements that are sent, as the server words them."""
    local: list[str] = field(default_factory=list)
    """Joins and conditions that are applied to the rows after they were fetched."""

    @property
    def is_pushed_down(self) -> bool:
        """Whether nothing but what matches is fetched."""
        return bool(self.remote) and not self.local


def local_cluster(urls: Mapping[str, URL], home: Path = HOME) -> Cluster | None:
    """The local cluster, if it is what these URLs name."""
    if not (home / "env").exists():
        return None
    cluster = open_cluster(home=home)
    return cluster if cluster.urls() == urls else None


def sources() -> list[Place]:
    """The databases that the reporting database looks at: every other one that is on a server."""
    return [place for place in PLACES if place.node is not None and place.name != TARGET]


def set_up(
    admin_urls: Mapping[str, URL],
    *,
    owner: str,
    cluster: Cluster | None = None,
    rotate: bool = False,
    prefix: str = "",
) -> list[Seen]:
    """Let the reporting database see the tables of the others; what is set up already is brought up to date.

    Args:
        admin_urls: the nodes, for a role that may make roles and extensions.
        owner: the application's role, which may read the tables there.
        cluster: the local cluster that the nodes are, if so: its servers find each other by other addresses than we do.
        rotate: give the roles new passwords.
        prefix: of everything that gets a name, for those who try it out.

    Raises:
        ForeignError: a server refused; the message says which and why.
        Unreachable: a server cannot be reached; nothing was changed.
    """
    home = _place(TARGET)
    with ExitStack() as stack:
        # All of them first: a server that is down is noticed before anything is changed.
        target = stack.enter_context(_connect(admin_urls, home))
        others = {place.name: stack.enter_context(_connect(admin_urls, place)) for place in sources()}
        seen = []
        for place in sources():
            tables = _existing(others[place.name], place)
            if not tables:
                raise ForeignError(f"{place.name} has none of its tables: run `migrate` first")
            try:
                with target.transaction():
                    target.execute("SET LOCAL log_min_error_statement = 'panic'")  # a statement below holds a password
                    target.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw")
                    name = f"{prefix}{place.name}"
                    role = f"{prefix}{DATABASE}_{TARGET}"
                    address = _address(admin_urls[place.node or ""], place.node or "", cluster)
                    password = (None if rotate else _password(target, name, owner)) or secrets.token_urlsafe(24)
                    _allow(others[place.name], role, password, tables)
                    _see(target, name, address, role, password, owner, tables)
            except psycopg.Error as error:
                raise ForeignError(f"{place.name}: {str(error).strip()}") from error
            seen.append(Seen(place.name, name, tables))
        return seen


def take_down(admin_urls: Mapping[str, URL], *, prefix: str = "") -> None:
    """Remove what `set_up` made, the roles on the sources included.

    Raises:
        Unreachable: a server cannot be reached.
    """
    with ExitStack() as stack:
        target = stack.enter_context(_connect(admin_urls, _place(TARGET)))
        for place in sources():
            other = stack.enter_context(_connect(admin_urls, place))
            name, role = sql.Identifier(f"{prefix}{place.name}"), f"{prefix}{DATABASE}_{TARGET}"
            target.execute(sql.SQL("DROP SERVER IF EXISTS {} CASCADE").format(name))
            target.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(name))
            if _has_role(other, role):
                # Open sessions of foreign tables would keep the role from being dropped.
                other.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
                other.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def explain(connection: Connection, query: str) -> Plan:
    """What `query` sends to other servers, and what it does with the rows that come back."""
    rows = connection.execute(text(f"EXPLAIN (VERBOSE, FORMAT JSON) {query}")).scalar_one()
    plan = Plan()
    for statement in rows:
        _walk(statement["Plan"], plan)
    return plan


def examples(schema: str) -> dict[str, str]:
    """Questions to the ledger that have to be answered by its server: a filter, a join, both with a sum."""
    entry, account = f'"{schema}".entry', f'"{schema}".account'
    return {
        "filter": f"SELECT amount FROM {entry} WHERE amount > 100",  # noqa: S608 - quoted
        "join": f"SELECT a.owner, e.amount FROM {entry} e JOIN {account} a ON a.id = e.account_id WHERE a.owner = 'Ada'",  # noqa: S608
        "sum": f"SELECT a.owner, sum(e.amount) FROM {entry} e JOIN {account} a ON a.id = e.account_id GROUP BY a.owner",  # noqa: S608
    }


def _walk(node: Mapping[str, Any], plan: Plan) -> None:
    kind = node["Node Type"]
    if kind == "Foreign Scan":
        plan.remote.append(node["Remote SQL"])
    elif kind.endswith(("Join", "Loop")):
        plan.local.append(
            f"{kind} {node.get('Hash Cond') or node.get('Merge Cond') or node.get('Join Filter') or ''}".strip()
        )
    if "Filter" in node:
        plan.local.append(f"filter {node['Filter']}")
    for child in node.get("Plans", ()):
        _walk(child, plan)


def _place(name: str) -> Place:
    return next(place for place in PLACES if place.name == name)


@contextmanager
def _connect(admin_urls: Mapping[str, URL], place: Place) -> Iterator[Raw]:
    if place.node is None or place.node not in admin_urls:
        raise ForeignError(f"{place.name} lives on {place.node}, and no URL of that node is known")
    with connect(admin_urls[place.node], node=place.name, statement_timeout=30) as connection:
        raw: Any = connection.connection.driver_connection
        yield raw


def _existing(source: Raw, place: Place) -> list[str]:
    wanted = [table.name for table in place.models.metadata.sorted_tables]
    rows = source.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename = ANY(%s) ORDER BY 1", [wanted]
    )
    return [name for (name,) in rows]


def _address(url: URL, node: str, cluster: Cluster | None) -> dict[str, str]:
    """Where a server finds another one, which in a local cluster is not where we find it."""
    database = url.database or DATABASE
    if cluster is None:
        secure = {key: str(value) for key, value in url.query.items() if key == "sslmode"}
        return {"host": url.host or "localhost", "port": str(url.port or 5432), "dbname": database, **secure}
    if cluster.kind == "compose":
        return {"host": node, "port": "5432", "dbname": database}
    # By name: a server of the embedded cluster may come back on another port.
    return {"service": node, "dbname": database}


def _password(target: Raw, name: str, owner: str) -> str | None:
    """The password that is in use, so that a setup that fails half-way leaves a working one as it was."""
    row = target.execute(
        "SELECT option_value FROM pg_user_mappings, pg_options_to_table(umoptions) "
        "WHERE srvname = %s AND usename = %s AND option_name = 'password'",
        [name, owner],
    ).fetchone()
    return str(row[0]) if row else None


def _has_role(source: Raw, role: str) -> bool:
    return source.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone() is not None


def _allow(source: Raw, role: str, password: str, tables: Sequence[str]) -> None:
    """Let a role log in and read these tables, and no others: what it could read before is taken back."""
    verifier = source.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    name = sql.Identifier(role)
    with source.transaction():
        if not _has_role(source, role):
            source.execute(sql.SQL("CREATE ROLE {}").format(name))
        source.execute(
            sql.SQL("ALTER ROLE {} LOGIN NOINHERIT CONNECTION LIMIT 20 PASSWORD {}").format(name, sql.Literal(verifier))
        )
        source.execute(sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(name))
        source.execute(sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {}").format(name))
        source.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(source.info.dbname), name))
        source.execute(sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(name))
        readable = sql.SQL(", ").join(sql.Identifier("public", table) for table in tables)
        source.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(readable, name))


def _see(
    target: Raw, name: str, address: Mapping[str, str], role: str, password: str, owner: str, tables: Sequence[str]
) -> None:
    """Show the tables in the schema `name`; those that are there are made anew, for their columns may have changed."""
    server, application = sql.Identifier(name), sql.Identifier(owner)
    options = {**address, "fetch_size": str(FETCH), "use_remote_estimate": "true", "updatable": "false"}
    target.execute(sql.SQL("CREATE SERVER IF NOT EXISTS {} FOREIGN DATA WRAPPER postgres_fdw").format(server))
    row = target.execute("SELECT srvoptions FROM pg_foreign_server WHERE srvname = %s", [name]).fetchone()
    target.execute(sql.SQL("ALTER SERVER {} OPTIONS ({})").format(server, _changes(row[0] if row else None, options)))
    target.execute(sql.SQL("GRANT USAGE ON FOREIGN SERVER {} TO {}").format(server, application))
    target.execute(sql.SQL("CREATE USER MAPPING IF NOT EXISTS FOR {} SERVER {}").format(application, server))
    row = target.execute(
        "SELECT umoptions FROM pg_user_mappings WHERE srvname = %s AND usename = %s", [name, owner]
    ).fetchone()
    login = _changes(row[0] if row else None, {"user": role, "password": password})
    target.execute(sql.SQL("ALTER USER MAPPING FOR {} SERVER {} OPTIONS ({})").format(application, server, login))
    target.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}").format(server, application))
    target.execute(sql.SQL("SET LOCAL ROLE {}").format(application))
    for table in tables:
        target.execute(sql.SQL("DROP FOREIGN TABLE IF EXISTS {}").format(sql.Identifier(name, table)))
    shown = sql.SQL(", ").join(map(sql.Identifier, tables))
    target.execute(
        sql.SQL("IMPORT FOREIGN SCHEMA public LIMIT TO ({}) FROM SERVER {} INTO {}").format(shown, server, server)
    )
    target.execute("RESET ROLE")


def _changes(existing: Sequence[str] | None, wanted: Mapping[str, str]) -> sql.Composed:
    """The list of options that turns the existing ones into the wanted ones."""
    have = {option.partition("=")[0] for option in existing or ()}
    parts: list[sql.Composable] = [
        sql.SQL("{} {} {}").format(sql.SQL("SET" if key in have else "ADD"), sql.Identifier(key), sql.Literal(value))
        for key, value in wanted.items()
    ]
    parts += [sql.SQL("DROP {}").format(sql.Identifier(key)) for key in sorted(have - wanted.keys())]
    return sql.SQL(", ").join(parts)
