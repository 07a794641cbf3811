"""Thirty everyday schema changes under writers: the longest wait of a writer while `migrate` makes each.

`python -m benchmarks.schema_changes` prints the table of times of docs/schema-changes.md. Every change has
tables of its own. Three writers insert and update rows of the table that changes, or of the one beside it if
that goes; their statements do not name what changes.
"""

import argparse
import logging
import signal
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from alembic.script import ScriptDirectory
from rich.console import Console

from benchmarks.ground import Ground, Project
from benchmarks.schema_writers import WRITERS, Unit, write
from benchmarks.tenants import admin_of, url_of

ROWS = 100_000
"""Number of rows of a table that changes."""

BEFORE, AFTER = 1.0, 0.2
"""Seconds that the writers write before and after a change."""

TABLES = """
    CREATE TABLE {u} (id uuid PRIMARY KEY, number int NOT NULL, t_id uuid);
    CREATE TABLE {t} (
        id uuid PRIMARY KEY, number int NOT NULL, note varchar(20), spare int,
        required int NOT NULL DEFAULT 0{more}
    )
"""
"""The table that changes, and one beside it."""

FILL = """
    INSERT INTO {t} (id, number, note, spare)
    SELECT gen_random_uuid(), n, %s, n FROM generate_series(1, {rows}) AS n;
    INSERT INTO {u} (id, number, t_id) SELECT gen_random_uuid(), number, id FROM {t}
"""


@dataclass(frozen=True)
class Step:
    """A revision: the calls of its `upgrade()`, and its attributes."""

    calls: tuple[str, ...]
    changes: str = "schema"
    contract: bool = False


def schema(*statements: str, contract: bool = False) -> Step:
    """Return an ordinary revision, or one that takes away what earlier code may use."""
    return Step(tuple(f"op.execute({one!r})" for one in statements), contract=contract)


def contract(*statements: str) -> Step:
    """Return a revision that runs with `--contract` only; on one server that is advice."""
    return schema(*statements, contract=True)


def indexes(*statements: str) -> Step:
    """Return a revision outside a transaction."""
    return Step(tuple(f"op.execute({one!r})" for one in statements), changes="indexes")


def fill_in(assignments: str, where: str) -> Step:
    """Return a revision that fills a column in."""
    return Step((f"backfill('{{t}}', {assignments!r}, where={where!r})",), changes="data")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A schema change; `{t}` and `{u}` are its tables."""

    title: str
    steps: tuple[Step, ...] = ()
    request: str = ""
    """Request for `revision --expand-contract`, which writes the steps."""
    on_mesh: tuple[Step, ...] | None = None
    """Steps instead of those that a mesh refuses; none if there are none."""
    more: str = ""
    """Other columns and constraints of the table."""
    before: tuple[str, ...] = ()
    """Statements before the tables are made, and, with a table's name, after that."""
    note: str = "nullif(n % 10, 0)::text"
    writes: str = "{t}"
    """The table of the writers."""


ADD = "ALTER TABLE {t} ADD "
ALTER = "ALTER TABLE {t} ALTER "


def volatile_default(kind: str, value: str) -> Change:
    """Return a new column with a default that each node of a mesh would evaluate for itself."""
    add, default = schema(f"{ADD}extra {kind}"), schema(f"{ALTER}extra SET DEFAULT {value}")
    return Change(
        title=f"add a column with `DEFAULT {value}`",
        steps=(schema(f"{ADD}extra {kind} DEFAULT {value}"),),
        on_mesh=(add, fill_in(f"extra = {value}", "extra IS NULL"), default),
    )


