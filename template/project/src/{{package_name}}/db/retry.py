"""What is tried again, where, when, and until when.

Errors are told apart by SQLSTATE and by whether the connection is gone, never by exception class. This module decides; it
neither sleeps nor reads a clock, so the synchronous and the asynchronous database share its decisions.
"""

import enum
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import NoReturn

from sqlalchemy.exc import DBAPIError

from . import backend
from .errors import AmbiguousCommit, NodeUnavailable, RetriesExhausted, WrongNode
from .routing import Route


class Verdict(enum.Enum):
    """What an error means for the unit of work it interrupted."""

    RETRY = "the transaction lost a race: run it again"
    ELSEWHERE = "the node is gone or refuses this work: run it again on another one"
    AMBIGUOUS = "the answer to COMMIT was lost: it may have happened"
    FATAL = "running it again cannot help"


def sqlstate_of(error: BaseException) -> str | None:
    """The five characters the server sent with `error`; None if it sent none."""
    if isinstance(error, DBAPIError):
        error = error.orig or error
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None


def first_line(error: BaseException) -> str:
    """What the server said, without SQL, parameters and links."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    return str(cause).partition("\n")[0]


def classify(error: BaseException, *, committing: bool = False, connecting: bool = False) -> Verdict:
    """Say what `error` means.

    Args:
        error: what SQLAlchemy raised.
        committing: COMMIT had been sent, so its effect is unknown if the connection is gone.
        connecting: no statement had been sent yet.
    """
    if isinstance(error, NodeUnavailable):
        return Verdict.ELSEWHERE
    if not isinstance(error, DBAPIError):
        return Verdict.FATAL
    state = sqlstate_of(error)
    if state in backend.RETRYABLE:
        return Verdict.RETRY
    if state in backend.AMBIGUOUS:
        return Verdict.AMBIGUOUS
    if state in backend.READ_ONLY:
        return Verdict.ELSEWHERE
    if state in backend.UNAVAILABLE or error.connection_invalidated:
        return Verdict.AMBIGUOUS if committing else Verdict.ELSEWHERE
    if connecting and state is None:
        # libpq passes on no SQLSTATE for a refused login, only the server's words.
        return Verdict.FATAL if backend.LOGIN_REFUSED.search(str(error.orig)) else Verdict.ELSEWHERE
    return Verdict.FATAL


def explained(error: Exception, *, node: str, readonly: bool, committing: bool) -> Exception:
    """What the caller of a unit of work that is not retried gets to see: `error`, or what it means."""
    state = sqlstate_of(error)
    if readonly and state in backend.READ_ONLY:
        return WrongNode(
            f"{node} refused the write ({state}): this unit of work is read-only. "
            "Write through db.run(…) or db.session()",
            node=node,
            sqlstate=state,
        )
    if not readonly and classify(error, committing=committing) is Verdict.AMBIGUOUS:
        return _ambiguous(node, [error])
    return error


@dataclass(frozen=True)
class Retry:
    """One decision to try again, for `RetryPolicy.on_retry`."""

    attempt: int
    """The number of the attempt that failed, from 1."""
    node: str | None
    """Where it failed; None if no node answered."""
    failure: Exception
    delay: float
    """Seconds until the next attempt."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how long a unit of work is tried. Durations in seconds."""

    attempts: int = 100
    """A fuse; it is the deadline that ends the patience. Ten attempts on a hot row are over within a second."""
    deadline: float = 10.0
    """No attempt starts later than this after the first one."""
    base_delay: float = 0.002
    """Upper bound of the first pause, doubled each time: a lost race is over in about the time of one transaction."""
    max_delay: float = 0.25
    gate: float = 0.04
    """Those in this process that lost a race try again one at a time, which is what hot rows need, but nobody waits for
    a turn longer than this; 0 means no turns. Room for about ten short transactions: longer ones pass one another."""
    on_retry: Callable[[Retry], None] | None = None
    """Is told of every attempt that failed and is followed by another."""


