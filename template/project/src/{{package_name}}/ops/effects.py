"""Compare the catalogue before and after a revision: its effects on tables, whatever the statements look like.

The server is the parser. A DO block, a function and EXECUTE have the same effect on the catalogue as the statement they
run, and inside the transaction of a revision the catalogue shows that effect before anybody else sees it.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, Row, text

Kind: TypeAlias = Literal[
    "drop table",
    "rename table",
    "truncate",
    "rewrite",
    "drop column",
    "rename column",
    "change type",
    "set not null",
    "add not null column",
    "volatile default",
    "add constraint",
    "unique",
    "deferrable key",
    "exclusion",
    "local keys",
]
"""Kinds of effects; the last four are about new tables as well."""

Facts: TypeAlias = Mapping[Any, Row[Any]]


@dataclass(frozen=True)
class Effect:
    """One change of a table."""

    kind: Kind
    table: str
    name: str = ""
    """Column, constraint or index."""

    def __str__(self) -> str:
        return f"table {self.table}: {self.kind}" + (f" ({self.name})" if self.name else "")


@dataclass(frozen=True)
class Catalogue:
    """The tables of the application with their columns, constraints and unique indexes, by the server's numbers."""

    tables: Facts
    columns: Facts
    constraints: Facts
    indexes: Facts
    filled: Collection[str] = ()
    """Tables that had a row; only if asked for."""


def read_catalogue(connection: Connection, *, without: Collection[str] = (), rows: bool = False) -> Catalogue:
    """Return the catalogue as the connection's transaction sees it.

    Args:
        connection: a connection of the tables' owner.
        without: schemas to leave out.
        rows: look which tables have rows, too. It locks them as a SELECT does.
    """
    values = {"without": list(without)}
    tables, constraints, indexes = (
        {row[0]: row for row in connection.execute(text(query), values)} for query in (_TABLES, _CONSTRAINTS, _INDEXES)
    )
    columns = {(row.relation, row.number): row for row in connection.execute(text(_COLUMNS), values)}
    names = [row.table for row in tables.values()] if rows else []
    # In one statement; the server has quoted the names.
    looks = (f"SELECT {at} WHERE EXISTS (SELECT FROM {name})" for at, name in enumerate(names))  # noqa: S608
    query = text(" UNION ALL ".join(looks).replace(":", r"\:"))
    filled = [names[at] for at in connection.scalars(query)] if names else []
    return Catalogue(tables, columns, constraints, indexes, filled)


def compare(before: Catalogue, after: Catalogue, *, nodes: int = 1) -> list[Effect]:
    """Return the effects that lie between two states, in the order of `Kind`'s subjects.

    Args:
        before: the state before.
        after: the state after.
        nodes: number of nodes that take writes; a sequence that steps by fewer has keys of other nodes.
    """
    return [
        *_table_effects(before, after),
        *_column_effects(before, after),
        *_constraint_effects(before, after),
        *(
            Effect("unique", row.table, row.name)
            for key, row in after.indexes.items()
            if key not in before.indexes and not row.is_primary
        ),
        *(
            Effect("local keys", row.table, row.name)
            for key, row in after.columns.items()
            if row.step is not None and row.step < nodes and _is_new_key(before.columns.get(key))
        ),
    ]


def _table_effects(before: Catalogue, after: Catalogue) -> Iterator[Effect]:
    for key, old in before.tables.items():
        new = after.tables.get(key)
        if new is None:
            yield Effect("drop table", old.table)
        elif new.table != old.table:
            yield Effect("rename table", old.table, new.table)
        elif new.file != old.file:
            emptied = old.table in before.filled and new.size == 0
            yield Effect("truncate" if emptied else "rewrite", old.table)


def _column_effects(before: Catalogue, after: Catalogue) -> Iterator[Effect]:
    for key, old in before.columns.items():
        new = after.columns.get(key)
        if new is None:
            if key[0] in after.tables:
                yield Effect("drop column", old.table, old.name)
            continue
        if new.name != old.name:
            yield Effect("rename column", old.table, old.name)
        if new.type != old.type and not _is_wider(old, new):
            yield Effect("change type", old.table, f"{old.name} from {old.type} to {new.type}")
        proven = f"CHECK (({new.quoted} IS NOT NULL))"
        is_proven = any(row.relation == key[0] and row.definition == proven for row in before.constraints.values())
        if new.is_required and not old.is_required and not is_proven:
            yield Effect("set not null", old.table, old.name)
    for key, new in after.columns.items():
        if key in before.columns or key[0] not in before.tables:
            continue
        is_rewritten = before.tables[key[0]].file != after.tables[key[0]].file
        if new.is_volatile and (new.is_filled or is_rewritten):
            yield Effect("volatile default", new.table, new.name)
        elif new.is_required and not new.has_default:
            yield Effect("add not null column", new.table, new.name)


