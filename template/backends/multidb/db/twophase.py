"""Several PostgreSQL databases changed together: all of it happens or none of it, whoever dies and when.

    databases.two_phase("ledger", "orders").run(sales.pay, order_id=…)     # pay(ledger, orders, *, order_id): a session each

How it goes. One database keeps the log of decisions; its transaction begins first, takes a lock that names this two-phase commit, and
ends last. The others are prepared (PREPARE TRANSACTION, as `{{ package_name }}:<id>:<n>`), which is their promise that a commit cannot fail any
more. Then the log's transaction adds one row, the decision, and commits: that commit is the moment at which everything has happened.
The work on the log's own database is part of it, so two databases cost one commit more than two transactions, not three. Last,
the others are told (COMMIT PREPARED).

Why nothing is half-done. A row of the log is written once, and never changed. Who finds a prepared transaction without a decision,
and its lock free, writes the decision `rollback` in its place before rolling back: the one who meant to commit then cannot. While the
lock is held somebody is still at work, and `recover` leaves it alone. A commit of the decision that is not answered is settled in the
same way.

What it costs: a prepared transaction keeps its locks, and keeps rows from being vacuumed, until somebody finishes it. Run `{{ package_name }} twophase
recover` when a process that does this may have died, and at regular intervals; it can do no harm.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeAlias, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import Column, Connection, DateTime, MetaData, String, Table, Uuid, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from . import backend
from .database import Database, inside_work, refuse_nesting
from .errors import AmbiguousCommit, DistributedSQLError, MisuseError, NodeUnavailable
from .retry import Attempts, Verdict, classify, first_line, sqlstate_of
from .routing import Route
from .session import PinnedSession

logger = logging.getLogger(__name__)

T = TypeVar("T")

Outcome: TypeAlias = Literal["commit", "rollback"]

OnStep: TypeAlias = Callable[[str], None]

PREFIX = "{{ package_name }}"
"""Of every prepared transaction of this application; what others prepared on the same server is left alone."""

PATIENCE = 2.0
"""Seconds that a database gets to carry out a decision before it is left to `recover`. Arbitrary."""

MOST_FORGOTTEN = 100
"""Decisions that one transaction deletes. Arbitrary: after a quiet hour there is one."""

metadata = MetaData()

decision = Table(
    "twophase_decision",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("outcome", String(8), nullable=False),
    Column("decided_at", DateTime(timezone=True), server_default=func.now(), nullable=False),
)
"""What was decided, by id. A row is added once, never changed, and some time after everybody has carried it out it is deleted."""


class CommitPending(DistributedSQLError):
    """It is committed, but not everywhere yet: a database went away after the decision.

    Do not run it again. `recover` finishes it once the database is back.
    """


def ignore(_step: str) -> None:
    """For those who need not know how far it has come."""


@dataclass(frozen=True)
class TwoPhase:
    """Units of work on several databases that are committed together; made by `Databases.two_phase`."""

    databases: Mapping[str, Database]
    """Those that take part, in the order in which the work gets its sessions. Always use the same: no server sees a deadlock
    that goes through two of them, and only `lock_timeout` ends it."""
    log: Database
    log_name: str
    finished: set[UUID]
    """What everybody has carried out: the next decision takes it out of the log, which spares a transaction."""
    on_step: OnStep = ignore
    prefix: str = PREFIX
    """Of the names of prepared transactions. Another one is another application: neither recovers what is the other's."""

    def run(self, work: Callable[..., T], /, **arguments: Any) -> T:
        """Run `work(session, session, …)` with a session for each database, as one; again while that is safe and useful.

        Raises:
            AmbiguousCommit: the answer to the decision was lost and the log does not answer either. `recover` settles it.
            CommitPending: it is committed, and a database still has to be told.
            RetriesExhausted: each attempt failed for a reason that may pass.
            NodeUnavailable: a database did not answer, and nothing happened.
        """
        refuse_nesting()
        attempts = Attempts(self.log.retry, Route(), time.monotonic(), False, self.log.counters)
        while True:
            try:
                with self.session() as units:
                    token = inside_work.set(True)
                    try:
                        return work(*units, **arguments)
                    finally:
                        inside_work.reset(token)
            except (DBAPIError, NodeUnavailable) as error:
                where = getattr(error, "node", None) or " and ".join(self.databases)
                delay = attempts.after(error, node=where, committing=False, now=time.monotonic())
            time.sleep(delay)

    @contextmanager
    def session(self) -> Iterator[tuple[PinnedSession, ...]]:
        """A session for each database: committed together when the block ends, rolled back when it raises, never retried."""
        attempt = _Attempt(self)
        try:
            attempt.begin()
            self.on_step("begun")
            yield tuple(attempt.units[name] for name in self.databases)
            self.on_step("worked")
            attempt.prepare()
            attempt.decide()
            attempt.complete()
        except BaseException:
            attempt.undo()
            raise
        finally:
            attempt.end()


