"""Checks that every node answers, and that all have the same schema."""

import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError

from ....db.retry import first_line
from ...connections import Unreachable, connect, connect_all
from ...migrate import (
    differences,
    load_config,
    load_scripts,
    node_to_compare,
    read_schema,
    resolve,
    version_of,
    waiting_contract,
)
from ...privileges import quoted
from ...topology import Topology
from ...versions import compare_models
from ..check import Check, CheckContext, CheckResult, judge, skipped


class EveryNodeAnswers(Check):
    """Every node answers.

    Start the node that does not, or correct its URL: `status` shows a local cluster.
    """

    requires = ()
    timeout = 8.0

    def run(self, context: CheckContext) -> CheckResult:
        """Connect to each node as each role, all nodes at once, and run a query."""
        times: dict[str, float] = {}
        problems: list[str] = []

        def ask(node: str) -> None:
            url = context.admin_urls[node]
            try:
                pooler, pinned = {"transaction_pooler": context.transaction_pooler}, {"pinned": True}
                for urls, options in ((context.admin_urls, pinned), (context.urls, pooler), (context.owner_urls, {})):
                    url = urls[node]
                    started = time.monotonic()
                    with connect(url, node=node, statement_timeout=3, **options) as connection:
                        connection.execute(text("SELECT 1"))
                    times[node] = max(times.get(node, 0.0), round(1000 * (time.monotonic() - started), 1))
            except (Unreachable, DBAPIError) as error:
                problems.append(str(error).partition("\n")[0] + way_out(error, url, context.admin_urls[node]))

        with ThreadPoolExecutor(len(context.urls)) as threads:
            list(threads.map(ask, context.urls))
        slowest = max(times.values(), default=0.0)
        return judge(sorted(problems), f"{len(times)} nodes, slowest {slowest:.0f} ms", {"connect_ms": times})


def way_out(error: Exception, url: URL, admin_url: URL) -> str:
    """Return the statement that lets a role connect, if the server's message shows which one; else an empty text.

    Args:
        error: the refused connection.
        url: its URL.
        admin_url: URL of the same node for an administrator, who is asked what the message leaves open.
    """
    message, role, database = first_line(error), quoted(url.username or ""), quoted(url.database or "")
    for pattern, statement in _WAYS_OUT.items():
        if re.search(pattern, message):
            return ": " + statement.format(role=role, database=database)
    if "password authentication failed" in message and url != admin_url:
        values = {"role": url.username}
        with suppress(Unreachable, DBAPIError), connect(admin_url, node="", pinned=True) as connection:
            if connection.scalar(text("SELECT rolvaliduntil < now() FROM pg_roles WHERE rolname = :role"), values):
                return f", which has expired: ALTER ROLE {role} VALID UNTIL 'infinity'"
        return f", so the URL has another password than the server: correct it, or ALTER ROLE {role} PASSWORD …"
    return ""


_WAYS_OUT = {
    "is not permitted to log in": "ALTER ROLE {role} LOGIN",
    "too many connections for role": "ALTER ROLE {role} CONNECTION LIMIT -1",
    "too many connections for database": "ALTER DATABASE {database} CONNECTION LIMIT -1",
    "is not currently accepting connections": "ALTER DATABASE {database} ALLOW_CONNECTIONS true",
    "permission denied for database": "GRANT CONNECT ON DATABASE {database} TO {role}",
}


class SchemaIsTheSame(Check):
    """The schema is the same everywhere.

    Run `migrate`. An object that was created, changed or dropped by hand on one node has to be mended by hand there,
    so that it is as on the others.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the catalogues and the revisions of all nodes that have the models' tables."""
        context.check_sight()
        scripts = load_scripts(load_config(context.project))
        head = resolve(scripts, "heads")
        urls = {node: url for node, url in context.owner_urls.items() if node not in Topology.nodes_without_models}
        with connect_all(urls) as connections:
            schemas = {node: read_schema(connection) for node, connection in connections.items()}
            versions = {node: version_of(connection) for node, connection in connections.items()}
        late = {node: version or "no revision" for node, version in versions.items() if version != head}
        waits = waiting_contract(scripts, versions.values())
        doubts = [waits] if waits else []
        problems = [] if waits else [f"{node} is at {version}, not {head}" for node, version in late.items()]
        objects = {node: len(schema) for node, schema in schemas.items()}
        evidence = {"head": head, "revisions": versions, "objects": objects}
        problems += [line + mend(line, schemas) for line in differences(schemas)]
        return judge(problems, f"revision {head}, {min(objects.values())} objects alike", evidence, doubts)


