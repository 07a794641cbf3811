"""Write revisions from the models: complete what Alembic's autogenerate finds, and compare as the server does.

Alembic finds neither schemas, nor types, nor sequences, nor CHECKs; these are written here, each as one statement. A
difference that a revision cannot hold as a whole is written as several revisions, each following the one before.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

from alembic import command
from alembic.autogenerate.api import AutogenContext, RevisionContext
from alembic.autogenerate.render import _repr_type, render_op_text
from alembic.ddl.postgresql import PostgresqlImpl
from alembic.operations import ops
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError, rev_id
from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    Column,
    Connection,
    Dialect,
    Index,
    MetaData,
    Table,
    TypeDecorator,
    inspect,
    text,
)
from sqlalchemy.dialects.postgresql import ENUM
from sqlalchemy.dialects.postgresql.base import PGInspector
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import (
    AddConstraint,
    CreateIndex,
    CreateSchema,
    CreateSequence,
    DDLElement,
    DropConstraint,
    DropSchema,
    DropSequence,
)
from sqlalchemy.types import TypeEngine

from . import PROGRAM
from .base import MigrationError
from .migrate import load_config, load_scripts
from .topology import Topology

Name = tuple[str, str]
"""Schema and name of a type or a sequence."""


class Statement(ops.ExecuteSQLOp):
    """One statement of a revision, and the one that undoes it; empty if nothing has to."""

    def __init__(self, forward: str, back: str) -> None:
        super().__init__(forward)
        self.forward, self.back = forward, back

    def reverse(self) -> "Statement":
        """Return the operation that undoes this one."""
        return Statement(self.back, self.forward)


class Comparison(PostgresqlImpl):
    """The models compared with the database, and the form of what is written; a subclass is for another dialect."""

    __dialect__ = "postgresql"

    def compare_server_default(
        self, inspector_column: Any, metadata_column: Any, _rendered: str | None, found: str | None
    ) -> bool:
        """Return whether a default differs; Alembic would evaluate both, and so take a value from a sequence."""
        if metadata_column is metadata_column.table.autoincrement_column:
            return False
        compiler = self.dialect.ddl_compiler(self.dialect, cast(Any, None))
        wanted = compiler.get_column_default_string(metadata_column)
        if found is None or wanted is None or found == wanted:
            return found != wanted
        return not self.is_same_expression(found, wanted.replace("%%", "%"), inspector_column.type)

    def compare_indexes(self, metadata_index: Index, reflected_index: Index) -> Any:
        """Return whether an index differs; Alembic compares the texts of expressions, and not all of them."""
        result = super().compare_indexes(metadata_index, reflected_index)
        if metadata_index.dialect_options["postgresql"]["where"] is None and not result.is_different:
            return result
        is_same = self.is_same_index(metadata_index, reflected_index)
        return type(result).Equal() if is_same else type(result).Different("the server makes another index")

    def autogen_column_reflect(self, inspector: Any, table: Any, column_info: Any) -> None:
        """Find columns that are SERIAL; Alembic does not read the name of a sequence with an apostrophe."""
        if "''" not in (column_info.get("default") or ""):
            cast(Any, super()).autogen_column_reflect(inspector, table, column_info)
        if column_info.get("default") is not None:
            # Otherwise it would be made again as SERIAL, which has another default.
            column_info["autoincrement"] = False

    def adjust_reflected_dialect_options(self, reflected_object: Any, kind: str) -> dict[str, Any]:
        """Return the options of an index that there is."""
        options = super().adjust_reflected_dialect_options(reflected_object, kind)
        if "postgresql_ops" in options:
            options["postgresql_ops"] = _operator_classes(options["postgresql_ops"])
        return options

    def render_ddl_sql_expr(self, expr: Any, is_server_default: bool = False, is_index: bool = False, **kw: Any) -> str:
        """Return the SQL of an expression, without the escapes of the driver and with those of `text()`."""
        sql = super().render_ddl_sql_expr(expr, is_server_default, is_index, **kw).replace("%%", "%")
        return sql if is_index else as_text(sql)

    def is_same_expression(self, found: str, wanted: str, type_: TypeEngine[Any]) -> bool:
        """Return whether the server reads two expressions of one type alike; it evaluates neither."""

        def read(expression: str) -> list[str] | None:
            cast_to = f"CAST(({expression}) AS {type_.compile(self.dialect)})"
            try:
                with self._connection.begin_nested():
                    plan = f"EXPLAIN (VERBOSE, COSTS OFF) SELECT {cast_to}".replace("%", "%%")
                    return list(self._connection.exec_driver_sql(plan).scalars())
            except DBAPIError:
                return None  # Not an expression of that type.

        return (plan := read(found)) is not None and plan == read(wanted)

    def is_same_index(self, wanted: Index, found: Index) -> bool:
        """Return whether the server would make the index that there is, by making it on an empty copy of the table."""
        quote, table = self.dialect.identifier_preparer.quote, cast(Any, found.table)
        schema = str(table.schema or self.dialect.default_schema_name)
        options: dict[str, Any] = {"schema_translate_map": {cast(Any, wanted.table).schema: "pg_temp"}}
        compiled = CreateIndex(wanted).compile(dialect=self.dialect, render_schema_translate=True, **options)
        name = quote(cast(str, found.name))
        transaction = self._connection.begin_nested()
        try:
            copied = f"{quote(schema)}.{quote(table.name)}".replace("%", "%%")
            copy = quote(table.name).replace("%", "%%")
            self._connection.exec_driver_sql(f"CREATE TEMP TABLE {copy} (LIKE {copied})")
            self._connection.exec_driver_sql(str(compiled).replace(" CONCURRENTLY", "", 1))
            definitions = [
                self._connection.execute(text(_INDEX), {"name": qualified}).one_or_none()
                for qualified in (f"{quote(schema)}.{name}", f"pg_temp.{name}")
            ]
        except DBAPIError:
            return False
        finally:
            transaction.rollback()
        return definitions[0] == definitions[1]

    def is_same_check(self, wanted: CheckConstraint, found: str, table: str) -> bool:
        """Return whether the server reads two CHECKs alike, by making both on an empty copy of the table.

        It writes `x IN (…)` in another way than what it has written itself, so it reads the wanted one twice.
        """
        add = str(AddConstraint(wanted).compile(dialect=self.dialect)).split(" ADD ", 1)[1]
        name = unquoted(str(self.dialect.identifier_preparer.format_constraint(wanted)))
        run, alter = self._connection.exec_driver_sql, "ALTER TABLE pg_temp._checked ADD"
        transaction = self._connection.begin_nested()
        try:
            run(f"CREATE TEMP TABLE _checked (LIKE {table})".replace("%", "%%"))
            run(f"{alter} {add}")
            once = str(self._connection.scalar(text(_CHECK), {"name": name})).replace("%", "%%")
            run(f"{alter} CONSTRAINT _wanted {once}")
            run(f"{alter} CONSTRAINT _found CHECK ({found})".replace("%", "%%"))
            both = {self._connection.scalar(text(_CHECK), {"name": one}) for one in ("_wanted", "_found")}
            return len(both) == 1
        except DBAPIError:
            return False
        finally:
            transaction.rollback()

    def is_computed(self, column: Column[Any]) -> bool:
        """Return whether the default of a new column calls a function that may differ by node, row or time."""
        compiler = self.dialect.ddl_compiler(self.dialect, cast(Any, None))
        default = compiler.get_column_default_string(column)
        transaction = self._connection.begin_nested()
        try:
            self._connection.exec_driver_sql(f"CREATE TEMP VIEW _computed AS SELECT {default or 'NULL'}")
            return self._connection.scalar(text(_COMPUTED)) is True
        except DBAPIError:
            # It names a type or a sequence that the revision creates.
            return "nextval(" in str(default)
        finally:
            transaction.rollback()

    def undoable(self, operation: Any) -> Any:
        """Return an operation that can be undone; what drops an index may not know all about it."""
        if not isinstance(operation, ops.DropIndexOp):
            return operation
        table = Table(str(operation.table_name), MetaData(), schema=operation.schema, autoload_with=self._connection)
        for index in table.indexes:
            own = index.dialect_options["postgresql"]
            own["ops"] = _operator_classes(own["ops"])
            if index.name == operation.index_name and self.is_same_index(index, index):
                return operation
        quote, schema = self.dialect.identifier_preparer.quote, operation.schema
        name = quote(str(operation.index_name))
        name = f"{quote(schema)}.{name}" if schema else name
        create = self._connection.scalar(text("SELECT pg_get_indexdef(to_regclass(:name))"), {"name": name})
        return Statement(as_text(f"DROP INDEX {name}"), as_text(str(create)))

    def adapt(self, operation: Any) -> None:
        """Change an operation, or one that undoes another, to the form that a revision of this database has."""

    def stands_alone(self, operation: Any) -> bool:
        """Return whether a revision with this operation must contain no other one."""
        return False

    @property
    def _connection(self) -> Connection:
        return cast(Connection, self.connection)


def write_revision(message: str, *, empty: bool = False, project: Path = Path()) -> list[Path]:
    """Write what the models have and the database lacks as a revision, or as several if one cannot hold it.

    Args:
        message: title of the revision.
        empty: write a revision without operations, and do not compare.
        project: the project's folder, with `alembic.ini`.

    Returns:
        The files; none if there is no difference.

    Raises:
        MigrationError: the database is not at the newest revision.
    """
    config = load_config(project)
    if config.config_file_name is None:
        raise MigrationError(f"there is no alembic.ini in {project.resolve()}: run this in the project's folder")
    config.attributes["only_differences"] = True
    try:
        written = command.revision(config, message=message, autogenerate=not empty)
    except CommandError as error:
        remedy = f" Run `{PROGRAM} migrate` first." if "not up to date" in str(error) else ""
        raise MigrationError(f"{error}{remedy}") from error
    return [Path(script.path) for script in (written if isinstance(written, list) else [written]) if script]


def missing_operations(connection: Connection, project: Path = Path()) -> list[str]:
    """Return the operations, as code, with which a database at the newest revision would become what the models are."""
    config = load_config(project)
    config.attributes["connection"] = connection
    scripts = load_scripts(config)
    asked: dict[str, Any] = {"autogenerate": True, "sql": False, "head": "head"}
    asked |= dict.fromkeys(("message", "splice", "branch_label", "version_path", "rev_id", "depends_on"))
    revisions = RevisionContext(config, scripts, asked)

    def compare(rev: Any, context: MigrationContext) -> list[Any]:
        revisions.run_autogenerate(rev, context)
        return []

    try:
        with EnvironmentContext(config, scripts, fn=compare, revision_context=revisions, template_args={}):
            scripts.run_env()
    except CommandError as error:
        raise MigrationError(str(error)) from error
    found = [one for script in revisions.generated_revisions for one in cast(Any, script.upgrade_ops).ops]
    return [" ".join(render_op_text(revisions._last_autogen_context, one).split()) for one in found]


def options(connection: Connection, models: Sequence[MetaData]) -> dict[str, Any]:
    """Return the options of Alembic's context with which models are compared with a database, and revisions written."""
    schemas = {table.schema for metadata in models for table in metadata.tables.values()}

    @cache
    def views(schema: str | None) -> set[str]:
        inspector = inspect(connection)
        return {*inspector.get_view_names(schema), *inspector.get_materialized_view_names(schema)}

    def include_name(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "schema":
            return name is None or name in schemas
        # Some dialects list views as tables.
        return kind != "table" or name not in views(parents["schema_name"])

    return {
        "target_metadata": list(models),
        "include_schemas": True,
        "include_name": include_name,
        "compare_server_default": True,
        "render_item": render_item,
        "process_revision_directives": complete,
    }


def complete(context: MigrationContext, _revision: object, directives: list[ops.MigrationScript]) -> None:
    """Add the schemas, types and sequences to a new revision, and divide it if it has to be; a hook of Alembic."""
    script = directives[0]
    dialect, connection = context.dialect, cast(Connection, context.connection)
    impl = cast(Comparison, context.impl)
    found = [impl.undoable(one) for outer in cast(Any, script.upgrade_ops).ops for one in _flat(outer)]
    difference = _Difference(connection, dialect, context.opts["target_metadata"], found)
    added = list(difference.values())
    first = [*added, *difference.schemas(), *difference.types(), *difference.sequences()]
    operations = [*first, *found, *difference.checks(impl), *difference.unused_sequences(), *difference.unused_types()]
    if not operations and context.config is not None and context.config.attributes.get("only_differences"):
        directives.clear()
        return
    if context.config is not None and context.config.attributes.get("only_differences"):
        Topology.refuse_models(context.opts["target_metadata"])
        _refuse_computed(operations, impl)
    parts: list[list[Any]] = [[]]
    for operation in operations:
        impl.adapt(operation)
    alone = [impl.stands_alone(one) or impl.stands_alone(one.reverse()) for one in operations]
    for number, operation in enumerate(operations):
        # A value of a type can be used once the transaction that added it has ended.
        if number and (alone[number] or alone[number - 1] or number == len(added)):
            parts.append([])
        parts[-1].append(operation)
    directives[:] = list(_scripts(script, parts, impl))


def render_item(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:
    """Return the code of a type that Alembic's own would not make right; a hook of Alembic."""
    if kind != "type":
        return False
    if not isinstance(item, ARRAY) and (enum := native_enum(item, context.dialect)) is not None:
        context.imports.add("from sqlalchemy.dialects import postgresql")
        schema = f", schema={enum.schema!r}" if enum.schema else ""
        labels = "".join(f"{label!r}, " for label in enum.enums)
        # A statement of its own creates the type.
        return f"postgresql.ENUM({labels}name={enum.name!r}{schema}, create_type=False)"
    module = type(item).__module__
    if module.startswith("sqlalchemy."):
        return False
    code = f"{module}.{item!r}"
    try:
        import_module(module)
        made = eval(code, {module.partition(".")[0]: import_module(module.partition(".")[0])})  # noqa: S307
        is_right = repr(made) == repr(item)
    except Exception:
        is_right = False
    if is_right:
        context.imports.add(f"import {module}")
        return code
    return _repr_type(item.impl_instance, context) if isinstance(item, TypeDecorator) else False


def native_enum(type_: TypeEngine[Any], dialect: Dialect) -> ENUM | None:
    """Return the enum type of the database that a column's type is, or that its elements have; None without one."""
    type_ = type_.dialect_impl(dialect)
    if isinstance(type_, TypeDecorator):
        return native_enum(type_.impl_instance, dialect)
    if isinstance(type_, ARRAY):
        return native_enum(type_.item_type, dialect)
    return type_ if isinstance(type_, ENUM) else None


class _Difference:
    """The schemas, types and sequences that models need and a database lacks, or the other way round."""

    def __init__(
        self, connection: Connection, dialect: Dialect, models: Iterable[MetaData], operations: Sequence[Any]
    ) -> None:
        self._connection, self._dialect, self._operations = connection, dialect, operations
        self._inspector = cast(PGInspector, inspect(connection))
        self._default = dialect.default_schema_name or ""
        models = list(models)
        self._tables = [table for metadata in models for table in metadata.sorted_tables]
        columns = [column for table in self._tables for column in table.columns]
        enums = [enum for column in columns if (enum := native_enum(column.type, dialect)) is not None]
        self._enums = {(enum.schema or self._default, str(enum.name)): enum for enum in enums}
        self._sequences = {
            (sequence.schema or self._default, sequence.name): sequence
            for metadata in models
            for sequence in metadata._sequences.values()
            if not sequence.optional
        }
        self._labels = {(one["schema"], one["name"]): list(one["labels"]) for one in self._inspector.get_enums("*")}

    def schemas(self) -> Iterator[Statement]:
        names = {table.schema for table in self._tables if table.schema}
        names |= {schema for schema, _ in (*self._enums, *self._sequences)}
        for name in sorted(names - set(self._inspector.get_schema_names())):
            yield self._statement(CreateSchema(name), DropSchema(name))

    def types(self) -> Iterator[Statement]:
        for name in self._enums.keys() - self._labels.keys():
            yield self._create_type(name, self._enums[name].enums)

    def values(self) -> Iterator[Statement]:
        """Yield the statements that add labels; none removes one, because the server cannot, and none needs to."""
        for name, enum in self._enums.items():
            there = list(self._labels.get(name, ()))
            for place, label in enumerate(enum.enums if there else ()):
                if label not in there:
                    where = f"AFTER {_literal(enum.enums[place - 1])}" if place else f"BEFORE {_literal(there[0])}"
                    there.append(label)
                    value = f"ADD VALUE IF NOT EXISTS {_literal(label)} {where}"
                    yield Statement(as_text(f"ALTER TYPE {self._quoted(name)} {value}"), "")

    def sequences(self) -> Iterator[Statement]:
        for (schema, name), sequence in self._sequences.items():
            if not self._inspector.has_sequence(name, schema):
                yield self._statement(CreateSequence(sequence), DropSequence(sequence))

    def checks(self, impl: Comparison) -> Iterator[Statement]:
        """Yield the statements that add the CHECKs of the models, or change them; one that no model has is left."""
        for table in self._tables:
            if not self._inspector.has_table(table.name, table.schema):
                continue
            there = {
                one["name"]: one["sqltext"] for one in self._inspector.get_check_constraints(table.name, table.schema)
            }
            for check in table.constraints:
                if not isinstance(check, CheckConstraint) or check.name is None or cast(Any, check)._type_bound:
                    continue
                add = str(AddConstraint(check).compile(dialect=self._dialect)).replace("%%", "%")
                drop = str(DropConstraint(check).compile(dialect=self._dialect)).replace("%%", "%")
                alter, _, name = drop.partition(" DROP CONSTRAINT ")
                found = there.get(unquoted(name))
                if found is None:
                    yield Statement(as_text(add), as_text(drop))
                elif not impl.is_same_check(check, found, alter.removeprefix("ALTER TABLE ")):
                    yield Statement(as_text(drop), as_text(f"{alter} ADD CONSTRAINT {name} CHECK ({found})"))
                    yield Statement(as_text(add), as_text(drop))

    def unused_sequences(self) -> Iterator[Statement]:
        """Yield the statements that drop the sequences from which only dropped columns read."""
        wanted = {self._quoted(name) for name in self._sequences}
        for column in self._dropped():
            default = str(getattr(column.server_default, "arg", ""))
            for name in re.findall(r"nextval\('((?:[^']|'')+)'::regclass\)", default):
                query = text(_SEQUENCE)
                found = self._connection.execute(query, {"name": name.replace("''", "'")}).one_or_none()
                if found is not None and found.name not in wanted:
                    create = f"CREATE SEQUENCE {found.name} AS {found.type} START WITH {found.start}"
                    create += f" INCREMENT BY {found.step}"
                    yield Statement(as_text(f"DROP SEQUENCE {found.name}"), as_text(create))

    def unused_types(self) -> Iterator[Statement]:
        """Yield the statements that drop the enum types that only dropped columns have."""
        dropped = [enum for column in self._dropped() if (enum := native_enum(column.type, self._dialect)) is not None]
        names = [(enum.schema or self._default, str(enum.name)) for enum in dropped]
        for name in sorted(set(names) - self._enums.keys()):
            uses = self._connection.scalar(text(_USES), {"name": self._quoted(name)})
            if uses == names.count(name):
                yield self._create_type(name, self._labels[name]).reverse()

    def _dropped(self) -> Iterator[Column[Any]]:
        for operation in self._operations:
            if isinstance(operation, ops.DropTableOp):
                yield from (item for item in operation.reverse().columns if isinstance(item, Column))
            elif isinstance(operation, ops.DropColumnOp):
                yield operation.reverse().column

    def _create_type(self, name: Name, labels: Iterable[str]) -> Statement:
        values, quoted = ", ".join(map(_literal, labels)), self._quoted(name)
        return Statement(as_text(f"CREATE TYPE {quoted} AS ENUM ({values})"), as_text(f"DROP TYPE {quoted}"))

    def _statement(self, forward: DDLElement, back: DDLElement) -> Statement:
        return Statement(
            *(as_text(str(one.compile(dialect=self._dialect)).replace("%%", "%")) for one in (forward, back))
        )

    def _quoted(self, name: Name) -> str:
        quote, (schema, own) = self._dialect.identifier_preparer.quote, name
        return quote(own) if schema == self._default else f"{quote(schema)}.{quote(own)}"


def unquoted(name: str) -> str:
    """Return the name that an identifier in a statement stands for."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _refuse_computed(operations: Iterable[Any], impl: Comparison) -> None:
    for operation in operations if Topology.each_node_computes else ():
        if isinstance(operation, ops.AddColumnOp) and impl.is_computed(operation.column):
            raise MigrationError(
                f"{operation.table_name}.{operation.column.name} has a default that each node would compute for the "
                "rows there are, with another result. Write three revisions with --empty: add the column without it, "
                'set the default, and fill in the rows that lack a value, with changes = "data"'
            )


def _flat(operation: Any) -> Iterator[Any]:
    if isinstance(operation, ops.ModifyTableOps):
        yield from operation.ops
    else:
        yield operation


def _scripts(
    script: ops.MigrationScript, parts: Sequence[list[Any]], impl: Comparison
) -> Iterator[ops.MigrationScript]:
    """Yield a revision for each part, each following the one before; the first one is `script`."""
    last, title = script, script.message
    for number, operations in enumerate(parts, start=1):
        if number > 1:
            empty = (ops.UpgradeOps([]), ops.DowngradeOps([]))
            last = ops.MigrationScript(rev_id(), *empty, head=last.rev_id, version_path=script.version_path)
        if len(parts) > 1:
            last.message = f"{title} ({number} of {len(parts)})"
        back = [operation.reverse() for operation in reversed(operations)]
        for operation in back:
            impl.adapt(operation)
        cast(Any, last.upgrade_ops).ops[:] = operations
        cast(Any, last.downgrade_ops).ops[:] = [one for one in back if getattr(one, "forward", True)]
        yield last


def _operator_classes(found: Mapping[str, str | None]) -> dict[str, str]:
    """Return the operator classes; SQLAlchemy 2.0 reports None for the columns that an index only includes."""
    return {name: one for name, one in found.items() if one is not None}


def _literal(label: str) -> str:
    return "'" + label.replace("'", "''") + "'"


def as_text(statement: str) -> str:
    """Return the statement in the form that `op.execute` expects, which takes `:name` for a parameter."""
    return re.sub(r"(?<![:\w\\]):(?=\w)", r"\\:", statement)


_INDEX = """
    SELECT relam, reloptions, indisunique, indnullsnotdistinct, indnkeyatts, indcollation::text, indclass::text,
           indoption::text, pg_get_expr(indpred, indrelid) AS predicate,
           (SELECT string_agg(pg_get_indexdef(indexrelid, n, false), ', ' ORDER BY n)
            FROM generate_series(1, indnatts) AS n) AS expressions
    FROM pg_index JOIN pg_class ON oid = indexrelid WHERE indexrelid = to_regclass(:name)
"""

_CHECK = """
    SELECT pg_get_constraintdef(oid) FROM pg_constraint
    WHERE contype = 'c' AND conname = :name AND conrelid = to_regclass('pg_temp._checked')
"""

_COMPUTED = r"""
    SELECT ev_action::text ~ '[{](SQLVALUEFUNCTION|NEXTVALUEEXPR) ' OR EXISTS (
        SELECT FROM regexp_matches(ev_action::text, '(opfuncid|funcid) (\d+)', 'g') AS called
        JOIN pg_proc ON pg_proc.oid = CAST(called[2] AS oid) WHERE provolatile <> 'i'
    )
    FROM pg_rewrite WHERE ev_class = to_regclass('pg_temp._computed')
"""

_SEQUENCE = """
    SELECT seqrelid::regclass::text AS name, format_type(seqtypid, NULL) AS type,
           seqstart AS start, seqincrement AS step
    FROM pg_sequence WHERE seqrelid = to_regclass(:name)
"""

_USES = """
    SELECT count(*) FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid JOIN pg_type AS t ON t.oid = atttypid
    WHERE (t.oid = to_regtype(:name) OR t.typelem = to_regtype(:name))
      AND NOT attisdropped AND relkind IN ('r', 'p', 'v', 'm', 'f')
"""
