"""The probes that several kinds of cluster have: schedules of two transactions, and clients that read and write."""

import random
import re
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, TypeAlias

from ...db import Database
from ...db.backend import IsolationLevel, RouteOptions
from .check import CheckContext
from .history import History, Step
from .isolation import LEAST_TRIES, Observation, Probe, Process, Transaction, catch_up, make_lists

Lists: TypeAlias = dict[str, list[int]]
"""Lists by the letter that a schedule has for them."""

JITTER = 0.003
"""Longest pause in seconds between two events, so that a change arrives on other nodes at different moments."""


@dataclass(kw_only=True)
class Schedule(Probe):
    """Two transactions whose events come in a fixed order, written as in the literature.

    `r1(x)` is a read of transaction 1, `w1(x)` an append, `c1` its commit.
    """

    events: ClassVar[str]
    level: IsolationLevel | None = None
    """Isolation level; None: the default."""
    nodes: int = 1
    """2: each transaction is on a node of its own."""
    lock: bool = False
    """Each read locks its row, without waiting."""
    tries: int = 20

    def run(self, context: CheckContext, history: History) -> Observation:
        """Run the schedule with lists of its own for each try; read the lists everywhere at the end."""
        with context.topology() as topology:
            writers = topology.writers()
            places = [writers[number % len(writers)] for number in range(self.nodes)]
            receivers = topology.receivers(places[0]) if self.nodes > 1 else places
        rng = random.Random(context.seed)  # noqa: S311
        events = re.findall(r"([rwc])(\d)(?:\((\w)\))?", self.events)
        letters = sorted({letter for _, _, letter in events if letter})
        keys = iter(make_lists(context, history, self.tries * len(letters), places[0]))
        played = []
        for _ in range(self.tries):
            lists = dict(zip(letters, keys, strict=False))
            played.append((lists, self._play(context, history, rng, events, lists, places)))
        if self.nodes > 1:
            catch_up(context)
        found = Observation()
        for lists, transactions in played:
            final = []
            for node in receivers:
                database = context.scratch.database.using(node=node)
                values = Process(history, self.anomaly).read(database, *lists.values())[1]
                final.append(dict(zip(lists, values, strict=True)))
            found.refused += sum(bool(one.sqlstate) for one in transactions)
            letter_of = {key: letter for letter, key in lists.items()}
            did = [f"T{number} {one.describe(letter_of)}" for number, one in enumerate(transactions, 1)]
            has = [
                f"{node} has {', '.join(f'{letter}={values}' for letter, values in lists.items())}"
                for node, lists in zip(receivers, final, strict=True)
            ]
            found.add(self.seen(lists, transactions, final), "; ".join(did + has))
        return found

    def _play(
        self,
        context: CheckContext,
        history: History,
        rng: random.Random,
        events: list[tuple[str, str, str]],
        lists: dict[str, int],
        places: list[str],
    ) -> list[Transaction]:
        transactions = []
        with ExitStack() as ended:
            for number, node in (("1", places[0]), ("2", places[-1])):
                steps = [
                    Step(lists[letter], int(number) if kind == "w" else None, lock=self.lock and kind == "r")
                    for kind, whose, letter in events
                    if whose == number and letter
                ]
                transactions.append(Transaction(history, self.anomaly, steps))
                ended.callback(transactions[-1].end)
                transactions[-1].begin(context.scratch.database.using(node=node, isolation_level=self.level))
            for kind, number, _ in events:
                if self.nodes > 1:
                    time.sleep(rng.uniform(0, JITTER))
                transaction = transactions[int(number) - 1]
                transaction.commit() if kind == "c" else transaction.advance()
        return transactions

    @abstractmethod
    def seen(self, keys: dict[str, int], transactions: Sequence[Transaction], final: Sequence[Lists]) -> bool | None:
        """Return whether a try showed the anomaly; None: the transactions did not overlap as it needs."""


