"""Two-phase commits: change several PostgreSQL databases together or not at all, whatever crashes and when.

    databases.two_phase("ledger", "orders").run(pay, order_id=…)     # pay(ledger, orders, *, order_id)

One database keeps the decision log. Its transaction begins first, takes an advisory lock for this commit, and ends
last. The other databases prepare (PREPARE TRANSACTION '<application>:<id>:<n>'): after that their commit cannot fail.
Then the transaction on the decision log inserts one row, the decision, and commits; at this moment everything has
happened. It includes the work on that database, so two databases cost one commit more than two separate transactions.
Last, the prepared transactions are committed (COMMIT PREPARED).

A decision is inserted once and never changed. Recovery that finds a prepared transaction without a decision, and its
lock free, inserts the decision `rollback` before it rolls back, so that the process that meant to commit no longer can.
While the lock is held, the commit is in flight and recovery leaves it alone. A decision whose COMMIT was not answered
is settled in the same way.

A prepared transaction keeps its locks, and keeps VACUUM from removing rows, until it is finished. Run `twophase
recover` at regular intervals and whenever a process may have crashed during a two-phase commit; it is safe at any time.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import Column, DateTime, MetaData, String, Table, Uuid, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from .errors import AmbiguousCommit, DistributedSQLError, MisuseError, NodeUnavailable, RetriesExhausted
from .retry import Attempts, Verdict, classify, first_line, inside_unit, raise_translated, run_with_retries, sqlstate_of
from .session import PinnedSession

if TYPE_CHECKING:
    from .databases import Databases, NamedDatabase

logger = logging.getLogger(__name__)

T = TypeVar("T")

Outcome: TypeAlias = Literal["commit", "rollback"]

OnStep: TypeAlias = Callable[[str], None]

PREFIX = __name__.partition(".")[0]
"""Prefix of the names of this application's prepared transactions; those of other applications are left alone."""

FINISH_TIMEOUT = 2.0
"""Seconds for which a database is told a decision before it is left to `recover`. Arbitrary."""

DELETED_PER_DECISION = 100
"""Upper limit of the old decisions that one transaction deletes. Arbitrary: there is usually one."""

metadata = MetaData()

decision = Table(
    "twophase_decision",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("outcome", String(8), nullable=False),
    Column("decided_at", DateTime(timezone=True), server_default=func.now(), nullable=False),
)
"""The decision log. A row is inserted once, never changed, and deleted after every database has completed it."""


class CommitPending(DistributedSQLError):
    """The commit is decided, but missing on a database that went away. `recover` finishes it; do not run it again."""


def ignore_step(_step: str) -> None:
    """Do nothing; the default callback."""


@dataclass(frozen=True)
class TwoPhase:
    """Units of work on several databases that commit together; made by `Databases.two_phase`."""

    databases: "Databases"
    names: tuple[str, ...]
    """Databases in the order of the work's sessions. Use the same order everywhere: no server detects a deadlock that
    involves another server, and only `lock_timeout` ends it."""
    prefix: str = PREFIX
    """Prefix of the names of prepared transactions; `recover` finishes only those with its own prefix."""

    def attempt(self) -> "Attempt":
        """Return an attempt that has not connected yet."""
        return self.databases.attempt_class(self)

    def run(self, work: Callable[..., T], /, **arguments: Any) -> T:
        """Run `work(session, session, …)`, with a session for each database, again while that is safe and useful.

        Raises:
            AmbiguousCommit: the reply to the decision was lost, and the log does not answer. `recover` settles it.
            CommitPending: the commit is decided, and a database still has to be told.
            RetriesExhausted: each attempt failed for a reason that may pass.
            NodeUnavailable: a database did not answer, and nothing happened.
        """
        log = self.databases.log
        attempts = Attempts(log.route.retry or log.retry, log.route, time.monotonic(), log.counters)
        return run_with_retries(
            attempts,
            lambda _route: self.attempt(),
            lambda attempt: work(*attempt.open(), **arguments),
            concurrency=log.concurrency,
            lock=self.databases.retry_lock,
        )

    @contextmanager
    def session(self) -> Iterator[tuple[PinnedSession, ...]]:
        """Open a session for each database: committed together when the block ends, rolled back when it raises.

        Raises the errors of `run`; a transaction that lost a race is not run again.
        """
        attempt = self.attempt()
        try:
            yield attempt.open()
            attempt.finish()
        except Exception as error:
            attempt.translate_error(error)
            raise
        finally:
            attempt.release()