class _Attempt:
    """One try: its sessions, and what has been promised so far."""

    def __init__(self, plan: TwoPhase) -> None:
        self.plan = plan
        self.id = uuid4()
        self.units: dict[str, PinnedSession] = {}
        self.prepared: dict[str, str] = {}
        """The name that was given to the transaction of each database, from the moment at which it may be prepared."""
        self.forgetting: list[UUID] = []
        """Decisions of others that everybody has carried out, which this one deletes from the log."""
        self.decided = False
        """Whether the decision may be in the log; from then on nothing here may roll back."""

    @property
    def log(self) -> PinnedSession:
        return self.units[self.plan.log_name]

    def begin(self) -> None:
        """Open the sessions, the log's first: its lock says that somebody is at work on what is prepared later."""
        databases = {self.plan.log_name: self.plan.log, **self.plan.databases}
        for name, database in databases.items():
            self.units[name] = database._begin(Route(node=database.nodes[0]), None)
            if name == self.plan.log_name:
                self.log.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock_of(self.id)})

    def prepare(self) -> None:
        """Get the promise of everybody but the log. What a database refuses now, it says in its own words."""
        others = [name for name in self.units if name != self.plan.log_name]
        for unit in self.units.values():
            unit.flush()
        for number, name in enumerate(others, start=1):
            unit = self.units[name]
            if backend.is_aborted(unit.bind):
                # PostgreSQL answers PREPARE in an aborted transaction with a rollback and no error.
                raise MisuseError(
                    f"a statement failed on {name} and the unit of work went on: its changes would be lost without a word. "
                    "Let the error out, or contain the statement in session.begin_nested()",
                    node=name,
                )
            self.prepared[name] = name_of(self.id, number, self.plan.prefix)
            try:
                unit.bind.exec_driver_sql(f"PREPARE TRANSACTION '{self.prepared[name]}'")
            except DBAPIError as error:
                if not error.connection_invalidated:
                    # It voted no and has rolled back: there is nothing left to undo.
                    del self.prepared[name]
                raise
            # What is prepared belongs to no session any more; the connection is needed again to finish it.
            unit.end()
            self.plan.on_step(f"prepared {name}")

    def decide(self) -> None:
        """Write the decision and commit it, with the work on the log's own database."""
        forgettable = self._claim_finished()
        row = {"id": self.id, "outcome": "commit"}
        write = insert(decision).values(row)
        if forgettable:
            write = write.add_cte(delete(decision).where(decision.c.id.in_(forgettable)).cte("forgotten"))
        try:
            self.log.execute(write)
        except IntegrityError as error:
            raise NodeUnavailable(
                f"{self.plan.log_name} was away, and `recover` has rolled this back meanwhile", node=self.plan.log_name
            ) from error
        self.plan.on_step("deciding")
        try:
            self.log.finish()
        except DBAPIError as error:
            if classify(error, committing=self.log.committing) is not Verdict.AMBIGUOUS:
                raise
            self.decided = True
            self.decided = self._settle(error) == "commit"
            if not self.decided:
                raise
        except BaseException:
            # Somebody wanted to stop while COMMIT was on its way.
            self.decided = self.log.committing
            raise
        self.decided = True
        self.forgetting.clear()
        self.plan.on_step("decided")

    def complete(self) -> None:
        """Tell everybody."""
        pending = []
        for name, gid in self.prepared.items():
            try:
                _finish(self.plan.databases[name], gid, "commit", patience=PATIENCE)
            except SQLAlchemyError as error:
                logger.error("%s is committed, but %s does not know yet: %s", gid, name, first_line(error))
                pending.append((name, error))
            else:
                self.plan.on_step(f"committed {name}")
        if pending:
            names = ", ".join(name for name, _ in pending)
            raise CommitPending(
                f"it is committed, but {names} could not be told ({first_line(pending[0][1])}) and shows the state before. "
                f"Do not run it again: `{PREFIX} twophase recover` finishes it once {names} is back",
                node=pending[0][0],
                failures=[error for _, error in pending],
            ) from pending[0][1]
        self.plan.finished.add(self.id)

    def undo(self) -> None:
        """Roll back what was prepared, unless the decision may have been made. What cannot be told is left to `recover`."""
        if self.decided:
            return
        for name, gid in self.prepared.items():
            try:
                _finish(self.plan.databases[name], gid, "rollback", patience=0)
            except SQLAlchemyError as error:
                logger.warning("%s on %s is left for `recover` to roll back: %s", gid, name, first_line(error))

    def end(self) -> None:
        """Give the connections back, that of the log last: with it the lock goes."""
        self.plan.finished.update(self.forgetting)
        for unit in reversed(self.units.values()):
            unit.end()

    def _claim_finished(self) -> list[UUID]:
        """Decisions that everybody has carried out, for this transaction to delete: each by one only, so that none waits."""
        with suppress(KeyError):
            while len(self.forgetting) < MOST_FORGOTTEN:
                self.forgetting.append(self.plan.finished.pop())
        return self.forgetting

    def _settle(self, error: DBAPIError) -> Outcome:
        try:
            return decide(self.plan.log, self.id)
        except (DBAPIError, DistributedSQLError) as second:
            raise AmbiguousCommit(
                f"{self.plan.log_name} did not say whether it committed ({first_line(error)}), and does not answer "
                f"({first_line(second)}). Nothing is half-done: `{PREFIX} twophase recover` finishes it one way or the other "
                "once it is back. Look for the effect before you run it again",
                node=self.plan.log_name,
                failures=[error],
            ) from error


