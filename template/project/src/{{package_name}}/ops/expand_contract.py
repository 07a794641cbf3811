"""Write the revisions that change a column while earlier code runs: expand, fill in, contract.

Between the first revision and the last, code that uses the old form and code that uses the new one work side by side: a
trigger keeps both columns in step. Links of a mesh do not fire it; they carry the row as the first node stored it.
"""

# ruff: noqa: S608 - the statements are written into files that the user reads

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from alembic.util import rev_id
from sqlalchemy import URL, Connection, text

from .base import Changes, MigrationError
from .connections import connect
from .migrate import load_config, load_scripts
from .topology import Topology

FORMS = """
    drop TABLE.COLUMN
    rename TABLE.COLUMN to NEW
    type TABLE.COLUMN to TYPE [using EXPRESSION]
    not null TABLE.COLUMN using EXPRESSION
    move TABLE.COLUMN to OTHER by KEY   (OTHER.KEY has the primary key of TABLE)
"""

_NO_WAY_BACK = 'raise NotImplementedError("the values of the old column are gone; write the change back as a new one")'


@dataclass(frozen=True)
class Draft:
    """One revision to be written: its statements up and down."""

    title: str
    up: list[str]
    down: list[str]
    changes: Changes = "schema"
    contract: bool = False


@dataclass(frozen=True)
class Column:
    """A column as the server has it; names are quoted where they need it."""

    table: str
    name: str
    type: str
    is_required: bool
    default: str | None
    key: str
    """Primary key of the table, if that is one column."""


def write_steps(owner_urls: Mapping[str, URL], request: str, message: str, *, project: Path = Path()) -> list[Path]:
    """Write the revisions for a change behind the head; return their files.

    Args:
        owner_urls: the nodes, for the role that owns the table; the first one has the column.
        request: the change, one of `FORMS`.
        message: title of the revisions.
        project: the folder of `alembic.ini`.

    Raises:
        MigrationError: the request has none of the forms, or there is no such column.
    """
    if not Topology.can_rehearse:
        raise MigrationError("steps are written for PostgreSQL, whose triggers keep both columns in step")
    scripts = load_scripts(load_config(project))
    node = next(node for node in owner_urls if node not in Topology.nodes_without_models)
    with connect(owner_urls[node], node=node) as connection:
        drafts = _drafts(connection, request)
    files = []
    for number, draft in enumerate(drafts, start=1):
        title = f"{message}, {number} of {len(drafts)}: {draft.title}"
        imports = f"from {__package__}.backfill import backfill" if draft.changes == "data" else ""
        up, down = _body(draft.up), _body(draft.down)
        script = scripts.generate_revision(rev_id(), title, head="head", imports=imports, upgrades=up, downgrades=down)
        if script is None:
            raise MigrationError("Alembic wrote no revision")
        path = Path(script.path)
        path.write_text(_with_attributes(path.read_text(encoding="utf-8"), draft), encoding="utf-8")
        files.append(path)
    return files


def _drafts(connection: Connection, request: str) -> list[Draft]:
    for pattern, write in _WRITERS.items():
        if match := re.fullmatch(pattern, " ".join(request.split()), re.IGNORECASE):
            found = match.groupdict()
            column = _column(connection, found["table"], found["column"])
            there = found.get("other") or column.table, found.get("new") or column.name
            if {"new", "other"} & found.keys() and connection.execute(
                text(_COLUMN), {"table": there[0], "name": there[1].strip('"')}
            ).all():
                raise MigrationError(f"there is a column {'.'.join(there)} already")
            return write(column, found)
    raise MigrationError(f"{request!r} is none of these changes:{FORMS}")


def _column(connection: Connection, table: str, name: str) -> Column:
    row = connection.execute(text(_COLUMN), {"table": table, "name": name}).one_or_none()
    if row is None:
        raise MigrationError(f"there is no column {table}.{name}")
    return Column(table, row.name, row.type, row.is_required, row.default, row.key)


