"""Messages between databases that cannot commit together: written with the change they tell of, delivered later, effective once.

    outbox.put(orders, target="catalog", topic="order placed", payload={"sku": …})     # in the transaction of the order
    outbox.deliver(databases, "orders", RECEIVERS)                                      # in a worker, again and again

A message is a row of the table `outbox`, so it exists exactly if its transaction was committed. Delivery runs its receiver in a
transaction of the target, which also notes the message's id in the table `inbox`, and then deletes the row. Whoever dies in between
leaves a message that is delivered again, and the inbox knows it: at least once becomes effectively once. No two deliverers need
to know of each other.

What it does not give: the target is behind until a delivery has run, and messages arrive in the order in which they were written
only as long as none fails.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID, uuid4

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    delete,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .database import Database
from .databases import Databases
from .errors import MisuseError
from .retry import Verdict, classify, first_line
from .twophase import OnStep, ignore
from .session import PinnedSession

logger = logging.getLogger(__name__)

BATCH = 100
"""Messages that one transaction of the target receives. Arbitrary: enough that the commit no longer counts."""

TRIES = 10
"""Times that a message whose receiver raises is tried again by later deliveries. Then it stays until a person looks at it."""

REMEMBERED = timedelta(days=7)
"""How long an inbox knows a message: many times longer than a delivery that hangs can have it in hand. Arbitrary."""

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
"""What is to be delivered; gone when it is."""

received = Table(
    "inbox",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("received_at", DateTime(timezone=True), nullable=False),
)
"""What was received, each with the effect it had."""


@dataclass(frozen=True)
class Message:
    """What a database tells another."""

    id: UUID
    topic: str
    payload: Any
    """What JSON can hold."""


Receiver: TypeAlias = Callable[[PinnedSession, Message], None]
"""Has the effect of a message, in the transaction it is given and nowhere else."""

Receivers: TypeAlias = Mapping[tuple[str, str], Receiver]
"""By target and topic."""


@dataclass(frozen=True)
class Delivery:
    """What one run did."""

    delivered: int = 0
    known: int = 0
    """Delivered before, by somebody who did not get to delete them."""
    failed: int = 0
    """Left for the next run, with the reason in the row."""

    def __add__(self, other: "Delivery") -> "Delivery":
        return Delivery(self.delivered + other.delivered, self.known + other.known, self.failed + other.failed)


@dataclass(frozen=True)
class Waiting:
    """A message that is not delivered."""

    position: int
    message: Message
    target: str
    failures: int
    reason: str | None


def put(session: Session, *, target: str, topic: str, payload: Any) -> UUID:
    """Write a message to `target`, with everything else that this session commits; returns its id."""
    id = uuid4()
    session.execute(outgoing.insert().values(id=id, target=target, topic=topic, payload=payload))
    return id


def waiting(databases: Databases, source: str, *, most: int = 1000) -> list[Waiting]:
    """What is not delivered yet, oldest first."""
    return databases.read(source, _read, most=most)


def deliver(databases: Databases, source: str, receivers: Receivers, *, on_step: OnStep = ignore) -> Delivery:
    """Deliver what waits in the outbox of `source`, oldest first, until all is delivered or has failed.

    Raises:
        MisuseError: nobody receives a message; it and all others are left where they are.
        NodeUnavailable: a database does not answer; nothing is lost, and the rest is for the next run.
    """
    done, last = Delivery(), 0
    while True:
        batch = databases.read(source, _read, most=BATCH, after=last, tries=TRIES)
        if not batch:
            return done
        for one in batch:
            if (one.target, one.message.topic) not in receivers:
                raise MisuseError(
                    f"nobody receives {one.message.topic!r} for {one.target} (message {one.message.id} in {source}): "
                    "add a receiver for it",
                    node=source,
                )
        for target in dict.fromkeys(one.target for one in batch):
            done += _hand_over(databases, source, [one for one in batch if one.target == target], receivers, on_step)
        last = batch[-1].position


def forget(databases: Databases, target: str, *, older_than: timedelta = REMEMBERED) -> int:
    """Drop from the inbox of `target` what was received so long ago that nobody can deliver it again; returns how many."""
    horizon = datetime.now(UTC) - older_than

    def drop(session: PinnedSession) -> int:
        old = delete(received).where(received.c.received_at < horizon).returning(received.c.id)
        return len(session.scalars(old).all())

    return databases.run(target, drop)


def _read(session: PinnedSession, *, most: int, after: int = 0, tries: int | None = None) -> list[Waiting]:
    wanted = select(outgoing).where(outgoing.c.position > after).order_by(outgoing.c.position).limit(most)
    if tries is not None:
        wanted = wanted.where(outgoing.c.failures < tries)
    rows = session.execute(wanted)
    return [
        Waiting(row.position, Message(row.id, row.topic, row.payload), row.target, row.failures, row.reason)
        for row in rows
    ]


def _hand_over(
    databases: Databases, source: str, batch: list[Waiting], receivers: Receivers, on_step: OnStep
) -> Delivery:
    target = batch[0].target

    def receive(session: PinnedSession) -> tuple[int, dict[int, str]]:
        known, failed = 0, {}
        for one in batch:
            try:
                with session.begin_nested():
                    if _note(session, one.message.id):
                        receivers[target, one.message.topic](session, one.message)
                    else:
                        known += 1
            except Exception as error:
                if isinstance(error, DBAPIError) and classify(error) is not Verdict.FATAL:
                    # Not the message's fault: the whole transaction is run again.
                    raise
                failed[one.position] = f"{type(error).__name__}: {first_line(error)}"
        return known, failed

    database = databases[target]
    on_step("read")
    # Whether a commit that was not answered happened, the inbox knows.
    run = database.using(idempotent=True).run if isinstance(database, Database) else database.run
    known, failed = run(receive)
    on_step("received")

    def settle(session: PinnedSession) -> None:
        done = [one.position for one in batch if one.position not in failed]
        session.execute(delete(outgoing).where(outgoing.c.position.in_(done)))
        for position, reason in failed.items():
            logger.warning("message %d of %s to %s failed: %s", position, source, target, reason)
            session.execute(
                update(outgoing)
                .where(outgoing.c.position == position)
                .values(failures=outgoing.c.failures + 1, reason=reason)
            )

    databases.run(source, settle)
    on_step("settled")
    return Delivery(len(batch) - known - len(failed), known, len(failed))


def _note(session: PinnedSession, id: UUID) -> bool:
    """Note that a message is received; False if it was before."""
    row = {"id": id, "received_at": datetime.now(UTC)}
    if session.bind.dialect.name == "sqlite":
        noted = sqlite.insert(received).values(row).on_conflict_do_nothing().returning(received.c.id)
    else:
        noted = postgresql.insert(received).values(row).on_conflict_do_nothing().returning(received.c.id)
    return session.scalar(noted) is not None
