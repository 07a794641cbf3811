"""Probes of isolation: schedules of transactions that show what one transaction can see of others, and lose to them.

Each probe works on lists of integers, because an append that is missing or out of order tells which transaction was
lost or seen too late: https://arxiv.org/abs/2003.10554. A pack states the outcome of each in a table of lines.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar

from sqlalchemy import BigInteger, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, mapped_column

from ...db import Database, NodeUnavailable, PinnedSession, RetriesExhausted
from ...db.backend import Backend
from ...db.retry import sqlstate_of
from .check import Check, CheckContext, CheckResult, failed, passed, skipped
from .checks import ALL
from .history import History, Step
from .scratch import Base

REFUSED = Backend.retryable | {"55P03"}
"""SQLSTATEs with which a server refuses a race; lock_not_available stands for the wait for a lock."""


LEAST_TRIES = 3
"""Tries below which nothing that was not seen is called ruled out. Arbitrary."""


class IntegerList(Base):
    """A list of integers in one row, each followed by a blank."""

    __tablename__ = "integer_list"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    items: Mapped[str] = mapped_column(default="")


class Expected(StrEnum):
    """Outcome that a line of the table states."""

    POSSIBLE = "possible"
    RULED_OUT = "ruled out"


@dataclass
class Observation:
    """Outcome of a probe."""

    tries: int = 0
    """Tries in which the transactions overlapped in the way that the anomaly needs."""
    seen: int = 0
    """Tries in which the anomaly was seen."""
    refused: int = 0
    """Transactions that the server refused."""
    example: str = ""
    """The first time that the anomaly was seen."""

    def add(self, seen: bool | None, example: object = "") -> None:
        """Count a try; None: the transactions did not overlap."""
        self.tries += seen is not None
        self.seen += seen is True
        if seen and not self.example:
            self.example = str(example)


@dataclass(kw_only=True)
class Probe(ABC):
    """One anomaly, looked for in one place."""

    anomaly: ClassVar[str]
    where: str
    """Description of the place and of the options, for the table."""

    @abstractmethod
    def run(self, context: CheckContext, history: History) -> Observation:
        """Try to see the anomaly."""


@dataclass(frozen=True)
class Line:
    """A line of the table: what this cluster does."""

    probe: Probe
    expected: Expected
    note: str
    """Reason why the anomaly is ruled out, or the way out where it is possible."""

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Return the cells of the line."""
        return self.probe.anomaly, self.probe.where, str(self.expected), self.note

    def judge(self, found: Observation) -> CheckResult:
        """Compare what was observed with the line."""
        evidence = {"tries": found.tries, "seen": found.seen, "refused": found.refused, "example": found.example}
        if not found.tries:
            return skipped("not shown: the transactions did not overlap", evidence)
        if found.seen:
            summary = f"seen in {found.seen} of {found.tries} tries: {found.example}"
            if self.expected is Expected.RULED_OUT:
                return failed(f"{summary}; it should be ruled out: {self.note}", evidence)
            return passed(f"{summary}; {self.note}", evidence)
        summary = f"not seen in {found.tries} tries"
        if self.expected is Expected.POSSIBLE:
            return skipped(f"not shown: possible, but {summary}", evidence)
        if found.tries < LEAST_TRIES:
            return skipped(f"not shown: {summary}, which are too few", evidence)
        refused = f", {found.refused} transactions refused" if found.refused else ""
        return passed(f"{summary}{refused}; ruled out: {self.note}", evidence)


class LineCheck(Check):
    """Base of the checks that show a line each."""

    requires = (
        *("EveryNodeAnswers", "EveryLinkReplicates", "ExactlyOneNodeWrites", "EveryReaderStreams"),
        "ServersCanPrepare",
    )
    timeout = 60.0
    line: ClassVar[Line]
    history: ClassVar[History]

    def run(self, context: CheckContext) -> CheckResult:
        """Run the probe of the line."""
        return self.line.judge(self.line.probe.run(context, self.history))


def checks_of(table: Iterable[Line], history: History, base: type[LineCheck] = LineCheck) -> tuple[type[Check], ...]:
    """Return a check for each line, after those that all of them require; what they do is added to `history`."""
    shown = (
        type(
            f"{type(line.probe).__name__}{number}",
            (base,),
            {"__doc__": f"{line.probe.anomaly}, {line.probe.where}: {line.expected}", "line": line, "history": history},
        )
        for number, line in enumerate(table, 1)
    )
    return (*(check for check in ALL if check.__name__ in base.requires), *shown)


# Transactions