def _constraint_effects(before: Catalogue, after: Catalogue) -> Iterator[Effect]:
    for key, row in after.constraints.items():
        if key in before.constraints:
            continue
        if row.kind == "x":
            yield Effect("exclusion", row.table, row.name)
        elif row.kind in "pu" and row.is_deferrable:
            yield Effect("deferrable key", row.table, row.name)
        # A row that is on its way has no value of its own in a new column.
        elif row.kind in "cf" and any((row.relation, number) in before.columns for number in row.columns):
            yield Effect("add constraint", row.table, row.name)


def _is_wider(old: Row[Any], new: Row[Any]) -> bool:
    """Return whether every value of the old type is one of the new type, written in the same way."""
    if (old.base, new.base) in _WIDER and new.modifier == -1:
        return True
    if (old.base, new.base) not in {("varchar", "varchar"), ("varchar", "text"), ("numeric", "numeric")}:
        return False
    if new.modifier == -1:
        return True
    if old.base == "numeric":
        # The modifier has the precision in its upper and the scale in its lower half.
        return bool(old.modifier != -1 and new.modifier >= old.modifier and (new.modifier - old.modifier) % 65536 == 0)
    return bool(-1 < old.modifier <= new.modifier)


_WIDER = {
    *(("int2", wide) for wide in ("int4", "int8", "numeric")),
    *(("int4", wide) for wide in ("int8", "numeric")),
    ("int8", "numeric"),
    ("float4", "float8"),
}


def _is_new_key(old: Row[Any] | None) -> bool:
    return old is None or old.step is None


_OWN = """
    WITH own AS (
        SELECT pg_class.oid AS relation, relnamespace::regnamespace || '.' || quote_ident(relname) AS "table", relkind
        FROM pg_class
        WHERE relkind IN ('r', 'p') AND relpersistence <> 't' AND oid >= 16384 AND relname <> 'alembic_version'
          AND pg_has_role(relowner, 'USAGE')
          AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND classid = 1259 AND deptype = 'e')
          AND NOT relnamespace::regnamespace::text = ANY (:without)
    )
"""
"""Tables that this role may change. The server's own have smaller numbers."""

_TABLES = f"""{_OWN}
    SELECT relation, "table", pg_relation_filenode(relation) AS file,
           CASE WHEN relkind = 'r' THEN pg_relation_size(relation) END AS size
    FROM own
"""  # noqa: S608 - a constant

_COLUMNS = f"""{_OWN}
    SELECT relation, attnum AS number, "table", attname AS name, quote_ident(attname) AS quoted,
           format_type(atttypid, atttypmod) AS type, typname AS base, atttypmod AS modifier,
           attnotnull AS is_required, atthasmissing AS is_filled, adbin IS NOT NULL OR attidentity <> '' AS has_default,
           attidentity <> '' OR adbin::text ~ '{{(SQLVALUEFUNCTION|NEXTVALUEEXPR) ' OR EXISTS (
               SELECT FROM regexp_matches(adbin::text, '(opfuncid|funcid) (\\d+)', 'g') AS called
               JOIN pg_proc ON pg_proc.oid = called[2]::oid WHERE provolatile <> 'i'
           ) AS is_volatile,
           (SELECT min(abs(seqincrement)) FROM pg_sequence JOIN pg_depend AS d ON seqrelid IN (d.objid, d.refobjid)
            WHERE EXISTS (SELECT FROM pg_index WHERE indrelid = relation AND indisprimary AND attnum = ANY (indkey))
              AND (d.deptype = 'i' AND d.refobjid = relation AND d.refobjsubid = attnum
                   OR d.objid = f.oid AND d.classid = 'pg_attrdef'::regclass
                      AND pg_get_expr(adbin, adrelid) LIKE 'nextval(%')) AS step
    FROM own JOIN pg_attribute ON attrelid = relation JOIN pg_type AS t ON t.oid = atttypid
    LEFT JOIN pg_attrdef AS f ON adrelid = relation AND adnum = attnum
    WHERE attnum > 0 AND NOT attisdropped
"""  # noqa: S608 - a constant

_CONSTRAINTS = f"""{_OWN}
    SELECT oid, relation, "table", conname AS name, contype AS kind, condeferrable AS is_deferrable,
           coalesce(conkey, '{{}}') AS columns, pg_get_constraintdef(oid) AS definition
    FROM pg_constraint JOIN own ON relation = conrelid WHERE contype IN ('c', 'f', 'p', 'u', 'x')
"""  # noqa: S608 - a constant

_INDEXES = f"""{_OWN}
    SELECT indexrelid, "table", indexrelid::regclass::text AS name, indisprimary AS is_primary
    FROM pg_index JOIN own ON relation = indrelid WHERE indisunique AND NOT indisexclusion
"""  # noqa: S608 - a constant
