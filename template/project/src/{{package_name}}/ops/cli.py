"""The command line of this project. Exit 0: done, 1: a check failed, 2: it could not be done; the message says why."""

import logging
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from sqlalchemy import URL
from sqlalchemy.orm import Session

from .. import seeds
from ..db import Backend, BadRow, Progress, bulk_load
from ..models import Base
from ..settings import PREFIX, Settings
from ..urls import URL_SCHEME
from . import BACKEND, PURPOSE
from .base import MigrationError, OperationError, Step
from .cluster import ClusterError, write_private
from .cluster.drivers import DRIVERS, open_cluster
from .console import (
    Commands,
    Contract,
    Down,
    PlanAsJson,
    ShowPlan,
    ShowSql,
    Wait,
    Yes,
    confirm_loss,
    operations_urls,
    out,
    print_status,
    talk,
)
from .file_reader import FileReader, InputError
from .topology import Topology
from .version_commands import register as register_version_commands

Kind = Annotated[str | None, typer.Option("--cluster", help=f"Kind of the local cluster: {' or '.join(DRIVERS)}.")]

InDatabase = Annotated[
    str | None, typer.Option("--database", help=f"In this {Topology.databases}.", hidden=not Topology.databases)
]

SEEDED_AT_ONCE = 100
"""Rows of one transaction of `seed`."""

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback(help=PURPOSE)
def main(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Take the options that all commands have."""


@app.command()
def up(cluster: Kind = None) -> None:
    """Start the local cluster; nodes that run already are left as they are."""
    chosen = open_cluster(cluster)
    started = time.monotonic()
    # First, because `down` and `destroy` must find a cluster that starts only in part.
    write_private(chosen.home / "driver", f"{chosen.driver}\n")
    with talk.status(f"starting the {chosen.driver} cluster"):
        chosen.up()
    print_status()
    talk.print(f"[green]up[/] in {time.monotonic() - started:.1f} s: {chosen.announcement}")
    if Settings().urls() != chosen.urls():
        raise ClusterError(
            f"The local cluster is up, but {PREFIX}NODES in the environment or in .env names other nodes, "
            "and every command would go there. Remove it to use the local cluster."
        )


@app.command()
def down() -> None:
    """Stop the local cluster and keep its data."""
    open_cluster().down()
    talk.print("[green]down[/]; the data is kept, `destroy` deletes it")


@app.command()
def destroy() -> None:
    """Stop the local cluster and delete its data."""
    cluster = open_cluster()
    existed = any(path.name != "lock" for path in cluster.home.glob("*"))
    cluster.destroy()
    nothing = f"nothing to destroy: there is no local cluster in {escape(str(cluster.home))}"
    talk.print("[green]destroyed[/]" if existed else nothing)


@app.command()
def status() -> None:
    """Show the nodes of the local cluster."""
    print_status()
    talk.print(open_cluster().announcement, style="dim")


@app.command()
def stop(node: str, kill: bool = False) -> None:
    """Stop one node of the local cluster; with --kill as a power cut would."""
    open_cluster().stop_node(node, kill=kill)
    print_status()


@app.command()
def start(node: str) -> None:
    """Start one node of the local cluster again."""
    open_cluster().start_node(node)
    print_status()


# -1 is no option.
@app.command(help=Topology.migrate_help, context_settings={"ignore_unknown_options": True})
def migrate(
    to: Annotated[
        str,
        typer.Argument(
            metavar="[TARGET]",
            help="A revision, `head`, or `base` before the first one; +1 or -1 counts from where the nodes are.",
            show_default="head",
        ),
    ] = "head",
    down: Down = False,
    yes: Yes = False,
    contract: Contract = False,
    wait: Wait = 0,
    plan: ShowPlan = False,
    sql: ShowSql = False,
    as_json: PlanAsJson = False,
) -> None:
    """Migrate the configured databases."""
    # Imported in the commands that need it: Alembic would slow down all others.
    from . import migrate as runner

    def show(step: Step) -> None:
        talk.print(f"{step.node}: {'back from ' if step.back else ''}{step.revision} {escape(step.title)}")

    urls = operations_urls()
    if down and to == "head":
        raise MigrationError("--down needs a target: -1, a revision, or `base`")
    if plan or sql or as_json:
        from .plan import make_plan

        planned = make_plan(urls.admin, owner_urls=urls.owner, target=to, down=down, rehearse=not sql)
        print(planned.json() if as_json else "\n".join(planned.sql() if sql else planned.lines()))
        raise typer.Exit(1 if any(one.refusal for one in planned.revisions) else 0)
    revision = runner.migrate(
        urls.admin,
        owner_urls=urls.owner,
        target=to,
        down=down,
        contract=contract,
        wait=wait,
        on_step=show,
        confirm=lambda loss: confirm_loss(str(loss), to, yes=yes),
    )
    others = Topology.migrate_other_databases(urls.owner, on_step=show, wait=wait)
    nodes = [node for node in urls.owner if node not in Topology.nodes_without_models]
    where = f"{len(nodes)} nodes with the same schema" if len(nodes) > 1 else nodes[0]
    reached = ", ".join(f"{name} at {at}" for name, at in {where: revision, **others}.items())
    talk.print(f"[green]migrated[/]: {reached}")


@app.command()
def revision(
    message: Annotated[str, typer.Option("--message", "-m", help="Title of the revision, in a few words.")] = "",
    empty: Annotated[bool, typer.Option("--empty", help="Do not compare the models with the database.")] = False,
    change: Annotated[
        str | None,
        typer.Option("--expand-contract", metavar="CHANGE", help="Write the steps for a column: `help` lists them."),
    ] = None,
) -> None:
    """Write a new migration from the difference between the models and the database."""
    from .autogenerate import write_revision
    from .expand_contract import FORMS, write_steps

    if change == "help":
        print(FORMS.strip("\n"))
        return
    if not message.strip():
        raise MigrationError("a revision needs a title: add -m TITLE")
    urls = operations_urls()
    # Alembic reports to stdout, where only the files belong.
    with redirect_stdout(sys.stderr):
        files = write_revision(message, empty=empty) if change is None else write_steps(urls.owner, change, message)
    for file in files:
        print(file)
    if not files:
        talk.print(
            "[green]nothing to write[/]: the database has what the models have; --empty writes a revision anyway"
        )


@app.command()
def load(
    table: str,
    file: Annotated[Path, typer.Argument(help="A .csv with a header, or a .jsonl with a JSON object in each line.")],
    name: Annotated[str | None, typer.Option("--load", help="Name of the load; use it again to resume.")] = None,
    chunk_rows: Annotated[int, typer.Option(min=1, help="Rows per transaction.")] = Backend.chunk_rows,
    node: Annotated[str | None, typer.Option(help="Load on this node.")] = None,
    database: InDatabase = None,
) -> None:
    """Load a file into a table, one transaction per chunk of rows. The file has what the database stores."""
    if (target := Base.metadata.tables.get(table)) is None:
        raise InputError(f"there is no table {table!r}; the tables are {', '.join(sorted(Base.metadata.tables))}")
    # A class knows its discriminator and version; the table of a many-to-many relationship has none.
    classes = {mapper.local_table: mapper.class_ for mapper in Base.registry.mappers if not mapper.inherits}
    columns = {column.name: column for column in target.columns}
    dialect = URL.create(URL_SCHEME).get_dialect()()
    rows = FileReader(file, columns, window=chunk_rows, dialect=dialect)
    with Topology.open_database(database) as db, talk.status("loading") as shown, closing(iter(rows)) as read:

        def show(done: Progress) -> None:
            pace = f"{done.rows + done.skipped} rows, {done.rows_per_second:.0f} rows/s"
            shown.update(f"loading: {rows.position / rows.size:.0%}, {pace}")

        chosen, model = db.using(node=node), classes.get(target, target)
        try:
            done = bulk_load(chosen, model, read, load=name, chunk_rows=chunk_rows, as_stored=True, on_progress=show)
        except BadRow as error:
            more = len(error.rows) - 1
            where = f"here or in one of the next {more} rows: " if more else ""
            raise rows.error(rows.line_of(error.rows[0]), f"{where}{error.reason}") from error
    if not done.rows + done.skipped:
        talk.print(f"nothing to load: {escape(str(file))} has no rows")
        return
    pace = f"{done.seconds:.1f} s, {done.rows_per_second:.0f} rows/s"
    skipped = f"; {done.skipped} were there already" if done.skipped else ""
    result = f"{done.rows} rows into {table} on {done.node} in {pace}{skipped}"
    talk.print(f"[green]loaded[/]: {result}")


@app.command()
def seed(
    size: Annotated[int, typer.Option(min=1, help="Rows of each table.")] = 100,
    node: Annotated[str | None, typer.Option(help="Write on this node.")] = None,
    database: InDatabase = None,
) -> None:
    """Add the rows of seeds.py, to develop with: the same each time, and each of them once."""
    with talk.status("seeding") as shown:
        for table, add in seeds.ADDERS.items():
            shown.update(f"seeding {table}")
            with Topology.open_database(database or Topology.database_of(table)) as db:
                # On one node, where a row finds those that it refers to.
                chosen = db.using(node=node) if node else db.backend.route_load(db, "seeds", None)
                for first in range(0, size, SEEDED_AT_ONCE):
                    chosen.run(_add_rows, add, range(first, min(first + SEEDED_AT_ONCE, size)))
    talk.print(f"[green]seeded[/]: {', '.join(seeds.ADDERS) or 'nothing, seeds.py has no tables'}")


@app.command()
def verify(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    junit: Annotated[
        typer.FileTextWrite | None, typer.Option(lazy=False, encoding="utf-8", help="Also write a JUnit XML file.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of an earlier run, to repeat it.")] = None,
    chaos: Annotated[bool, typer.Option("--chaos", help="Also stop a node of the local cluster.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Skip the checks that write.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Only show nodes and links, each second.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page for people.", metavar="FILE")] = None,
    isolation: Annotated[
        bool,
        typer.Option("--isolation", help="Instead, show what transactions see and lose here: README.md, Isolation."),
    ] = False,
    history: Annotated[
        Path | None, typer.Option(help="With --isolation: write the transactions to a file for elle-cli (EDN).")
    ] = None,
) -> None:
    """Check the configured cluster. Exit 0: all checks passed, 1: a check failed, 2: the checks could not run."""
    from .verify import ALL, WITH_CHAOS, CheckContext, report
    from .verify import verify as run_checks
    from .verify.history import History
    from .verify.look import look_at
    from .verify.page import as_page

    if chaos and (read_only or isolation):
        other = "--read-only" if read_only else "--isolation"
        raise OperationError(f"--chaos stops nodes under load: use it without {other}")
    if isolation and read_only:
        raise OperationError("--isolation writes: use it without --read-only")
    if history is not None and not isolation:
        raise OperationError("--history needs --isolation, which runs the transactions")
    urls = operations_urls(read_only=read_only or watch)
    if watch:
        if chaos or isolation or as_json or junit is not None or html is not None:
            raise OperationError("--watch runs no check: use it alone, or with --read-only")
        from .verify.watch import watch as show_live

        return show_live(urls.admin, out)
    cluster = open_cluster() if chaos else None
    if cluster is not None and cluster.urls() != urls.application:
        raise ClusterError("--chaos stops nodes, and the configured ones are not those of the local cluster.")
    if chaos and not context.find_root().params["debug"]:
        # Pools and routing log the lost node at length; the report has the outcome.
        logging.getLogger().addHandler(logging.NullHandler())
    seed = secrets.randbelow(2**32) if seed is None else seed
    pooler, pool = Settings().transaction_pooler, Settings().pool
    subject = CheckContext(
        *(urls.application, urls.admin, seed),
        owner_urls=urls.owner,
        cluster=cluster,
        transaction_pooler=pooler,
        pool=pool,
        read_only=read_only,
    )
    checks, recorded = WITH_CHAOS if chaos else ALL, History()
    with ExitStack() as opened:
        # First, because a file that cannot be written must not cost a run.
        page = opened.enter_context(report.replacing(html)) if html else None
        transactions = opened.enter_context(report.replacing(history)) if history else None
        if isolation:
            # Here, because its table is then created in the scratch schema.
            from .verify.checks.anomalies import CHECK, TABLE
            from .verify.isolation import checks_of

            checks = checks_of(TABLE, recorded, CHECK)
        with talk.status("verifying") as progress:
            result = run_checks(subject, checks, on_start=lambda check: progress.update(check.title()))
        if page is not None:
            page.write(as_page(result, look_at(urls.admin)))
        if transactions is not None:
            transactions.write(str(recorded))
    if as_json:
        print(report.as_json(result, BACKEND))
    else:
        report.print_report(result, out)
    if junit is not None:
        junit.write(report.as_junit(result))
    raise typer.Exit(0 if result.passed else 1)


def _add_rows(session: Session, add: Callable[[Session, int], object], numbers: range) -> None:
    for number in numbers:
        add(session, number)


register_version_commands(app)
Topology.register_commands(app)
