"""What is tried again, when, and until when.

Errors are told apart by SQLSTATE and by whether the connection is gone, never by exception class. This module decides; it
neither sleeps nor reads a clock, so that synchronous and asynchronous callers share its decisions.
"""

import enum
import random
from dataclasses import dataclass, field

from sqlalchemy.exc import DBAPIError

from . import backend


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


def classify(error: BaseException, *, committing: bool, connecting: bool = False) -> Verdict:
    """Say what `error` means.

    Args:
        error: what SQLAlchemy raised.
        committing: COMMIT had been sent, so its effect is unknown if the connection is gone.
        connecting: no statement had been sent yet.
    """
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


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how long a unit of work is tried. Durations in seconds."""

    attempts: int = 10
    deadline: float = 10.0
    """No attempt starts later than this after the first one."""
    base_delay: float = 0.002
    """Upper bound of the first pause, doubled each time: a lost race is over in about the time of one transaction."""
    max_delay: float = 0.25


@dataclass
class Attempts:
    """The attempts at one unit of work: how many, why they failed, how long to wait before the next one."""

    policy: RetryPolicy
    started: float
    """The moment of the first attempt, on the caller's monotonic clock."""
    failures: list[BaseException] = field(default_factory=list)

    def delay_after(self, failure: BaseException, *, now: float) -> float | None:
        """Record `failure`; the pause in seconds before the next attempt, or None if there is none.

        The first retry follows at once, since most races are lost only once; later ones wait a random part of a growing
        interval ("full jitter"), so that those who lost together do not meet again.
        """
        self.failures.append(failure)
        if len(self.failures) >= self.policy.attempts:
            return None
        delay = 0.0
        if len(self.failures) > 1:
            ceiling = min(self.policy.max_delay, self.policy.base_delay * 2 ** (len(self.failures) - 1))
            delay = random.uniform(0, ceiling)  # noqa: S311
        return delay if now + delay < self.started + self.policy.deadline else None
