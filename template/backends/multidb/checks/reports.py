"""Checks of the reporting database: the copies in it, and its view of the other databases."""

from contextlib import suppress
from datetime import datetime

from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ....databases import DATABASES, TABLE_SYNCS
from ....db import DistributedSQLError, Key, PinnedSession, PrimaryKeyMixin
from ....db.table_sync import ChangeTrackingMixin, TableSync, sync_table
from ...base import numbered
from ...cluster import HOME
from ...connections import connect
from ...copies import open_copies
from ...foreign import TARGET, NoTables, control, examples, explain, local_cluster, set_up, sources, take_down
from ..check import MAX_ROWS, Check, CheckContext, CheckResult, failed, judge, passed, skipped
from .playground import playground

SCHEMA_PREFIX = "_verify_"
"""Beginning of the names of the schemas for foreign tables that the check sets up."""


class Base(DeclarativeBase):
    """Base of the tables that the check copies from and to."""


class Change(PrimaryKeyMixin, ChangeTrackingMixin, Base):
    """A row to be copied."""

    __tablename__ = "change"

    made_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ChangeCopy(Base):
    """Its copy."""

    __tablename__ = "change_copy"

    id: Mapped[Key] = mapped_column(primary_key=True, autoincrement=False)


SYNC = TableSync(source="orders", table=Change.__table__, target=TARGET, into=ChangeCopy.__table__)


class TheCopyMissesNothing(Check):
    """A table sync into the reporting database misses nothing that commits late.

    `reports status` shows how far it is; `reports sync --full-refresh` copies everything again.
    """

    timeout = 20.0

    def run(self, context: CheckContext) -> CheckResult:
        """Copy while a transaction that began first is still open; then let it commit, and copy again."""
        with playground(context, Base.metadata) as databases:
            database = databases.server(SYNC.source)
            with database.session() as slow:
                _change(slow)
                for _ in range(5):
                    database.run(_change)
                early = sync_table(databases, SYNC).rows
                watermark = database.read(_latest)
                seen = database.read(_up_to, watermark)
            missed = database.read(_up_to, watermark) - seen
            late = sync_table(databases, SYNC).rows
            again = sync_table(databases, SYNC).rows
            there = databases.read(TARGET, lambda session: session.scalar(select(func.count(ChangeCopy.id))))
        evidence = {"copied_early": early, "copied_late": late, "again": again, "there": there, "naive_missed": missed}
        if there != 6 or again:
            return failed(f"{there} of 6 rows were copied, and {again} twice", evidence)
        if not missed:
            return failed("a watermark by time missed nothing either: this check proves nothing", evidence)
        return passed(f"6 of 6 rows; a watermark by time would have missed {missed}", evidence)


class CopiesAreTrue(Check):
    """Every copy has what its source had at the last sync.

    `diff` names all rows; `reports sync --full-refresh` copies everything again. A source row that changed without its
    triggers is not copied otherwise.
    """

    requires = ("EveryDatabaseIsUpToDate",)
    timeout = 60.0

    def run(self, context: CheckContext) -> CheckResult:
        """Compare the copies that are not too large."""
        context.check_sight()
        if not TABLE_SYNCS:
            return skipped("databases.py declares no copy")
        with open_copies(context.owner_urls, most=5) as comparers:
            large = [comparer.sync.into.name for comparer in comparers if comparer.estimate() > MAX_ROWS]
            results = [comparer.compare_copy() for comparer in comparers if comparer.sync.into.name not in large]
        compared = [result for result in results if result.left is None]
        rows = {result.table: result.rows for result in compared}
        newer = sum(result.newer for result in compared)
        doubts = [line for result in results for line in result.doubts]
        left = f"; left to `diff`, for their size: {', '.join(large)}" if large else ""
        if not compared:
            return skipped(f"no copy was compared{left}{''.join(f'; {line}' for line in doubts)}")
        problems = [line for result in compared for line in result.findings]
        summary = f"{numbered(sum(rows.values()), 'row')} compared, {newer} newer than the last sync{left}"
        return judge(problems, summary, {"rows": rows, "newer": newer, "left": large}, doubts)