def _overlapped(transactions: Sequence[Transaction]) -> bool:
    """Return True if neither transaction read what the other one appended."""
    one, two = transactions
    return not any(
        set(step.read or ()) & other.appended() for this, other in ((one, two), (two, one)) for step in this.steps
    )


class LostUpdate(Schedule):
    """Two transactions read a list and write it, and the second does not have what the first one appended."""

    anomaly = "Lost update"
    events = "r1(x) r2(x) w1(x) c1 w2(x) c2"

    def seen(self, keys: dict[str, int], transactions: Sequence[Transaction], final: Sequence[Lists]) -> bool | None:
        """Look for what was acknowledged on every node."""
        if not _overlapped(transactions):
            return None
        acknowledged = {value for one in transactions if one.is_committed for value in one.appended()}
        return any(not acknowledged <= set(lists["x"]) for lists in final)


class ConflictingUpdates(LostUpdate):
    """The same where no lock keeps the second transaction from writing before the first one commits."""

    events = "r1(x) r2(x) w1(x) w2(x) c1 c2"


class WriteSkew(Schedule):
    """Two transactions read two lists and write one each: neither sees what the other one changed."""

    anomaly = "Write skew"
    events = "r1(x) r1(y) r2(x) r2(y) w1(x) w2(y) c1 c2"

    def seen(self, keys: dict[str, int], transactions: Sequence[Transaction], final: Sequence[Lists]) -> bool | None:
        """Look for two commits."""
        return all(one.is_committed for one in transactions) if _overlapped(transactions) else None


class ReadSkew(Schedule):
    """A transaction sees a half of what another one wrote."""

    anomaly = "Read skew"
    events = "r1(x) w2(x) w2(y) c2 r1(y) c1"

    def seen(self, keys: dict[str, int], transactions: Sequence[Transaction], final: Sequence[Lists]) -> bool | None:
        """Look for the one append without the other."""
        reader, writer = transactions
        if not writer.is_committed:
            return None
        first, second = (bool(reader.read(keys[letter])) for letter in ("x", "y"))
        return None if first else second


# Clients


@dataclass(kw_only=True)
class Clients(Probe):
    """Base of the probes in which clients read while others write, in rounds, until the anomaly is seen."""

    seconds: float = 5.0
    """Time after which the probe gives up; three times as long if it has too few tries by then."""
    LISTS: ClassVar[int] = 1
    APPENDS: ClassVar[int] = 20
    """Appends to each list in a round."""

    def run(self, context: CheckContext, history: History) -> Observation:
        """Repeat rounds with lists of their own."""
        found = Observation()
        started = time.monotonic()
        keys: list[int] = []
        # On a slow machine a round can take as long as all of them should.
        while not found.seen and time.monotonic() < started + self.seconds * (1 if found.tries >= LEAST_TRIES else 3):
            if not keys:
                keys = make_lists(context, history, 10 * self.LISTS)
            self.round(context, history, found, [keys.pop() for _ in range(self.LISTS)])
        return found

    @abstractmethod
    def round(self, context: CheckContext, history: History, found: Observation, keys: list[int]) -> None:
        """Let the clients work on these lists, and count the tries."""

    def write(self, database: Database, history: History, key: int) -> None:
        """Append to a list, in one process, with pauses."""
        process, rng = Process(history, self.anomaly), random.Random(key)  # noqa: S311
        for value in range(1, self.APPENDS + 1):
            process.append(database, key, value)
            time.sleep(rng.uniform(0, JITTER) / 3)


def _together(writers: Sequence[Callable[[], None]], readers: Sequence[Callable[[], None]]) -> None:
    """Call each reader again and again until every writer has returned."""
    finished = threading.Event()

    def repeat(read: Callable[[], None]) -> None:
        while not finished.is_set():
            read()

    with ThreadPoolExecutor(len(writers) + len(readers)) as threads:
        reading = [threads.submit(repeat, read) for read in readers]
        try:
            for writing in [threads.submit(write) for write in writers]:
                writing.result()
        finally:
            finished.set()
        for one in reading:
            one.result()


