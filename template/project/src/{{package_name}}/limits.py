"""Limits of the runtime, as settings and as arguments: pools, timeouts, retries. All durations are in seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from sqlalchemy import Pool


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """Connection pool of one node in one process."""

    size: PositiveInt = 5
    """Connections that stay open. SQLAlchemy's own default."""
    max_overflow: NonNegativeInt = 5
    """Connections opened beyond `size` under load and closed on return."""
    timeout: PositiveFloat = 5.0
    """Longest wait for a pool checkout; then another node gets the work, or it fails, which beats queueing."""
    lifetime: PositiveFloat = 900.0
    """Age at which a connection is replaced, less a random fifth so that connections are not replaced together."""
    ping_after: NonNegativeFloat = 5.0
    """Idle time after which a connection is pinged at checkout; a busy one costs no extra round trip."""
    processes: PositiveInt = 1
    """Processes with such a pool; the server needs room for all of them."""
    log_sql: bool = False
    """Log each statement with its node and duration; never its parameters."""
    poolclass: Annotated[type[Pool] | None, Field(exclude=True)] = None
    """`NullPool` behind an external pooler, `StaticPool` for one connection that everything shares; None: a queue."""

    @property
    def max_connections(self) -> int:
        """The most connections that all processes together open to one node."""
        return self.processes * (self.size + self.max_overflow)


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Time limits of one connection; 0 disables a limit, as in PostgreSQL."""

    connect: PositiveInt = 3
    """Longest attempt to connect to one node; it has to be limited."""
    statement: NonNegativeFloat = 30.0
    lock: NonNegativeFloat = 5.0
    idle_in_transaction: NonNegativeFloat = 30.0


@dataclass(frozen=True)
class Retry:
    """One failed attempt that is followed by another, for `RetryPolicy.on_retry`."""

    attempt: int  # number of the failed attempt, from 1
    node: str | None  # node of the failed attempt; None if no node answered
    failure: Exception
    delay: float  # seconds until the next attempt


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Number, deadline and pace of the attempts at one unit of work."""

    attempts: PositiveInt = 100
    """Upper limit; normally `deadline` ends the retries first. Ten attempts on a hot row take under a second."""
    deadline: PositiveFloat = 10.0
    """No attempt starts later than this after the first one, and none that ends later is repeated. A call can last
    longer by one attempt: a pool checkout, a connection to each node, and its statements, each within its timeout."""
    base_delay: PositiveFloat = 0.002
    """Upper bound of the first pause, doubled each time; about the time of one short transaction."""
    max_delay: PositiveFloat = 0.25
    lock_timeout: NonNegativeFloat = 0.04
    """Longest wait for the retry lock, which lets the losers of a race in this process retry one at a time; 0 disables
    the lock. The default is the time of about ten short transactions."""
    on_retry: Annotated[Callable[[Retry], None] | None, Field(exclude=True)] = None
    """Callback for each failed attempt that is followed by another."""