class Attempt:
    """One attempt at a two-phase commit: its sessions, and the names of what it has prepared; a `retry.Unit`."""

    committing = False
    """Always False, because `finish` settles a lost COMMIT reply itself."""
    in_doubt = False

    def __init__(self, plan: TwoPhase) -> None:
        """Connect nothing yet."""
        self.node = " and ".join(plan.names)
        self._plan = plan
        self._databases = plan.databases
        self._on_step = plan.databases.on_step
        self._id = uuid4()
        self._sessions: dict[str, PinnedSession] = {}
        self._prepared: dict[str, str] = {}
        """Name of the prepared transaction of each database, set before PREPARE is sent."""
        self._deleting: list[UUID] = []
        """Completed commits whose decisions this attempt deletes."""
        self._decided = False
        """The decision may be in the log, so nothing may be rolled back any more."""

    def open(self) -> tuple[PinnedSession, ...]:
        """Open the sessions and return those of the work.

        The decision log comes first: recovery takes what is prepared under its lock for a commit in flight.
        """
        for name in dict.fromkeys((self._databases.decision_log, *self._plan.names)):
            server = self._databases.server(name)
            self._sessions[name] = session = server.open_session(server.route)
            if name == self._databases.decision_log:
                session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _lock_of(self._id)})
        self._on_step("begun")
        return tuple(self._sessions[name] for name in self._plan.names)

    def finish(self) -> None:
        """Prepare the databases, commit the decision, and commit what is prepared."""
        # The caller's work has ended: what settles a lost COMMIT reply is not nested in it.
        token = inside_unit.set(())
        try:
            self._on_step("worked")
            self._prepare()
            self._decide()
            self._complete()
        finally:
            inside_unit.reset(token)

    def translate_error(self, error: Exception) -> None:
        """Raise what an error before the decision means to the caller of `session()`; see `raise_translated`."""
        lost = [name for name, session in self._sessions.items() if session.bind.invalidated]
        raise_translated(error, node=" and ".join(lost) or self.node, readonly=False, committing=False)

    def release(self) -> None:
        """Roll back what is prepared unless the decision may be made, and return the connections.

        The session of the decision log is the last: its end releases the lock.
        """
        if not self._decided:
            for name, gid in self._prepared.items():
                try:
                    _finish(self._databases.server(name), gid, "rollback", timeout=0)
                except SQLAlchemyError as error:
                    logger.warning("%s on %s is left for `recover` to roll back: %s", gid, name, first_line(error))
        self._databases.completed.update(self._deleting)
        for session in reversed(self._sessions.values()):
            if self._decided:
                session.objects.forget()
            session.release()

    def _prepare(self) -> None:
        """Prepare every database but the decision log. A database that cannot commit refuses here, in its own words."""
        for session in self._sessions.values():
            session.flush()
        others = [name for name in self._sessions if name != self._databases.decision_log]
        for number, name in enumerate(others, start=1):
            session = self._sessions[name]
            if self._databases.log.backend.is_aborted(session.bind):
                # PostgreSQL answers PREPARE in an aborted transaction with a rollback and no error.
                raise MisuseError(
                    f"a statement failed on {name} and the unit of work went on: its changes would be lost without a "
                    "word. Let the error out, or contain the statement in session.begin_nested()",
                    node=name,
                )
            self._prepared[name] = name_of(self._id, number, self._plan.prefix)
            try:
                session.bind.exec_driver_sql(f"PREPARE TRANSACTION '{self._prepared[name]}'")
            except DBAPIError as error:
                if not error.connection_invalidated:
                    # The server refused and has rolled back: there is nothing left to undo.
                    del self._prepared[name]
                raise
            # A prepared transaction belongs to no session, and finishing it takes a connection of the same pool.
            session.release(prepared=True)
            self._on_step(f"prepared {name}")

    def _decide(self) -> None:
        """Insert the decision and commit it, together with the work on the database of the decision log."""
        log = self._databases.decision_log
        session = self._sessions[log]
        write = insert(decision).values(id=self._id, outcome="commit")
        with suppress(KeyError):
            # Each completed commit is taken by one transaction only, so that none waits for another.
            while len(self._deleting) < DELETED_PER_DECISION:
                self._deleting.append(self._databases.completed.pop())
        if self._deleting:
            write = write.add_cte(delete(decision).where(decision.c.id.in_(self._deleting)).cte("completed"))
        try:
            session.execute(write)
        except IntegrityError as error:
            raise NodeUnavailable(f"{log} was away, and `recover` rolled this back meanwhile", node=log) from error
        self._on_step("deciding")
        try:
            session.finish()
        except DBAPIError as error:
            if classify(error, committing=session.committing) is not Verdict.AMBIGUOUS:
                raise
            self._decided = True
            self._decided = self._settle(error) == "commit"
            if not self._decided:
                raise
        except BaseException:
            # An interrupt may have come while COMMIT was on its way.
            self._decided = session.committing
            raise
        self._decided = True
        self._deleting.clear()
        self._on_step("decided")

    def _complete(self) -> None:
        """Commit what is prepared."""
        failures: dict[str, SQLAlchemyError] = {}
        for name, gid in self._prepared.items():
            try:
                _finish(self._databases.server(name), gid, "commit", timeout=FINISH_TIMEOUT)
            except SQLAlchemyError as error:
                logger.error("%s is decided, but not committed on %s: %s", gid, name, first_line(error))
                failures[name] = error
            else:
                self._on_step(f"committed {name}")
        if failures:
            name, first = next(iter(failures.items()))
            names = ", ".join(failures)
            raise CommitPending(
                f"the commit is decided, but {names} could not be told ({first_line(first)}) and shows the state "
                f"before: do not run the work again, `{PREFIX} twophase recover` finishes it once {names} is back",
                node=name,
                failures=list(failures.values()),
            ) from first
        self._databases.completed.add(self._id)

    def _settle(self, error: DBAPIError) -> Outcome:
        try:
            return settle(self._databases.log, self._id)
        except (DBAPIError, DistributedSQLError) as second:
            log = self._databases.decision_log
            raise AmbiguousCommit(
                f"{log} did not say whether it committed ({first_line(error)}), and does not answer "
                f"({first_line(second)}). Nothing is half-done: `{PREFIX} twophase recover` finishes it one way or the "
                "other once the database is back. Look for the effect before you run the work again",
                node=log,
                failures=[error],
            ) from error


