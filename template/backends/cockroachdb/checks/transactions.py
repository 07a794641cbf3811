"""Checks that lost races are retried and lost updates detected."""

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from ....db import PinnedSession, PrimaryKeyMixin, RetryPolicy
from ....db.retry import sqlstate_of
from ..check import Check, CheckContext, CheckResult, failed, passed, skipped
from ..scratch import Base, add_entries
from .stand_in import CockroachDBCheck


class Note(PrimaryKeyMixin, Base):
    """A row with a version, edited after it was read."""

    __tablename__ = "note"

    body: Mapped[str]
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}


class InjectedRaceIsSurvived(CockroachDBCheck):
    """A transaction that loses a race in CockroachDB is retried.

    Let the application use `db.run`: a session that it opens by itself is not retried.
    """

    REFUSED = 3

    def ask(self, connection: Connection, context: CheckContext) -> CheckResult:
        """Let the cluster refuse the first attempts of a transaction."""
        attempts = 0

        def work(session: PinnedSession) -> None:
            nonlocal attempts
            attempts += 1
            # A SET is never refused, and the setting stays with the connection.
            session.execute(text("SET inject_retry_errors_enabled = false"))
            if attempts <= self.REFUSED:
                session.execute(text("SET inject_retry_errors_enabled = true"))
            add_entries(session, "injected")

        try:
            context.scratch.database.using(retry=RetryPolicy(attempts=10)).run(work)
        except DBAPIError as error:
            if sqlstate_of(error) == "42704":
                return skipped("this version cannot inject retry errors")
            raise
        if attempts != self.REFUSED + 1:
            return failed(f"{attempts} attempts, of which the cluster should have refused {self.REFUSED}")
        return passed(f"{self.REFUSED} attempts refused with 40001, the next one committed")


class LostUpdateIsNoticed(Check):
    """A lost update is noticed.

    A version column detects changes since a row was read by the number of rows that its UPDATE changed: the driver,
    and a proxy in between, have to pass that on.
    """

    def run(self, context: CheckContext) -> CheckResult:
        """Change a row twice, both times as it was read before."""

        def edit(session: PinnedSession, note: Note, body: str) -> None:
            # The note as it was read, without asking the database.
            session.merge(note, load=False).body = body

        database = context.scratch.database
        note = database.run(lambda session: session.merge(Note(body="first")))
        database.run(edit, note, "second")
        try:
            database.run(edit, note, "third")
        except StaleDataError:
            return passed("an edit of a row that was changed meanwhile is refused")
        return failed("an edit overwrote another one, and no error was raised")
