"""Decide what is tried again, where, when, and until when.

Errors are told apart by SQLSTATE and by whether the connection is gone, never by exception class. `Attempts` decides;
`run_with_retries` is the only retry loop.
"""

import enum
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from threading import Lock
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Protocol, TypeVar

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError

from ..limits import Retry, RetryPolicy
from .backend import Backend, Route
from .errors import AmbiguousCommit, DistributedSQLError, MisuseError, NodeUnavailable, RetriesExhausted, WrongNode
from .objects import Objects

T = TypeVar("T")
U = TypeVar("U", bound="Unit")

inside_unit: ContextVar[Sequence[object]] = ContextVar("inside_unit", default=())
"""The unit of work that runs in this context. It is emptied at the end, also for tasks that were started inside."""


class Verdict(enum.Enum):
    """Meaning of an error for the unit of work that it interrupted."""

    RETRY = "the transaction lost a race: run it again"
    ELSEWHERE = "the node is gone or refuses this work: run it again on another one"
    AMBIGUOUS = "the answer to COMMIT was lost: it may have happened"
    FATAL = "running it again cannot help"


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE that the server sent with `error`; None if there is none."""
    state = getattr(getattr(error, "orig", None) or error, "sqlstate", None)
    return state if isinstance(state, str) else None


def first_line(error: BaseException) -> str:
    """Return the server's message without SQL, parameters and links."""
    return str(getattr(error, "orig", None) or error).partition("\n")[0]


def meaning_of(error: BaseException) -> str | None:
    """Return the SQLSTATE that `error` stands for: its own, unless the backend tells more by the message."""
    state = sqlstate_of(error)
    found = (meant for (own, words), meant in Backend.stands_for.items() if own == state and words in first_line(error))
    return next(found, state)


def classify(error: BaseException, *, committing: bool = False, connecting: bool = False) -> Verdict:
    """Return the meaning of `error`; `committing`: COMMIT had been sent, `connecting`: no statement had been sent."""
    if isinstance(error, NodeUnavailable):
        return Verdict.ELSEWHERE
    if not isinstance(error, DBAPIError):
        return Verdict.FATAL
    state = meaning_of(error)
    if state in Backend.retryable:
        return Verdict.RETRY
    if state in Backend.ambiguous:
        return Verdict.AMBIGUOUS
    if state in Backend.read_only:
        return Verdict.ELSEWHERE
    if state in Backend.unavailable or error.connection_invalidated:
        return Verdict.AMBIGUOUS if committing else Verdict.ELSEWHERE
    if connecting and state is None:
        return Verdict.FATAL if Backend.login_refused.search(str(error.orig)) else Verdict.ELSEWHERE
    return Verdict.FATAL


def raise_translated(error: Exception, *, node: str, readonly: bool, committing: bool) -> None:
    """Raise what `error` means to the caller of a transaction that is not run again, unless it is the caller's own.

    Args:
        error: error that ended the transaction.
        node: node of the transaction.
        readonly: the transaction only reads.
        committing: COMMIT had been sent.

    Raises:
        AmbiguousCommit: the answer to COMMIT was lost.
        NodeUnavailable: the node was lost, or it refuses writes.
        RetriesExhausted: the transaction lost a race.
        WrongNode: the transaction is read-only and wrote.
    """
    if not isinstance(error, DBAPIError):
        return
    _raise_refused(error, node=node, readonly=readonly)
    verdict = classify(error, committing=committing)
    state = sqlstate_of(error)
    if verdict is Verdict.FATAL:
        return
    if verdict is Verdict.AMBIGUOUS and not readonly:
        raise _ambiguous(node, error, [error]) from error
    advice = "Run it again, or use run(…), which does that"
    if verdict is Verdict.RETRY:
        message = f"{node}: the transaction lost a race and was rolled back ({first_line(error)}). {advice}"
        raise RetriesExhausted(message, node=node, sqlstate=state, failures=[error]) from error
    message = f"{node} ended the transaction, and nothing was committed ({first_line(error)}). {advice}"
    raise NodeUnavailable(message, node=node, sqlstate=state, failures=[error]) from error


def refuses_writes(error: BaseException) -> bool:
    """Return True if a server refused a write, because its transactions are read-only."""
    return meaning_of(error) in Backend.read_only