class ForeignQueriesAreSentAlong(Check):
    """Conditions and joins over foreign tables are sent along.

    The plan is in the evidence. A function that the other server may not evaluate, or statistics that are missing,
    keep it here.
    """

    requires = ("EveryDatabaseIsUpToDate",)
    timeout = 20.0

    def run(self, context: CheckContext) -> CheckResult:
        """Set foreign tables up under other names, read plans, and one of a query that cannot be sent along."""
        cluster = context.cluster or local_cluster(context.urls, context.project / HOME)
        try:
            source = f"{SCHEMA_PREFIX}{sources()[0].name}"
            set_up(
                context.admin_urls,
                owner_urls=context.owner_urls,
                application=context.application,
                cluster=cluster,
                prefix=SCHEMA_PREFIX,
            )
            node = next(spec.node for spec in DATABASES if spec.name == TARGET) or ""
            pooler = context.transaction_pooler
            with connect(context.urls[node], node=TARGET, transaction_pooler=pooler) as connection:
                plans = {name: explain(connection, query) for name, query in examples(source).items()}
                here = explain(connection, control(source))
        except NoTables as error:
            # Migrations that did not run fail the required check, and this one does not run.
            return skipped(str(error))
        finally:
            with suppress(DBAPIError, DistributedSQLError):
                take_down(context.admin_urls, prefix=SCHEMA_PREFIX)
        evidence = {name: {"remote": plan.remote, "local": plan.local} for name, plan in plans.items()}
        wrong = [f"{name}: {'; '.join(plan.local)}" for name, plan in plans.items() if not plan.is_pushed_down]
        if wrong:
            return failed(", ".join(wrong), evidence)
        if here.is_pushed_down:
            return failed("a condition that cannot be sent along was not detected: this check proves nothing", evidence)
        return passed(f"{', '.join(plans)} of {sources()[0].name} answered by its server", evidence)


class ForeignTablesAnswer(Check):
    """Every foreign table answers.

    `fdw setup` gives both ends the same password again, and makes what is missing.
    """

    timeout = 20.0

    def run(self, context: CheckContext) -> CheckResult:
        """Read a row of each foreign table, as the application."""
        node = next(spec.node for spec in DATABASES if spec.name == TARGET) or ""
        problems: list[str] = []
        pooler = context.transaction_pooler
        with connect(context.urls[node], node=TARGET, transaction_pooler=pooler) as connection:
            tables = connection.scalars(text(_FOREIGN_TABLES), {"prefix": SCHEMA_PREFIX}).all()
            for table in tables:
                try:
                    # The server has quoted the name; a % is doubled for the driver.
                    name = str(table).replace("%", "%%")
                    connection.exec_driver_sql(f"SELECT 1 FROM {name} LIMIT 1")  # noqa: S608
                except DBAPIError as error:
                    cause = str(error.orig).replace("\n", " ").strip()
                    problems.append(f"{node}: {table} does not answer: {cause}; run `fdw setup`")
        if not tables:
            return skipped("there are no foreign tables; `fdw setup` makes them")
        return judge(problems, numbered(len(tables), "foreign table"), {})


_FOREIGN_TABLES = """
    SELECT CAST(CAST(ftrelid AS regclass) AS text) FROM pg_foreign_table JOIN pg_class AS c ON c.oid = ftrelid
    WHERE NOT starts_with(CAST(CAST(relnamespace AS regnamespace) AS text), :prefix)
      AND has_table_privilege(ftrelid, 'SELECT')
    ORDER BY 1
"""


def _change(session: PinnedSession) -> None:
    session.add(Change())
    session.flush()


def _latest(session: PinnedSession) -> object:
    return session.scalar(select(func.max(Change.made_at)))


def _up_to(session: PinnedSession, moment: object) -> int:
    return session.scalar(select(func.count(Change.id)).where(Change.made_at <= moment)) or 0
