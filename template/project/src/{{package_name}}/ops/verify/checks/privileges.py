"""Check that each role of a database has what it needs, and nothing more."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from ....db.retry import first_line, sqlstate_of
from ...cluster.nodes import ROLES
from ...migrate import SCRATCH_PREFIX
from ...privileges import VERSION_TABLE, quoted
from ...topology import Topology
from ..check import Check, CheckContext, CheckResult, judge, skipped, warned

Need: TypeAlias = Literal["needed", "allowed"]

RIGHTS: Mapping[str, Mapping[str, Mapping[str, Need]]] = {
    "DATABASE": {
        "application": {"CONNECT": "needed"},
        "reader": {"CONNECT": "needed"},
        "monitor": {"CONNECT": "needed"},
    },
    "SCHEMA": {
        "application": {"USAGE": "needed"},
        "reader": {"USAGE": "needed"},
        "monitor": {"USAGE": "allowed"},
        "public": {"USAGE": "allowed"},
    },
    "TABLE": {
        "application": dict.fromkeys(("SELECT", "INSERT", "UPDATE", "DELETE"), "needed"),
        "reader": {"SELECT": "needed"},
    },
    # The table of revisions, and foreign tables: not written by the application.
    "TABLE to read": {"application": {"SELECT": "allowed"}, "reader": {"SELECT": "allowed"}},
    # Tools may write through a view; what that needs is up to them.
    "VIEW": {
        "application": {"SELECT": "needed", "INSERT": "allowed", "UPDATE": "allowed", "DELETE": "allowed"},
        "reader": {"SELECT": "needed"},
    },
    "SEQUENCE": {
        "application": {"USAGE": "needed", "SELECT": "allowed", "UPDATE": "allowed"},
        "reader": {"SELECT": "allowed"},
    },
    # A function that a table or a view calls, for a default or a check.
    "FUNCTION": {
        "application": {"EXECUTE": "needed"},
        "reader": {"EXECUTE": "allowed"},
        "monitor": {"EXECUTE": "allowed"},
        "public": {"EXECUTE": "allowed"},
    },
}
"""Privileges that each role needs or may have, by the kind of object; every other one is too much."""

PRIVILEGES: Mapping[str, Sequence[str]] = {
    "DATABASE": ("CONNECT", "CREATE", "TEMPORARY"),
    "SCHEMA": ("USAGE", "CREATE"),
    "TABLE": ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"),
    "SEQUENCE": ("USAGE", "SELECT", "UPDATE"),
    "FUNCTION": ("EXECUTE",),
}
"""Privileges that are looked at, by the kind of object."""


class EveryRoleHasWhatItNeedsAndNoMore(Check):
    """Every role has what it needs and no more.

    Run the statement of each line on the node that it names, as an administrator.
    """

    timeout = 15.0

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the privileges of every role on every object with those that it should have."""
        owner = context.owner
        if owner == context.application:
            return warned(f"{owner} owns the tables, and the application logs in as {owner}: give it a role of its own")
        excess: list[str] = []
        lacking: dict[str, list[str]] = {}
        count = 0
        with context.topology() as topology:
            # A replica has the privileges of its writer.
            for node in topology.writers():
                connection = topology.connections[node]
                roles = {"application": context.application, "owner": owner}
                others = [ROLES[role] for role in ("reader", "monitor")]
                found = set(connection.scalars(text(_ROLES), {"names": others}))
                roles |= {role: name for role, name in ROLES.items() if name in found and role not in roles}
                try:
                    too_much, too_little = compare(connection, roles)
                except DBAPIError as error:
                    if sqlstate_of(error) not in ("42501", "42883", "42704", "0A000"):
                        raise
                    return skipped(f"{node} does not show the privileges: {first_line(error)}")
                excess += [f"{node}: {line}" for line in too_much]
                lacking[node] = [f"{node}: {line}" for line in too_little]
                count = max(count, len(roles))
        evidence = {"too_much": excess, "too_little": [line for lines in lacking.values() for line in lines]}
        # Somebody may have kept a role from a table, but on all nodes then.
        some, every = uneven(lacking)
        return judge(excess + some, f"{count} roles, none has too much or too little", evidence, every)