class ModelsAreMigrated(Check):
    """The models are what the migrations made.

    Write the missing revision with `revision`, or deploy the version of the application that belongs to the schema.
    """

    requires = ("EveryNodeAnswers", "SchemaIsTheSame")
    timeout = 30.0

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the models with a node, which is at the newest revision."""
        context.check_sight()
        node = node_to_compare(context.admin_urls)
        scripts = load_scripts(load_config(context.project))
        with connect(context.owner_urls[node], node=node) as connection:
            if waits := waiting_contract(scripts, [version_of(connection)]):
                return skipped(waits)
        found = compare_models(context.owner_urls[node], project=context.project)
        return judge([f"{node}: {line}" for line in found], "no difference", {"node": node})


def mend(line: str, schemas: Mapping[str, Mapping[str, str]]) -> str:
    """Return the statement for a line of `differences` that names something missing; empty if it needs a decision.

    The other nodes get an object that most nodes have. One that few nodes have is dropped there, unless it holds rows.
    """
    found = re.fullmatch(r"(?P<name>.*) is missing on (?P<lacking>.*) and exists on (?P<having>.*)", line)
    if found is None:
        return ""
    name, lacking, having = (found[group] for group in ("name", "lacking", "having"))
    kind, _, rest = name.removeprefix("event ").partition(" ")
    title, _, table = rest.rpartition(" on ")
    if lacking.count(",") > having.count(","):
        drop = _DROP.get(kind)
        return f"; on {having}: " + drop.format(title=title, table=table, rest=rest) if drop else ""
    schema = schemas[having.partition(", ")[0]]
    create = _CREATE[kind](rest, schema[name], schema) if kind in _CREATE else ""
    return f"; on {lacking}: {create}" if create else ""


def _column(name: str, definition: str, schema: Mapping[str, str]) -> str:
    table, _, column = name.rpartition(".")
    return f"ALTER TABLE {table} ADD COLUMN {column} {definition}"


def _constraint(name: str, definition: str, schema: Mapping[str, str]) -> str:
    title, _, table = name.rpartition(" on ")
    return f"ALTER TABLE {table} ADD CONSTRAINT {title} {definition}"


def _table(table: str, definition: str, schema: Mapping[str, str]) -> str:
    """Return the statements for an ordinary table; for another one none."""
    kind, _, owner = definition.partition(" of ")
    if kind != "rp" or "," in owner:
        return ""
    prefix, suffix = f"column {table}.", f" on {table}"
    columns = [f"{name.removeprefix(prefix)} {one}" for name, one in schema.items() if name.startswith(prefix)]
    constraints = {
        name: one for name, one in schema.items() if name.endswith(suffix) and name.startswith("constraint ")
    }
    titles = [name.removeprefix("constraint ").removesuffix(suffix) for name in constraints]
    columns += [f"CONSTRAINT {title} {one}" for title, one in zip(titles, constraints.values(), strict=True)]
    # A constraint brings its index.
    own = {f"index {title}{suffix}" for title in titles}
    indexes = [
        one for name, one in schema.items() if name.endswith(suffix) and name.startswith("index ") and name not in own
    ]
    create = f"CREATE TABLE {table} ({', '.join(columns)})"
    return "; ".join([create, f"ALTER TABLE {table} OWNER TO {quoted(owner)}", *indexes])


def _as_it_is(name: str, definition: str, schema: Mapping[str, str]) -> str:
    return re.sub(r" \((invalid|disabled|enabled [a-z ]+)\)$", "", definition).removesuffix(";")


_CREATE: Mapping[str, Callable[[str, str, Mapping[str, str]], str]] = {
    "column": _column,
    "constraint": _constraint,
    "table": _table,
    "index": _as_it_is,
    "trigger": _as_it_is,
    "rule": _as_it_is,
    "policy": _as_it_is,
    "sequence": lambda name, definition, _: f"CREATE SEQUENCE {name} {definition}",
}
"""Functions of a name, a definition and a whole schema that return the statement that makes an object of a kind."""

_DROP = {
    "constraint": "ALTER TABLE {table} DROP CONSTRAINT {title}",
    "index": "DROP INDEX {title}",
    "trigger": "DROP TRIGGER {title} ON {table}",
    "rule": "DROP RULE {title} ON {table}",
    "policy": "DROP POLICY {title} ON {table}",
    "function": "DROP FUNCTION {rest}",
}