def _drop(column: Column, _found: Mapping[str, str]) -> list[Draft]:
    alter = f"ALTER TABLE {column.table}"
    optional = Draft(
        "new code leaves it out",
        [f"{alter} ALTER COLUMN {column.name} DROP NOT NULL"],
        [f"{alter} ALTER COLUMN {column.name} SET NOT NULL"],
    )
    drop = Draft(
        "drop it",
        [f"{alter} DROP COLUMN {column.name}"],
        [f"{alter} ADD COLUMN {column.name} {column.type}"],
        contract=True,
    )
    return [optional, drop] if column.is_required and column.default is None else [drop]


def _rename(column: Column, found: Mapping[str, str]) -> list[Draft]:
    return _replace(column, found["new"], column.type, None)


def _change_type(column: Column, found: Mapping[str, str]) -> list[Draft]:
    return _replace(column, f"{column.name.strip(chr(34))}_new", found["type"], found["using"], keep_name=True)


def _replace(column: Column, new: str, new_type: str, using: str | None, *, keep_name: bool = False) -> list[Draft]:
    """Return the revisions that put another column in the place of one."""
    table, old, alter = column.table, column.name, f"ALTER TABLE {column.table}"
    function = f"{table.rpartition('.')[2]}_{new}_in_step"
    forward = re.sub(rf"\b{re.escape(old)}\b", f"NEW.{old}", using) if using else f"NEW.{old}::{new_type}"
    in_step = (
        f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF TG_OP = 'INSERT' AND NEW.{new} IS NOT NULL THEN NEW.{old} := NEW.{new}::{column.type}; "
        f"ELSIF TG_OP = 'UPDATE' AND NEW.{new} IS DISTINCT FROM OLD.{new} THEN NEW.{old} := NEW.{new}::{column.type}; "
        f"ELSE NEW.{new} := {forward}; END IF; RETURN NEW; END $$"
    )
    trigger = f"CREATE TRIGGER {function} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {function}()"
    expand = Draft(
        f"add {new}, kept in step with {old}",
        [f"{alter} ADD COLUMN {new} {new_type}", in_step, trigger],
        [f"DROP TRIGGER {function} ON {table}", f"DROP FUNCTION {function}()", f"{alter} DROP COLUMN {new}"],
    )
    # Writing the old column makes the trigger write the new one.
    done = f"{new} IS NULL AND {old} IS NOT NULL"
    fill = Draft("fill it in", [f"backfill({table!r}, {f'{old} = {old}'!r}, where={done!r})"], [], changes="data")
    last = f"{alter} RENAME COLUMN {new} TO {old}"
    contract = Draft(
        f"drop {'the old ' if keep_name else ''}{old}",
        [
            f"DROP TRIGGER {function} ON {table}",
            f"DROP FUNCTION {function}()",
            *([f"{alter} ALTER COLUMN {new} SET DEFAULT {column.default}"] if column.default else []),
            *([f"{alter} ALTER COLUMN {new} SET NOT NULL"] if column.is_required else []),
            f"{alter} DROP COLUMN {old}",
            *([last] if keep_name else []),
        ],
        [_NO_WAY_BACK],
        contract=True,
    )
    return [expand, fill, contract]


def _require(column: Column, found: Mapping[str, str]) -> list[Draft]:
    alter, using = f"ALTER TABLE {column.table} ALTER COLUMN {column.name}", found["using"]
    back = f"{alter} SET DEFAULT {column.default}" if column.default else f"{alter} DROP DEFAULT"
    fill = f"backfill({column.table!r}, {f'{column.name} = {using}'!r}, where={f'{column.name} IS NULL'!r})"
    return [
        Draft("new rows have a value", [f"{alter} SET DEFAULT {using}"], [back]),
        Draft("fill it in", [fill], [], changes="data"),
        Draft("require it", [f"{alter} SET NOT NULL"], [f"{alter} DROP NOT NULL"], contract=True),
    ]