# What is outstanding ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outstanding:
    """A two-phase commit that somebody has not finished."""

    id: UUID
    prepared: Mapping[str, str]
    """The name of the prepared transaction, by database."""
    age: timedelta
    """Of the oldest of them."""
    outcome: Outcome | None
    """What the log says; None: nothing."""
    in_flight: bool = False
    """Whether the one who began it still holds its lock."""

    @property
    def state(self) -> str:
        """What `recover` would do about it."""
        if self.outcome:
            return f"decided: {self.outcome}"
        return "in flight: left alone" if self.in_flight else "abandoned: to be rolled back"


@dataclass(frozen=True)
class Recovery:
    """What one run of `recover` did."""

    committed: list[UUID] = field(default_factory=list)
    rolled_back: list[UUID] = field(default_factory=list)
    in_flight: list[UUID] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)
    """Databases that did not answer, each with its reason; what they have prepared is for the next run."""


def outstanding(databases: Mapping[str, Database], log: Database, *, prefix: str = PREFIX) -> list[Outstanding]:
    """Every two-phase commit of this application that is prepared somewhere, oldest first.

    Raises:
        NodeUnavailable: a database does not answer.
    """
    found, unreachable = _prepared(databases, log, prefix)
    if unreachable:
        raise NodeUnavailable("; ".join(f"{name}: {reason}" for name, reason in unreachable.items()))
    return found


def recover(
    databases: Mapping[str, Database], log: Database, *, on_step: OnStep = ignore, prefix: str = PREFIX
) -> Recovery:
    """Finish what was begun and abandoned: commit what the log says was decided, roll back the rest, leave alone what is in flight.

    Can be run at any time, by several at once, and again after it was killed.

    Raises:
        NodeUnavailable: the log does not answer; nothing can be done without it.
    """
    known = _known(log)
    found, unreachable = _prepared(databases, log, prefix)
    result = Recovery(unreachable=unreachable)
    on_step("looked")
    for one in found:
        outcome = one.outcome
        if outcome is None:
            if one.in_flight:
                result.in_flight.append(one.id)
                continue
            outcome = decide(log, one.id)
            known.add(one.id)
            on_step(f"decided {outcome}")
        done = result.committed if outcome == "commit" else result.rolled_back
        for name, gid in one.prepared.items():
            try:
                ours = _finish(databases[name], gid, outcome, patience=PATIENCE)
            except SQLAlchemyError as error:
                unreachable[name] = first_line(error)
                continue
            if ours and one.id not in done:
                done.append(one.id)
            on_step(f"{outcome} {name}")
    if not unreachable:
        # Decided before anybody looked for prepared transactions, and by now nobody has one: all have carried it out.
        _forget(log, *known)
        on_step("forgotten")
    return result