def _raise_refused(error: Exception, *, node: str | None, readonly: bool) -> None:
    if readonly and refuses_writes(error):
        state = sqlstate_of(error)
        advice = "this unit of work is read-only. Write through db.run(…) or db.session()"
        raise WrongNode(f"{node} refused the write ({state}): {advice}", node=node, sqlstate=state) from error


class Counters:
    """Counters of retries and failures since the Database was created. Thread-safe."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = Lock()

    def add(self, name: str) -> None:
        """Increment one counter."""
        with self._lock:
            self._counts[name] += 1

    def snapshot(self) -> Mapping[str, int]:
        """Return `retries`, `given_up`, `ambiguous`, and `sqlstate_…` for each state that ended an attempt."""
        with self._lock:
            return dict(self._counts)


@dataclass
class Attempts:
    """Attempts at one unit of work: the route of the next one, its pause, and the error that ends them."""

    policy: RetryPolicy
    route: Route  # route of the next attempt
    started: float  # time of the first attempt on the monotonic clock, in seconds
    counters: Counters = field(default_factory=Counters)
    mark_down: Callable[[str], object] = lambda node: None  # called with a node that refused a write as read-only
    failures: list[Exception] = field(default_factory=list)
    unanswered: tuple[str | None, Exception] | None = None  # node and error of a COMMIT that was not answered
    lock_timeout: float = 0.0  # seconds for which the next attempt waits for the retry lock, after the pause

    @property
    def in_doubt(self) -> bool:
        """True if a COMMIT was not answered."""
        return self.unanswered is not None

    def after(self, failure: Exception, *, node: str | None, committing: bool, now: float) -> float:
        """Return the pause in seconds before the next attempt, or raise the error that ends the attempts.

        The first retry follows at once, because most races are lost only once; later ones wait a random part of a
        growing interval ("full jitter"), so that the losers of one race do not meet again.
        """
        self.failures.append(failure)
        verdict = classify(failure, committing=committing)
        refused = refuses_writes(failure)
        elapsed = now - self.started
        # A statement that takes too long is the caller's to handle, until it has used up the deadline.
        expired = elapsed >= self.policy.deadline and meaning_of(failure) in Backend.timed_out
        if (verdict is Verdict.FATAL and not expired) or (self.route.readonly and refused):
            if self.unanswered:
                raise self.ambiguous(failure) from failure
            _raise_refused(failure, node=node, readonly=self.route.readonly)
            raise failure
        if refused and node:
            self.mark_down(node)
        self.counters.add(f"sqlstate_{sqlstate_of(failure)}")
        if verdict is Verdict.AMBIGUOUS and not self.route.readonly:
            self.counters.add("ambiguous")
            self.unanswered = node, failure
            if not self.route.idempotent:
                raise self.ambiguous(failure) from failure
            if not Backend.commits_are_shared:
                self.route = replace(self.route, node=node)
        retries = len(self.failures) - 1
        longest = min(self.policy.max_delay, self.policy.base_delay * 2 ** min(retries, 60))  # 2**1024 is no float
        delay = random.uniform(0, longest) if retries else 0.0  # noqa: S311
        if len(self.failures) >= self.policy.attempts or elapsed + delay >= self.policy.deadline:
            self.counters.add("given_up")
            raise self._given_up(failure, node, elapsed) from failure
        self.lock_timeout = self.policy.lock_timeout if verdict is Verdict.RETRY else 0.0
        self.counters.add("retries")
        if self.policy.on_retry is not None:
            self.policy.on_retry(Retry(len(self.failures), node, failure, delay))
        return delay

    def ambiguous(self, failure: Exception) -> AmbiguousCommit:
        """Return the error of a COMMIT that was not answered, where `failure` ended the attempts at finding out."""
        node, lost = self.unanswered or (None, failure)
        return _ambiguous(node, lost, self.failures if failure in self.failures else [*self.failures, failure])

    def _given_up(self, failure: Exception, node: str | None, elapsed: float) -> DistributedSQLError:
        if self.unanswered:
            return self.ambiguous(failure)
        if isinstance(failure, NodeUnavailable):
            return NodeUnavailable(str(failure), node=failure.node or node, failures=self.failures)
        number = len(self.failures)
        attempts = f"{number} attempt{'s' if number > 1 else ''} in {elapsed:.1f} s"
        return RetriesExhausted(
            f"{node or 'no node'}: given up after {attempts} (the deadline is {self.policy.deadline:g} s); the last "
            f"one: {first_line(failure)}",
            node=node,
            sqlstate=sqlstate_of(failure),
            failures=self.failures,
        )


def _ambiguous(node: str | None, lost: Exception, failures: Sequence[Exception]) -> AmbiguousCommit:
    later = "" if failures[-1] is lost else f"; later: {first_line(failures[-1])}"
    return AmbiguousCommit(
        f"{node or 'no node'} did not say whether it committed ({first_line(lost)}{later}). Look for the effect before "
        "you run it again, or give the work an idempotency key and run it with db.using(idempotent=True)",
        node=node,
        sqlstate=sqlstate_of(lost),
        failures=failures,
    )


class Unit(Protocol):
    """One attempt at a unit of work: a pinned session, or several sessions that commit together."""

    node: str
    committing: bool
    in_doubt: bool

    def finish(self) -> None:
        """Commit."""

    def release(self) -> None:
        """Undo what was not committed and return the connections."""


def refuse_nesting() -> None:
    """Raise `MisuseError` if the function of a retried unit of work runs in this context."""
    if inside_unit.get():
        raise MisuseError(
            "a unit of work is already running here: pass its session on instead of starting another inside it, "
            "which would stay committed when the outer one is rolled back"
        )


_UNFINISHED = (GeneratorType, AsyncGeneratorType, map, filter, zip)


def refuse_unfinished(result: object) -> None:
    """Raise `MisuseError` if the function of a unit of work returned what has yet to run: its session ends before."""
    if isinstance(result, CoroutineType):
        result.close()
        raise MisuseError("the unit of work is an async function, and nothing awaits it: use AsyncDatabase.run(…)")
    if isinstance(result, _UNFINISHED):
        raise MisuseError(
            f"the unit of work returned a {type(result).__name__}, which would run when its session has ended: "
            "return a list"
        )


class Threads:
    """The few operations in which a database for threads and one for asyncio differ; these block the thread."""

    create_engine: Callable[..., Engine] = staticmethod(create_engine)
    sleep: Callable[[float], None] = staticmethod(time.sleep)
    make_lock: Callable[[], Any] = Lock

    def acquire(self, lock: Any, timeout: float) -> bool:
        """Acquire a lock of `make_lock` within `timeout` seconds; return False if that was not possible."""
        return bool(lock.acquire(timeout=timeout))

    def call(self, function: Callable[[], object]) -> None:
        """Call a function that must not be interrupted halfway."""
        function()


def run_with_retries(
    attempts: Attempts, begin: Callable[[Route], U], work: Callable[[U], T], *, concurrency: Threads, lock: Any
) -> T:
    """Run `work` on a unit from `begin`, again and again until one commits or `attempts` raises.

    The losers of a race hold `lock`, the retry lock of the database, so that they retry one at a time.
    """
    refuse_nesting()
    given = Objects()
    if not attempts.route.readonly:
        given.note_arguments(work)
    while True:
        unit = None
        locked = attempts.lock_timeout > 0 and concurrency.acquire(lock, attempts.lock_timeout)
        try:
            unit = begin(attempts.route)
            unit.in_doubt = attempts.in_doubt
            return _run_once(unit, work, concurrency)
        except (DBAPIError, NodeUnavailable) as error:
            node = unit.node if unit else attempts.route.node
            committing = unit is not None and unit.committing
            delay = attempts.after(error, node=node, committing=committing, now=time.monotonic())
            given.restore()
        except Exception as error:
            if unit is None and attempts.in_doubt:
                # The work cannot run again and settle the COMMIT that was not answered.
                raise attempts.ambiguous(error) from error
            raise
        finally:
            if locked:
                lock.release()
        concurrency.sleep(delay)


def _run_once(unit: U, work: Callable[[U], T], concurrency: Threads) -> T:
    running = [unit]
    token = inside_unit.set(running)
    try:
        result = work(unit)
        refuse_unfinished(result)
        unit.finish()
    finally:
        running.clear()
        inside_unit.reset(token)
        concurrency.call(unit.release)
    return result