# Recovery -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InDoubtTransaction:
    """A two-phase commit that is prepared somewhere and not finished."""

    id: UUID
    prepared: Mapping[str, str]
    """Name of the prepared transaction by database."""
    age: timedelta
    """Time since the oldest PREPARE."""
    outcome: Outcome | None
    """The decision in the log; None: there is none."""
    in_flight: bool = False
    """The process that began it still holds its lock."""

    @property
    def state(self) -> str:
        """State, and what `recover` would do about it."""
        if self.outcome:
            return f"decided: {self.outcome}"
        return "in flight: left alone" if self.in_flight else "abandoned: to be rolled back"


@dataclass(frozen=True)
class Recovery:
    """Result of one run of `recover`."""

    committed: list[UUID] = field(default_factory=list)
    rolled_back: list[UUID] = field(default_factory=list)
    in_flight: list[UUID] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)
    """Reason for each database that did not answer; the next run finishes what it has prepared."""


def in_doubt_transactions(databases: "Databases", *, prefix: str = PREFIX) -> list[InDoubtTransaction]:
    """Return the two-phase commits that are prepared somewhere, the oldest first.

    Raises:
        NodeUnavailable: a database does not answer.
    """
    found, unreachable = _in_doubt(databases, prefix)
    if unreachable:
        raise NodeUnavailable("; ".join(f"{name}: {reason}" for name, reason in unreachable.items()))
    return found


def recover(databases: "Databases", *, on_step: OnStep = ignore_step, prefix: str = PREFIX) -> Recovery:
    """Finish abandoned commits: commit what was decided, roll back the rest, and leave alone what is in flight.

    Safe at any time, several times at once, and again after it was killed.

    Args:
        databases: the databases of the application.
        on_step: callback for each step.
        prefix: as for `TwoPhase`.

    Raises:
        NodeUnavailable: the decision log does not answer.
    """
    log = databases.log
    decided = log.read(lambda session: set(session.scalars(select(decision.c.id))))
    found, unreachable = _in_doubt(databases, prefix)
    result = Recovery(unreachable=unreachable)
    on_step("looked")
    for one in found:
        outcome = one.outcome
        if outcome is None:
            if one.in_flight:
                result.in_flight.append(one.id)
                continue
            outcome = settle(log, one.id)
            decided.add(one.id)
            on_step(f"decided {outcome}")
        finished = result.committed if outcome == "commit" else result.rolled_back
        for name, gid in one.prepared.items():
            try:
                was_there = _finish(databases.server(name), gid, outcome, timeout=FINISH_TIMEOUT)
            except SQLAlchemyError as error:
                unreachable[name] = first_line(error)
                continue
            if was_there and one.id not in finished:
                finished.append(one.id)
            on_step(f"{outcome} {name}")
    if not unreachable:
        # Decided before the search for prepared transactions, of which none is left: every database has completed them.
        if decided:
            completed = delete(decision).where(decision.c.id.in_(decided))
            log.using(idempotent=True).run(PinnedSession.execute, completed)
        on_step("forgotten")
    return result