@dataclass(kw_only=True)
class LongFork(Clients):
    """Two readers see two transactions in opposite orders."""

    anomaly = "Long fork"
    LISTS = 2
    seconds: float = 15.0

    def round(self, context: CheckContext, history: History, found: Observation, keys: list[int]) -> None:
        """Append to one list each by two clients, and read both lists on every node."""
        database = context.scratch.database
        with context.topology() as topology:
            writers = topology.writers()
            nodes = topology.receivers(writers[0])
        writers = [node for node in writers if node in nodes]
        reads: list[tuple[str, int, int]] = []

        def reader(node: str) -> Callable[[], None]:
            process = Process(history, self.anomaly)

            def read() -> None:
                x, y = process.read(database.using(node=node), *keys)[1]
                reads.append((node, len(x), len(y)))

            return read

        def writer(number: int) -> Callable[[], None]:
            there = database.using(node=writers[number % len(writers)])
            return lambda: self.write(there, history, keys[number])

        _together([writer(0), writer(1)], [reader(node) for node in nodes])
        amid = {node for node, x, y in reads if 0 < x < self.APPENDS and 0 < y < self.APPENDS}
        fork = find_fork(reads)
        found.add(bool(fork) if fork or amid == set(nodes) else None, fork)


def find_fork(reads: Sequence[tuple[str, int, int]]) -> str:
    """Return two reads, each with the node and the lengths of two lists, of which each has what the other lacks."""
    best = ("", 0, 0)
    for read in sorted(reads, key=lambda read: read[1:]):
        if read[2] < best[2]:
            return " while ".join(f"{node} had {x} and {y}" for node, x, y in (best, read))
        best = read
    return ""


@dataclass(kw_only=True)
class Session(Clients):
    """Base of the probes in which one client reads one list, through the routing of the Database."""

    options: RouteOptions = field(default_factory=RouteOptions)
    """Options of the reads."""
    moves: bool = False
    """Each read goes to the next node."""

    def views(self, context: CheckContext) -> Iterator[Database]:
        """Yield the database with the route of each read."""
        nodes = list(context.urls)
        while True:
            for node in nodes:
                database = context.scratch.database.using(**self.options)
                yield database.using(node=node) if self.moves else database


class MonotonicReads(Session):
    """A client reads a value, and later an older one."""

    anomaly = "Non-monotonic read"

    def round(self, context: CheckContext, history: History, found: Observation, keys: list[int]) -> None:
        """Read a list that another client appends to."""
        process, views = Process(history, self.anomaly), self.views(context)
        reads: list[tuple[str, int]] = []

        def read() -> None:
            node, [items] = process.read(next(views), *keys)
            reads.append((node, len(items)))

        _together([lambda: self.write(context.scratch.database, history, keys[0])], [read])
        back = [f"{a} had {x}, then {b} {y}" for (a, x), (b, y) in pairwise(reads) if y < x]
        found.add(bool(back) if len({length for _, length in reads}) > 2 else None, *back[:1])


@dataclass(kw_only=True)
class OwnWrites(Session):
    """A client does not see what it has just written."""

    anomaly = "Own write not seen"
    between: Callable[[], object] = lambda: None
    """Function that the client calls between the write and the read."""
    elsewhere: bool = False
    """Only a read on another node than that of the write is a try."""

    def round(self, context: CheckContext, history: History, found: Observation, keys: list[int]) -> None:
        """Append to a list and read it."""
        process, views = Process(history, self.anomaly), self.views(context)
        for value in range(1, self.APPENDS + 1):
            origin = process.append(context.scratch.database, keys[0], value)
            self.between()
            node, [items] = process.read(next(views), *keys)
            is_try = node != origin or not self.elsewhere
            found.add(value not in items if is_try else None, f"{value} was written on {origin}; {node} had {items}")