class Transaction:
    """A transaction of a schedule: begun on a node, done step by step, recorded."""

    def __init__(self, history: History, probe: str, steps: Sequence[Step]) -> None:
        self.steps = steps
        self.is_committed = False
        self.sqlstate = ""
        """SQLSTATE with which the server refused it."""
        self._todo = iter(steps)
        self._process = next(history.processes)
        self._history, self._probe = history, probe
        self._session: PinnedSession | None = None

    def begin(self, database: Database) -> None:
        """Open the session; the server begins the transaction with the first step."""
        self._history.record("invoke", self._process, self._probe, self.steps)
        self._session = database.open_session(database.route)

    def advance(self) -> None:
        """Do the next step, unless the transaction was refused."""
        step = next(self._todo)
        with self._refusable() as session:
            if session:
                _do(session, step, self.steps)

    def commit(self) -> None:
        """Commit, unless the transaction was refused."""
        with self._refusable() as session:
            if session:
                session.finish()
                self.is_committed = True
                self._history.record("ok", self._process, self._probe, self.steps)

    def end(self) -> None:
        """Give the connection back."""
        if self._session:
            self._session.release()
            self._session = None
            if not self.is_committed:
                planned = [replace(step, read=None) for step in self.steps]
                self._history.record("fail" if self.sqlstate else "info", self._process, self._probe, planned)

    @contextmanager
    def _refusable(self) -> Iterator[PinnedSession | None]:
        try:
            yield self._session
        except DBAPIError as error:
            if sqlstate_of(error) not in REFUSED:
                raise
            self.sqlstate = sqlstate_of(error) or ""
            self.end()

    def appended(self) -> set[int]:
        """Return the numbers that it appends."""
        return {step.value for step in self.steps if step.value is not None}

    def read(self, key: int) -> list[int]:
        """Return what it read of a list; nothing if it was refused before."""
        return next((step.read for step in self.steps if step.key == key and step.read is not None), [])

    def describe(self, names: Mapping[int, str]) -> str:
        """Return its steps and its outcome, with the names of the lists by key."""
        steps = (f"{names[one.key]}{'+' if one.value else '='}{one.value or one.read}" for one in self.steps)
        return f"{' '.join(steps)} {'committed' if self.is_committed else self.sqlstate}"


def _do(session: PinnedSession, step: Step, steps: Sequence[Step]) -> None:
    """Do a step. An append to a list that the transaction has read writes that list, as an application would."""
    row = IntegerList.id == step.key
    if step.value is None:
        query = select(IntegerList.items).where(row)
        if step.lock:
            query = query.with_for_update(key_share=True, nowait=True)
        step.read = _numbers(session.scalar(query))
        return
    before = next((one.read for one in steps if one.key == step.key and one.read is not None), None)
    item = f"{step.value} "
    items = IntegerList.items + item if before is None else "".join(f"{one} " for one in before) + item
    change = update(IntegerList).where(row).values(items=items)
    session.execute(change, execution_options={"synchronize_session": False})


def _numbers(items: str | None) -> list[int]:
    return [int(item) for item in (items or "").split()]


def read_lists(session: PinnedSession, keys: Sequence[int]) -> tuple[str, list[list[int]]]:
    """Return the session's node and the lists, all in one snapshot."""
    query = select(IntegerList.id, IntegerList.items).where(IntegerList.id.in_(keys))
    found = {key: _numbers(items) for key, items in session.execute(query)}
    return session.node, [found.get(key, []) for key in keys]


def append(session: PinnedSession, key: int, value: int) -> str:
    """Append a number to a list; return the session's node."""
    _do(session, Step(key, value), ())
    return session.node


class Process:
    """A client that does one transaction after the other through the Database, with its routing and retries."""

    def __init__(self, history: History, probe: str) -> None:
        self._history, self._probe = history, probe
        self._number = next(history.processes)

    def read(self, database: Database, *keys: int) -> tuple[str, list[list[int]]]:
        """Read lists in one snapshot; return the node that served them, and the lists."""
        steps = [Step(key) for key in keys]
        with self.recorded(steps):
            node, lists = database.read(read_lists, keys)
            for step, found in zip(steps, lists, strict=True):
                step.read = found
        return node, lists

    def append(self, database: Database, key: int, value: int) -> str:
        """Append a number to a list; return the node that did it."""
        with self.recorded([Step(key, value)]):
            return database.run(append, key, value)

    @contextmanager
    def recorded(self, steps: list[Step]) -> Iterator[None]:
        """Record the transaction that the block does."""
        self._history.record("invoke", self._number, self._probe, steps)
        try:
            yield
        except BaseException as error:
            is_undone = isinstance(error, NodeUnavailable | RetriesExhausted)
            self._history.record("fail" if is_undone else "info", self._number, self._probe, steps)
            self._number = next(self._history.processes)
            raise
        self._history.record("ok", self._number, self._probe, steps)


def make_lists(context: CheckContext, history: History, count: int, node: str | None = None) -> list[int]:
    """Make empty lists, and wait until every node has them; return their keys."""
    keys = [next(history.keys) for _ in range(count)]
    rows = [{"id": key, "items": ""} for key in keys]
    context.scratch.database.using(node=node).run(lambda session: session.execute(insert(IntegerList), rows))
    catch_up(context)
    return keys


def catch_up(context: CheckContext) -> None:
    """Wait until every node has what was written."""
    with context.topology() as topology:
        topology.wait_for_catchup(timeout=10)