class Counters:
    """How often what went wrong, since the database was made. Thread-safe."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = Lock()

    def add(self, name: str) -> None:
        """Count one."""
        with self._lock:
            self._counts[name] += 1

    def snapshot(self) -> Mapping[str, int]:
        """`retries`, `given_up`, `ambiguous`, and `sqlstate_…` for every state that failed an attempt."""
        with self._lock:
            return dict(self._counts)


@dataclass
class Attempts:
    """The attempts at one unit of work: where the next one goes, how long it waits, and what the caller gets in the end."""

    policy: RetryPolicy
    route: Route
    """Where the next attempt goes."""
    started: float
    """The moment of the first attempt, on the caller's monotonic clock."""
    idempotent: bool = False
    counters: Counters = field(default_factory=Counters)
    failures: list[Exception] = field(default_factory=list)
    in_doubt: bool = False
    """An earlier COMMIT was not answered."""
    patience: float = 0.0
    """How long the next attempt waits for its turn, after the pause."""

    def after(self, failure: Exception, *, node: str | None, committing: bool, now: float) -> float:
        """The pause in seconds before the next attempt; if there is none, raise what the caller gets.

        The first retry follows at once, since most races are lost only once; later ones wait a random part of a growing
        interval ("full jitter"), so that those who lost together do not meet again.

        Args:
            failure: what ended the attempt.
            node: where it ran; None if no node answered.
            committing: COMMIT had been sent.
            now: the moment, on the same clock as `started`.
        """
        self.failures.append(failure)
        verdict = classify(failure, committing=committing)
        if verdict is Verdict.FATAL or (self.route.readonly and sqlstate_of(failure) in backend.READ_ONLY):
            self._raise_final(failure, node)
        self.counters.add(f"sqlstate_{sqlstate_of(failure)}")
        if verdict is Verdict.AMBIGUOUS and not self.route.readonly:
            self.counters.add("ambiguous")
            if not self.idempotent:
                raise _ambiguous(node, self.failures) from failure
            self.in_doubt = True
            if not backend.HISTORY_IS_SHARED:
                self.route = replace(self.route, node=node)
        delay = self._delay()
        if delay is None or now + delay >= self.started + self.policy.deadline:
            self.counters.add("given_up")
            self._give_up(failure, node)
        self.patience = self.policy.gate if verdict is Verdict.RETRY else 0.0
        self.counters.add("retries")
        if self.policy.on_retry is not None:
            self.policy.on_retry(Retry(len(self.failures), node, failure, delay))
        return delay

    def unsettled(self, failure: Exception) -> AmbiguousCommit:
        """What the caller gets when `failure` keeps the work from being run again, and an earlier COMMIT is in doubt."""
        self.failures.append(failure)
        return _ambiguous(self.route.node, self.failures)

    def _delay(self) -> float | None:
        count = len(self.failures)
        if count >= self.policy.attempts:
            return None
        if count == 1:
            return 0.0
        ceiling = min(self.policy.max_delay, self.policy.base_delay * 2 ** (count - 1))
        return random.uniform(0, ceiling)  # noqa: S311

    def _raise_final(self, failure: Exception, node: str | None) -> NoReturn:
        if self.in_doubt and isinstance(failure, DBAPIError):
            raise _ambiguous(node, self.failures) from failure
        final = explained(failure, node=node or "", readonly=self.route.readonly, committing=False)
        if final is failure:
            raise failure
        raise final from failure

    def _give_up(self, failure: Exception, node: str | None) -> NoReturn:
        if self.in_doubt:
            raise _ambiguous(node, self.failures) from failure
        if isinstance(failure, NodeUnavailable):
            raise NodeUnavailable(str(failure), node=node, failures=self.failures) from failure
        raise RetriesExhausted(
            f"{node}: given up after {len(self.failures)} attempts; the last one: {first_line(failure)}",
            node=node,
            sqlstate=sqlstate_of(failure),
            failures=self.failures,
        ) from failure


def _ambiguous(node: str | None, failures: Sequence[Exception]) -> AmbiguousCommit:
    return AmbiguousCommit(
        f"{node} did not say whether it committed ({first_line(failures[-1])}). Look for the effect before you run it "
        "again, or give the work an idempotency key and run it with db.using(idempotent=True)",
        node=node,
        sqlstate=sqlstate_of(failures[-1]),
        failures=failures,
    )