def decide(log: Database, id: UUID) -> Outcome:
    """The decision on a two-phase commit that nobody is at work on: the one in the log, or `rollback`, which then is in the log.

    Waits for a decision that is just being committed.
    """

    def write_once(session: PinnedSession) -> Outcome | None:
        session.execute(insert(decision).values(id=id, outcome="rollback").on_conflict_do_nothing())
        outcome: Outcome | None = session.scalar(select(decision.c.outcome).where(decision.c.id == id))
        return outcome

    while True:
        # None: everybody had carried it out, and it was forgotten between the two statements.
        if outcome := log.using(idempotent=True).run(write_once):
            return outcome


def name_of(id: UUID, number: int, prefix: str = PREFIX) -> str:
    """What the transaction of the database with that number is called while it is prepared."""
    return f"{prefix}:{id}:{number}"


_NAME = re.compile(r":([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):[0-9]+")


def lock_of(id: UUID) -> int:
    """The advisory lock of a two-phase commit: the first half of its id, as the signed number that PostgreSQL takes."""
    return int.from_bytes(id.bytes[:8], signed=True)


def _known(log: Database) -> set[UUID]:
    def ids(session: PinnedSession) -> set[UUID]:
        return set(session.scalars(select(decision.c.id)))

    return log.read(ids)


def _forget(log: Database, *ids: UUID) -> None:
    if ids:
        log.using(idempotent=True).run(
            lambda session: session.execute(delete(decision).where(decision.c.id.in_(ids)))
        )


def _prepared(
    databases: Mapping[str, Database], log: Database, prefix: str
) -> tuple[list[Outstanding], dict[str, str]]:
    """What is prepared on the databases that answer, and why the others do not."""
    names: dict[UUID, dict[str, str]] = {}
    ages: dict[UUID, timedelta] = {}
    unreachable: dict[str, str] = {}
    for name, database in databases.items():
        try:
            rows = database.read(_list_prepared, prefix)
        except (DBAPIError, NodeUnavailable) as error:
            unreachable[name] = first_line(error)
            continue
        for gid, age in rows:
            if match := _NAME.fullmatch(gid.removeprefix(prefix)):
                id = UUID(match[1])
                names.setdefault(id, {})[name] = gid
                ages[id] = max(age, ages.get(id, timedelta()))

    def judge(session: PinnedSession) -> list[Outstanding]:
        found = []
        for id in sorted(names, key=lambda id: ages[id], reverse=True):
            # Lock first, log second: who holds no lock any more has decided, or never will.
            free = session.scalar(text("SELECT pg_try_advisory_xact_lock_shared(:lock)"), {"lock": lock_of(id)})
            outcome = session.scalar(select(decision.c.outcome).where(decision.c.id == id))
            found.append(Outstanding(id, names[id], ages[id], outcome, in_flight=not free))
        return found

    return (log.read(judge) if names else []), unreachable


def _list_prepared(session: PinnedSession, prefix: str) -> list[tuple[str, timedelta]]:
    rows = session.execute(
        text(
            "SELECT gid, clock_timestamp() - prepared FROM pg_prepared_xacts "
            "WHERE database = current_database() AND owner = current_user AND starts_with(gid, :prefix)"
        ),
        {"prefix": f"{prefix}:"},
    )
    return [(gid, age) for gid, age in rows]


def _finish(database: Database, gid: str, outcome: Outcome, *, patience: float) -> bool:
    """Commit or roll back one prepared transaction; whether it was still there, for somebody else may have been faster."""
    deadline = time.monotonic() + patience
    while True:
        try:
            with _autocommit(database) as connection:
                connection.exec_driver_sql(f"{outcome.upper()} PREPARED '{gid}'")
        except DBAPIError as error:
            state = sqlstate_of(error)
            if state == "42704":  # undefined_object: it is finished already
                return False
            # 55000 while somebody else is about to finish it.
            passing = state == "55000" or classify(error, connecting=True) is not Verdict.FATAL
            if not passing or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return True


@contextmanager
def _autocommit(database: Database) -> Iterator[Connection]:
    engine = database.engine(database.nodes[0])
    with engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")