def settle(log: "NamedDatabase", id: UUID) -> Outcome:
    """Return the decision on an abandoned commit: the one in the log, or `rollback`, which is then inserted.

    Waits for a decision whose transaction is about to commit.
    """

    def write_once(session: PinnedSession) -> Any:
        session.execute(insert(decision).values(id=id, outcome="rollback").on_conflict_do_nothing())
        return session.scalar(select(decision.c.outcome).where(decision.c.id == id))

    while True:
        # None: another recovery completed and deleted it between the two statements.
        outcome: Outcome | None = log.using(idempotent=True).run(write_once)
        if outcome:
            return outcome


def name_of(id: UUID, number: int, prefix: str = PREFIX) -> str:
    """Return the name of the prepared transaction of the database with that number; see `check_prefix`."""
    return f"{check_prefix(prefix)}:{id}:{number}"


def check_prefix(prefix: str) -> str:
    """Return a prefix of names, which stand in statements as they are; raise MisuseError if it is none."""
    if not _PREFIX.fullmatch(prefix):
        raise MisuseError(
            f"{prefix!r} is no prefix of prepared transactions: use letters, digits, '_', '-' and '.', at most 100"
        )
    return prefix


_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,100}", re.ASCII)


_NAME = re.compile(r":([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):[0-9]+")

_PREPARED = text(
    "SELECT gid, clock_timestamp() - prepared FROM pg_prepared_xacts "
    "WHERE database = current_database() AND owner = current_user AND starts_with(gid, :prefix)"
)


def _lock_of(id: UUID) -> int:
    """Return the advisory lock of a two-phase commit: the first half of its id, as PostgreSQL's signed bigint."""
    return int.from_bytes(id.bytes[:8], signed=True)


def _in_doubt(databases: "Databases", prefix: str) -> tuple[list[InDoubtTransaction], dict[str, str]]:
    """Return what is prepared on the databases that answer, and the reasons of those that do not."""
    check_prefix(prefix)
    names: dict[UUID, dict[str, str]] = {}
    ages: dict[UUID, timedelta] = {}
    unreachable: dict[str, str] = {}
    for name, server in databases.servers.items():
        try:
            rows = server.read(lambda session: session.execute(_PREPARED, {"prefix": f"{prefix}:"}).all())
        except (DBAPIError, NodeUnavailable, RetriesExhausted) as error:
            unreachable[name] = first_line(error)
            continue
        for gid, age in rows:
            if match := _NAME.fullmatch(gid.removeprefix(prefix)):
                id = UUID(match[1])
                names.setdefault(id, {})[name] = gid
                ages[id] = max(age, ages.get(id, timedelta()))

    def judge(session: PinnedSession) -> list[InDoubtTransaction]:
        found = []
        for id in sorted(names, key=lambda id: ages[id], reverse=True):
            # The lock first, the log second: a process that no longer holds the lock has decided, or never will.
            free = session.scalar(text("SELECT pg_try_advisory_xact_lock_shared(:lock)"), {"lock": _lock_of(id)})
            outcome = session.scalar(select(decision.c.outcome).where(decision.c.id == id))
            found.append(InDoubtTransaction(id, names[id], ages[id], outcome, in_flight=not free))
        return found

    return (databases.log.read(judge) if names else []), unreachable


def _finish(server: "NamedDatabase", gid: str, outcome: Outcome, *, timeout: float) -> bool:
    """Commit or roll back a prepared transaction, for up to `timeout` seconds; return False if it was finished."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            with server.engine_for().connect() as connection:
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.exec_driver_sql(f"{outcome.upper()} PREPARED '{gid}'")
        except DBAPIError as error:
            state = sqlstate_of(error)
            if state == "42704":  # undefined_object: it is finished
                return False
            # 55000 (object_not_in_prerequisite_state): another session is finishing it.
            passing = state == "55000" or classify(error, connecting=True) is not Verdict.FATAL
            if not passing or time.monotonic() > deadline:
                raise
            server.concurrency.sleep(0.05)
        else:
            return True