def uneven(lines: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Return the lines that only some of the nodes with the models' tables have, and all others.

    Args:
        lines: lines of each node, each beginning with the name of the node and a colon.
    """
    alike = [node for node in lines if node not in Topology.nodes_without_models]
    counts = Counter(line.partition(": ")[2] for node in alike for line in set(lines[node]))
    some: list[str] = []
    every: list[str] = []
    for node, found in lines.items():
        for line in found:
            is_choice = node not in alike or counts[line.partition(": ")[2]] == len(alike)
            (every if is_choice else some).append(line)
    return some, every


def compare(connection: Connection, roles: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return what the roles of the database of a connection have too much, and what they lack.

    Each line names the role, the privilege and the object, and ends with the statement that mends it.

    Args:
        connection: a connection to the database, for a role that sees all objects.
        roles: names of the roles; `application` and `owner`, and those of `reader` and `monitor` that exist.
    """
    owner = roles["owner"]
    named = {role: name for role, name in roles.items() if role != "owner"} | {"public": "public"}
    excess = list(_attributes(connection, [name for role, name in named.items() if role != "public"], owner))
    lacking: list[str] = []
    for kind, name, rule, held in _held(connection, list(named.values())):
        for role, holder in named.items():
            who = "PUBLIC" if role == "public" else quoted(holder)
            rights, has = RIGHTS[rule].get(role, {}), held.get(holder, set())
            # A privilege of PUBLIC is reported once, for PUBLIC.
            everybody = held.get("public", set()) if role != "public" else set()
            for privilege in sorted(has - rights.keys() - everybody):
                mend = f"REVOKE {privilege} ON {kind} {name} FROM {who}"
                excess.append(f"{holder} has {privilege} on {name}, too much: {mend}")
            for privilege in (one for one, need in rights.items() if need == "needed" and one not in has):
                mend = f"GRANT {privilege} ON {kind} {name} TO {who}"
                lacking.append(f"{holder} lacks {privilege} on {name}: {mend}")
    return excess, lacking


def _held(connection: Connection, holders: Sequence[str]) -> Iterator[tuple[str, str, str, dict[str, set[str]]]]:
    """Yield the kind, the name and the rule of each object, and the privileges that each role has on it."""
    for kind, (objects, function) in _OBJECTS.items():
        query = _HELD.format(objects=objects, function=function)
        found: dict[tuple[str, str], dict[str, set[str]]] = {}
        values = {"roles": list(holders), "privileges": list(PRIVILEGES[kind]), "table": VERSION_TABLE}
        for schema, name, rule, role, privilege, has in connection.execute(text(query), values):
            if schema in Topology.system_schemas or str(schema).startswith(SCRATCH_PREFIX):
                continue
            privileges = found.setdefault((name, rule), {}).setdefault(role, set())
            if has:
                privileges.add(privilege)
        for (name, rule), held in found.items():
            yield kind, name, rule, held


def _attributes(connection: Connection, names: Sequence[str], owner: str) -> Iterator[str]:
    for row in connection.execute(text(_ATTRIBUTES), {"names": [*names, owner]}).mappings():
        for column, attribute in _MIGHTY.items():
            if row[column]:
                mend = f"ALTER ROLE {quoted(row['rolname'])} NO{attribute}"
                yield f"{row['rolname']} is {attribute}, too much: {mend}"
    for member in connection.scalars(text(_MEMBERS), {"names": list(names), "owner": owner}):
        yield f"{member} is a member of {owner}, too much: REVOKE {quoted(owner)} FROM {quoted(member)}"
    for name, holder in connection.execute(text(_OWNED), {"names": list(names)}):
        yield f"{holder} owns {name}, too much: ALTER TABLE {name} OWNER TO {quoted(owner)}"


_MIGHTY = {
    "rolsuper": "SUPERUSER",
    "rolcreaterole": "CREATEROLE",
    "rolcreatedb": "CREATEDB",
    "rolreplication": "REPLICATION",
    "rolbypassrls": "BYPASSRLS",
}

_ROLES = "SELECT rolname::text FROM pg_roles WHERE rolname = ANY(CAST(:names AS text[]))"

_ATTRIBUTES = """
    SELECT rolname::text, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls
    FROM pg_roles WHERE rolname = ANY(CAST(:names AS text[])) ORDER BY 1
"""

_MEMBERS = """
    SELECT rolname::text FROM pg_roles
    WHERE rolname = ANY(CAST(:names AS text[])) AND NOT rolsuper
      AND pg_has_role(rolname, CAST(:owner AS name), 'MEMBER')
"""

_OWNED = """
    SELECT format('%I.%I', nspname, relname), rolname::text
    FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace JOIN pg_roles AS r ON r.oid = relowner
    WHERE rolname = ANY(CAST(:names AS text[])) AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
      AND nspname !~ '^pg_' AND nspname <> 'information_schema' ORDER BY 1
"""

_RELATIONS = """
    SELECT nspname AS schema, format('%I.%I', nspname, relname) AS name, c.oid AS object,
           CASE WHEN relkind = 'f' OR relname = :table THEN 'TABLE to read' ELSE '{kind}' END AS rule
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE relkind IN ({kinds}) AND nspname !~ '^pg_' AND nspname <> 'information_schema'
      AND right(nspname::text, 9) <> '_internal'
"""

# The functions that a default, a check, an index, a policy or a view depends on.
_FUNCTIONS = """
    SELECT DISTINCT '' AS schema, CAST(CAST(p.oid AS regprocedure) AS text) AS name, p.oid AS object, 'FUNCTION' AS rule
    FROM pg_depend AS d JOIN pg_proc AS p ON p.oid = d.refobjid JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE d.refclassid = CAST('pg_proc' AS regclass) AND nspname <> 'pg_catalog'
      AND d.classid IN (CAST('pg_attrdef' AS regclass), CAST('pg_constraint' AS regclass),
                        CAST('pg_rewrite' AS regclass), CAST('pg_policy' AS regclass), CAST('pg_class' AS regclass))
"""

_OBJECTS = {
    "DATABASE": (
        "SELECT '' AS schema, format('%I', datname) AS name, oid AS object, 'DATABASE' AS rule "
        "FROM pg_database WHERE datname = current_database() AND datname <> :table",
        "has_database_privilege",
    ),
    "SCHEMA": (
        "SELECT nspname AS schema, format('%I', nspname) AS name, oid AS object, 'SCHEMA' AS rule FROM pg_namespace "
        "WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND nspname <> :table "
        "AND right(nspname::text, 9) <> '_internal'",
        "has_schema_privilege",
    ),
    "TABLE": (
        _RELATIONS.format(kind="TABLE", kinds="'r', 'p', 'f'")
        + " UNION ALL "
        + _RELATIONS.format(kind="VIEW", kinds="'v', 'm'"),
        "has_table_privilege",
    ),
    "SEQUENCE": (_RELATIONS.format(kind="SEQUENCE", kinds="'S'"), "has_sequence_privilege"),
    "FUNCTION": (_FUNCTIONS, "has_function_privilege"),
}
"""Query for the objects of each kind, and the function that asks for a privilege on one."""

_HELD = """
    SELECT schema, name, rule, role, privilege, {function}(CAST(role AS name), object, privilege)
    FROM ({objects}) AS o
    CROSS JOIN unnest(CAST(:roles AS text[])) AS r (role)
    CROSS JOIN unnest(CAST(:privileges AS text[])) AS p (privilege)
    ORDER BY name, role, privilege
"""