CHANGES = (
    Change(title="create a table", steps=(schema("CREATE TABLE {t}_new (id uuid PRIMARY KEY)"),)),
    Change(
        title="create a table with a foreign key",
        steps=(schema("CREATE TABLE {t}_new (id uuid PRIMARY KEY, t_id uuid NOT NULL REFERENCES {t})"),),
    ),
    Change(
        title="drop a table",
        steps=(contract("DROP TABLE {t}"),),
        more=", u_id uuid REFERENCES {u}",
        writes="{u}",
    ),
    Change(title="rename a table", steps=(contract("ALTER TABLE {t} RENAME TO {t}_renamed"),), writes="{u}"),
    Change(title="add a column that may be NULL", steps=(schema(f"{ADD}extra text"),)),
    Change(
        title="add a column with a constant default",
        steps=(schema(f"{ADD}extra int DEFAULT 7 NOT NULL"),),
    ),
    volatile_default("timestamptz", "now()"),
    volatile_default("uuid", "gen_random_uuid()"),
    Change(
        title="add a stored generated column",
        steps=(schema(f"{ADD}extra bigint GENERATED ALWAYS AS (number * 2) STORED"),),
    ),
    Change(title="drop a column", steps=(contract("ALTER TABLE {t} DROP COLUMN spare"),)),
    Change(title="rename a column while earlier code runs", request="rename {t}.note to comment"),
    Change(title="move a column to another table", request="move {t}.note to {u} by t_id"),
    Change(title="widen `varchar(20)` to `text`", steps=(schema(f"{ALTER}note TYPE text"),)),
    Change(title="widen `int` to `bigint`", steps=(schema(f"{ALTER}spare TYPE bigint"),)),
    Change(title="change a type to another", request="type {t}.spare to text using 'no ' || spare"),
    Change(title="set a default", steps=(schema(f"{ALTER}note SET DEFAULT 'y'"),)),
    Change(title="make a column NOT NULL", request="not null {t}.note using 'none'"),
    Change(
        title="make it NOT NULL after a valid `CHECK (… IS NOT NULL)`",
        steps=(schema(f"{ALTER}note SET NOT NULL"),),
        more=", CHECK (note IS NOT NULL)",
        before=("ALTER TABLE {t} ALTER note SET DEFAULT 'x'",),
        note="'n'",
    ),
    Change(title="let a column be NULL again", steps=(schema(f"{ALTER}required DROP NOT NULL"),)),
    Change(title="fill a column in", steps=(fill_in("note = 'none'", "note IS NULL"),)),
    Change(title="add an index", steps=(schema("CREATE INDEX {t}_number ON {t} (number)"),)),
    Change(
        title="add an index without blocking",
        steps=(indexes("CREATE INDEX CONCURRENTLY IF NOT EXISTS {t}_number ON {t} (number)"),),
    ),
    Change(
        title="drop an index without blocking",
        steps=(indexes("DROP INDEX CONCURRENTLY IF EXISTS {t}_note"),),
        before=("CREATE INDEX {t}_note ON {t} (note)",),
    ),
    Change(
        title="rebuild an index without blocking",
        steps=(indexes("REINDEX INDEX CONCURRENTLY {t}_note"),),
        before=("CREATE INDEX {t}_note ON {t} (note)",),
    ),
    Change(title="add a unique constraint", steps=(schema(f"{ADD}UNIQUE (number, id)"),), on_mesh=()),
    Change(title="add a CHECK", steps=(contract(f"{ADD}CHECK (number > 0)"),)),
    Change(
        title="add a CHECK `NOT VALID`, then validate it",
        steps=(
            contract(f"{ADD}CONSTRAINT {{t}}_check CHECK (number > 0) NOT VALID"),
            schema("ALTER TABLE {t} VALIDATE CONSTRAINT {t}_check"),
        ),
    ),
    Change(
        title="add a foreign key",
        steps=(contract("ALTER TABLE {u} ADD FOREIGN KEY (t_id) REFERENCES {t}"),),
    ),
    Change(
        title="add a foreign key `NOT VALID`, then validate it",
        steps=(
            contract("ALTER TABLE {u} ADD CONSTRAINT {u}_t FOREIGN KEY (t_id) REFERENCES {t} NOT VALID"),
            schema("ALTER TABLE {u} VALIDATE CONSTRAINT {u}_t"),
        ),
    ),
    Change(
        title="add a label to an enum type",
        steps=(schema("ALTER TYPE {t}_mood ADD VALUE 'calm'"),),
        more=", mood {t}_mood DEFAULT 'glad'",
        before=("CREATE TYPE {t}_mood AS ENUM ('glad')",),
    ),
)
"""The changes in the order of docs/schema-changes.md."""