def _move(column: Column, found: Mapping[str, str]) -> list[Draft]:
    table, name, other, key = column.table, column.name, found["other"], found["key"]
    base = f"{other.rpartition('.')[2]}_{name}_in_step"
    forth, back = base, f"{base}_at_first"
    make = [
        f"CREATE FUNCTION {forth}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"UPDATE {other} SET {name} = NEW.{name} WHERE {key} = NEW.{column.key} "
        f"AND {name} IS DISTINCT FROM NEW.{name}; RETURN NULL; END $$",
        f"CREATE FUNCTION {back}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.{name} := coalesce(NEW.{name}, "
        f"(SELECT {name} FROM {table} WHERE {column.key} = NEW.{key})); RETURN NEW; END $$",
        f"CREATE TRIGGER {forth} AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {forth}()",
        f"CREATE TRIGGER {back} BEFORE INSERT ON {other} FOR EACH ROW EXECUTE FUNCTION {back}()",
    ]
    remove = [
        f"DROP TRIGGER {forth} ON {table}",
        f"DROP TRIGGER {back} ON {other}",
        f"DROP FUNCTION {forth}()",
        f"DROP FUNCTION {back}()",
    ]
    there = f"SELECT source.{name} FROM {table} AS source WHERE source.{column.key} = {key}"
    where = f"{name} IS NULL AND EXISTS ({there} AND source.{name} IS NOT NULL)"
    fill = f"backfill({other!r}, {f'{name} = ({there})'!r}, where={where!r})"
    gone = f"ALTER TABLE {table} DROP COLUMN {name}"
    add = f"ALTER TABLE {other} ADD COLUMN {name} {column.type}"
    drop = f"ALTER TABLE {other} DROP COLUMN {name}"
    return [
        Draft(f"add it to {other}", [add, *make], [*remove, drop]),
        Draft("fill it in", [fill], [], changes="data"),
        Draft(f"drop it from {table}", [*remove, gone], [_NO_WAY_BACK], contract=True),
    ]


_TARGET = r"(?P<table>[\w.\"]+)\.(?P<column>[\w\"]+)"

_WRITERS: Mapping[str, Callable[[Column, Mapping[str, str]], list[Draft]]] = {
    rf"drop {_TARGET}": _drop,
    rf"rename {_TARGET} to (?P<new>[\w\"]+)": _rename,
    rf"type {_TARGET} to (?P<type>.+?)(?: using (?P<using>.+))?": _change_type,
    rf"not null {_TARGET} using (?P<using>.+)": _require,
    rf"move {_TARGET} to (?P<other>[\w.\"]+) by (?P<key>[\w\"]+)": _move,
}


def _body(lines: list[str]) -> str:
    calls = [line if re.match(r"backfill\(|raise ", line) else f"op.execute({line!r})" for line in lines]
    return "\n    ".join(calls)


def _with_attributes(content: str, draft: Draft) -> str:
    """Return the content of a revision with the subject and confirmation of the draft, and the imports that it uses."""
    attributes = f'changes = "{draft.changes}"\n' + ("contract = True\n" if draft.contract else "")
    content, number = re.subn(r'^changes = "schema"\n', attributes, content, flags=re.MULTILINE)
    if not number:
        content = content.replace("\n\n\ndef upgrade", f"\n\n{attributes}\n\ndef upgrade", 1)
    if draft.changes == "data":
        content = _UNUSED.sub("\n\n", content, count=1)
    content = content.replace("import sqlalchemy as sa\n", "")
    # A docstring is a body.
    return content.replace('"""\n    pass\n', '"""\n')


_UNUSED = re.compile(r"\n*(import sqlalchemy as sa\n)?(from alembic import op\n)?\n*(?=from \S+\.backfill)")

_COLUMN = """
    SELECT quote_ident(attname) AS name, format_type(atttypid, atttypmod) AS type, attnotnull AS is_required,
           pg_get_expr(adbin, adrelid) AS default,
           (SELECT quote_ident(k.attname) FROM pg_index JOIN pg_attribute AS k ON k.attrelid = indrelid
            WHERE indrelid = a.attrelid AND indisprimary AND k.attnum = ANY (indkey) LIMIT 1) AS key
    FROM pg_attribute AS a LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attrelid = to_regclass(:table) AND attname = :name AND attnum > 0 AND NOT attisdropped
"""
