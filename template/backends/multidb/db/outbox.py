"""Transactional outbox: messages between databases that cannot commit together.

    outbox.enqueue(orders, target="catalog", topic="order placed", payload={…})     # in the transaction of the order
    outbox.relay(databases, "orders", RECEIVERS)                                    # in a worker, again and again

A message is a row of the table `outbox`, so it exists exactly if its transaction committed. `relay` runs the receiver
in a transaction of the target, which also inserts the message's id into the table `inbox`, and then deletes the row. A
relay that crashes in between delivers the message again, and the inbox drops the duplicate: at-least-once delivery
becomes effectively once. Several relays may run at once.

Limits: the target is behind until a relay has run, and messages arrive in the order in which they were written only as
long as none fails.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID, uuid4

from sqlalchemy import JSON, BigInteger, Column, DateTime, Integer, MetaData, String, Table, Text, Uuid, func, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .databases import Databases
from .errors import MisuseError
from .retry import Verdict, classify, first_line
from .session import PinnedSession
from .twophase import OnStep, ignore_step

logger = logging.getLogger(__name__)

BATCH = 100
"""Messages that one transaction of the target receives. Arbitrary: enough that the commit costs little."""

MAX_FAILURES = 10
"""Deliveries of one message that may fail; after that the message stays in the outbox until a person looks at it."""

INBOX_RETENTION = timedelta(days=7)
"""Time for which an inbox keeps the id of a message: far longer than a relay that hangs can hold one. Arbitrary."""

metadata = MetaData()

outgoing = Table(
    "outbox",
    metadata,
    Column("position", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", Uuid, unique=True, nullable=False),
    Column("target", String(63), nullable=False),
    Column("topic", String(200), nullable=False),
    Column("payload", JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
    Column("written_at", DateTime(timezone=True), server_default=func.now(), nullable=False),
    Column("failures", Integer, server_default=text("0"), nullable=False),
    Column("reason", Text),
)
"""Messages that are not delivered yet."""

received = Table(
    "inbox",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("received_at", DateTime(timezone=True), nullable=False),
)
"""Ids of the messages that this database received."""


@dataclass(frozen=True)
class Message:
    """A message from one database to another, as it is in the outbox."""

    position: int
    id: UUID
    target: str
    topic: str
    payload: Any
    """A JSON value."""
    written_at: datetime
    failures: int
    """Number of failed deliveries."""
    reason: str | None
    """Reason of the last failure."""


Receiver: TypeAlias = Callable[[PinnedSession, Message], None]
"""Function with the effect of a message, in the transaction that it gets and nowhere else."""

Receivers: TypeAlias = Mapping[tuple[str, str], Receiver]
"""Receivers by target and topic."""


@dataclass(frozen=True)
class RelayResult:
    """Numbers of messages that a relay delivered, dropped as duplicates, and could not deliver."""

    delivered: int = 0
    duplicates: int = 0
    """Messages delivered earlier by a relay that crashed before it could delete them."""
    failed: int = 0
    """Messages left for the next relay, each with the reason in its row."""

    def __add__(self, other: "RelayResult") -> "RelayResult":
        sums = self.delivered + other.delivered, self.duplicates + other.duplicates, self.failed + other.failed
        return RelayResult(*sums)


def enqueue(session: Session, *, target: str, topic: str, payload: Any) -> UUID:
    """Write a message into the outbox, in the transaction of `session`, and return its id.

    Args:
        session: session on the source.
        target: name of the database that receives the message.
        topic: topic; with the target it selects the receiver.
        payload: a JSON value.
    """
    id = uuid4()
    session.execute(outgoing.insert().values(id=id, target=target, topic=topic, payload=payload))
    return id


def pending(databases: Databases, source: str, *, limit: int = 1000) -> list[Message]:
    """Return the messages in the outbox of `source`, the oldest first."""
    return databases.read(source, _read, limit=limit)


def relay(databases: Databases, source: str, receivers: Receivers, *, on_step: OnStep = ignore_step) -> RelayResult:
    """Deliver the messages in the outbox of `source`, the oldest first, until each is delivered or has failed.

    Args:
        databases: the databases of the application.
        source: name of the database whose outbox is read.
        receivers: receiver of each message.
        on_step: callback for each step.

    Raises:
        MisuseError: a message has no receiver; its whole batch stays where it is.
        NodeUnavailable: a database does not answer; nothing is lost, and the next relay goes on.
    """
    result, last = RelayResult(), 0
    while batch := databases.read(source, _read, limit=BATCH, after=last, max_failures=MAX_FAILURES):
        for one in batch:
            if (one.target, one.topic) not in receivers:
                problem = f"no receiver for {one.topic!r} in {one.target} (message {one.id} in {source}): add one"
                raise MisuseError(problem, node=source)
        for target in dict.fromkeys(one.target for one in batch):
            mine = [one for one in batch if one.target == target]
            result += _hand_over(databases, source, mine, receivers, on_step)
        last = batch[-1].position
    return result


def prune_inbox(databases: Databases, target: str, *, older_than: timedelta = INBOX_RETENTION) -> int:
    """Delete old message ids from the inbox of `target` and return their number.

    Args:
        databases: the databases of the application.
        target: name of the database.
        older_than: age of the ids; no relay may still hold a message of that age.
    """
    old = received.delete().where(received.c.received_at < datetime.now(UTC) - older_than).returning(received.c.id)
    return databases.run(target, lambda session: len(session.scalars(old).all()))


def _read(session: PinnedSession, *, limit: int, after: int = 0, max_failures: int | None = None) -> list[Message]:
    query = outgoing.select().where(outgoing.c.position > after).order_by(outgoing.c.position).limit(limit)
    if max_failures is not None:
        query = query.where(outgoing.c.failures < max_failures)
    return [Message(*row) for row in session.execute(query)]


def _hand_over(
    databases: Databases, source: str, batch: list[Message], receivers: Receivers, on_step: OnStep
) -> RelayResult:
    target = batch[0].target

    def receive(session: PinnedSession) -> tuple[int, dict[int, str]]:
        duplicates, failed = 0, {}
        for one in batch:
            try:
                with session.begin_nested():
                    if _is_new(session, one.id):
                        receivers[target, one.topic](session, one)
                    else:
                        duplicates += 1
            except Exception as error:
                if isinstance(error, DBAPIError) and classify(error) is not Verdict.FATAL:
                    # Not a fault of the message: the whole transaction runs again.
                    raise
                failed[one.position] = f"{type(error).__name__}: {first_line(error)}"
        return duplicates, failed

    on_step("read")
    # Idempotent, because after a lost COMMIT reply the inbox tells whether the transaction committed.
    duplicates, failed = databases[target].using(idempotent=True).run(receive)
    on_step("received")

    def remove(session: PinnedSession) -> None:
        done = [one.position for one in batch if one.position not in failed]
        session.execute(outgoing.delete().where(outgoing.c.position.in_(done)))
        for position, reason in failed.items():
            logger.warning("message %d of %s to %s failed: %s", position, source, target, reason)
            counted = outgoing.update().values(failures=outgoing.c.failures + 1, reason=reason)
            session.execute(counted.where(outgoing.c.position == position))

    databases.run(source, remove)
    on_step("settled")
    return RelayResult(len(batch) - duplicates - len(failed), duplicates, len(failed))


def _is_new(session: PinnedSession, id: UUID) -> bool:
    """Insert the id of a message into the inbox; return False if it was there."""
    dialect: Any = sqlite if session.bind.dialect.name == "sqlite" else postgresql
    new = dialect.insert(received).values(id=id, received_at=datetime.now(UTC))
    return session.scalar(new.on_conflict_do_nothing().returning(received.c.id)) is not None