@dataclass(frozen=True)
class Cell:
    """The result of one change on one backend, in seconds."""

    stall: float
    """Longest unit of work of a writer that ended during the change or began in it."""
    normal: float
    """Longest one before that."""
    taken: float
    """Time of `migrate`."""


class Place:
    """A migrated database, or mesh, whose tables change, and the process that writes to it."""

    def __init__(self, project: Project, backend: str, *, rows: int) -> None:
        self.project, self.rows = project, rows
        cluster = project.cluster
        self.admin_urls, self.owner_urls = cluster.admin_urls(), cluster.owner_urls()
        self.urls = cluster.urls()
        self.is_mesh = backend == "pgedge"
        if backend == "tenants":
            admin = admin_of(project)
            tenant = admin.add("ada", next(iter(self.urls)))
            self.admin_urls = {tenant.server: admin.database_url(tenant.server, tenant.name)}
            self.owner_urls = {tenant.server: admin.owner_url(tenant.server, tenant.name)}
            self.urls = {tenant.server: url_of(project, tenant)}
        self._migrate = project.module("ops.migrate")
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # On a mesh a writer for each node; elsewhere routing sends all to the one that takes writes.
        nodes = [*self.urls] if self.is_mesh else [None] * WRITERS
        arguments = (theirs, str(project.source), project.package, self.urls, nodes)
        self._process = context.Process(target=write, args=arguments, daemon=True)
        self._process.start()

    def close(self) -> None:
        """End the process that writes."""
        self._pipe.send(None)
        self._process.join()

    def measure(self, number: int, change: Change) -> Cell | None:
        """Make a change under writers; return None if this backend has no way to make it."""
        steps = change.on_mesh if self.is_mesh and change.on_mesh is not None else change.steps
        self._prepare(number, change)
        if steps is not change.steps:
            self._must_refuse(number, change)
        if not steps and not change.request:
            return None
        if change.request:
            request = change.request.format(**_names(number))
            module = self.project.module("ops.expand_contract")
            # Alembic reports to stdout, where only the table belongs.
            with redirect_stdout(sys.stderr):
                module.write_steps(self.owner_urls, request, f"change {number}", project=self.project.path)
        for step in steps:
            self._write(number, step)
        self._pipe.send(change.writes.format(**_names(number)))
        _received(self._pipe)
        time.sleep(BEFORE)
        began = time.monotonic()
        self._run()
        ended = time.monotonic()
        time.sleep(AFTER)
        self._pipe.send(None)
        units: list[Unit] = _received(self._pipe)
        during = [unit.seconds for unit in units if unit.ended > began and unit.began < ended]
        before = [unit.seconds for unit in units if unit.ended <= began]
        return Cell(max(during), max(before), ended - began)

    def _prepare(self, number: int, change: Change) -> None:
        tables = TABLES.replace("{more}", change.more).split(";")
        before = [one for one in change.before if one.startswith("CREATE TYPE")]
        after = [one for one in change.before if one not in before]
        self._write(number, schema(*before, *tables, *after))
        fill = (FILL % change.note).replace("{rows}", str(self.rows)).split(";")
        self._write(number, Step(schema(*fill).calls, changes="data"))
        self._run()

    def _must_refuse(self, number: int, change: Change) -> None:
        path = self._write(number, change.steps[0])
        try:
            self._run()
        except self.project.module("ops.base").MigrationError:
            path.unlink()
        else:
            raise AssertionError(f"{change.title}: a mesh has to refuse that")

    def _write(self, number: int, step: Step) -> Path:
        """Write a revision that follows the newest one."""
        config = self._migrate.load_config(self.project.path)
        scripts = ScriptDirectory.from_config(config)
        head = scripts.get_current_head()
        name = f"{len(list(scripts.walk_revisions())) + 1:04}"
        calls = [call.format(**_names(number)) for call in step.calls]
        path = Path(scripts.versions) / f"{name}.py"
        imports = f"from {self.project.package}.ops.backfill import backfill"
        lines = (
            f'"""Change {number}."""\n\nfrom alembic import op\n{imports}\n',
            f"revision = {name!r}\ndown_revision = {head!r}",
            f"changes = {step.changes!r}\ncontract = {step.contract}\n",
            "\ndef upgrade():\n    " + "\n    ".join(calls) + "\n",
        )
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    def _run(self) -> None:
        self._migrate.migrate(
            self.admin_urls, owner_urls=self.owner_urls, contract=True, project=self.project.path
        )


def _received(pipe: Connection) -> Any:
    found = pipe.recv()
    if isinstance(found, Exception):
        raise found
    return found


def _names(number: int) -> dict[str, str]:
    return {"t": f"t{number}", "u": f"u{number}"}


BACKENDS = ("pgedge", "aurora", "tenants", "multidb")
"""Backends with local servers of their own kind: CockroachDB's stand-in is a PostgreSQL server."""

Cells: TypeAlias = dict[int, Cell | None]


def measure_all(
    ground: Ground, backends: Sequence[str], numbers: Sequence[int], rows: int, found: dict[str, Cells]
) -> None:
    """Make the changes on the backends, one after the other, and put the results into `found`."""
    for backend in backends:
        project = ground.project(backend=backend, keys="uuid")
        place = Place(project, backend, rows=rows)
        found[backend] = cells = {}
        for number in numbers:
            cells[number] = place.measure(number, CHANGES[number - 1])
            ground.console.log(f"{backend} {number} {CHANGES[number - 1].title}: {_told(cells[number])}")
        place.close()
        project.cluster.destroy()


def _told(cell: Cell | None) -> str:
    if cell is None:
        return "refused"
    return f"{_ms(cell.stall)} ms, {_ms(cell.normal)} before; migrate took {cell.taken:.2f} s"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}"


def show(found: Mapping[str, Cells], numbers: Sequence[int]) -> None:
    """Print the table in Markdown."""
    print("| | change |", " | ".join(found), "|")
    print("|---" * (2 + len(found)) + "|")
    for number in numbers:
        print(f"| {number} | {CHANGES[number - 1].title} |", end=" ")
        print(" | ".join(_cell(cells, number) for cells in found.values()), "|")
    print("|  | without a change |", " | ".join(_middle(cells.values()) for cells in found.values()), "|")


def _cell(cells: Cells, number: int) -> str:
    if number not in cells:
        return "—"
    cell = cells[number]
    return "refused" if cell is None else _ms(cell.stall)


def _middle(cells: Iterable[Cell | None]) -> str:
    normal = sorted(cell.normal for cell in cells if cell is not None)
    return f"{_ms(statistics.median(normal))}, at most {_ms(normal[-1])}" if normal else "—"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line selects."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schema_changes", description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="only this backend; repeatable")
    parser.add_argument("--change", type=int, action="append", help="only this number; repeatable")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows of a table; default: {ROWS}")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    numbers = options.change or range(1, len(CHANGES) + 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    found: dict[str, Cells] = {}
    with Ground(quick=False, debug=True, console=Console(stderr=True, log_path=False)) as ground:
        try:
            measure_all(ground, options.backend or BACKENDS, numbers, options.rows, found)
        finally:
            # The results of an interrupted run, too.
            show(found, numbers)
    print(f"\nmilliseconds; tables of {options.rows:,} rows, {WRITERS} writers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
