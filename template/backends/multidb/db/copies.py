"""A table of one database, copied into another and kept up to date: what is new since the last time, and nothing twice.

    copy(databases, Copy("orders", Order.__table__, "reports", OrderCopy.__table__))

What is new is asked by transaction number (see `changes.py`), up to the oldest transaction that is still running: whatever commits
later has a larger number, however early it began. So nothing is overtaken, and a transaction that stays open (or prepared) holds the
copy back instead of being missed.

Rows arrive in chunks. The transaction that writes a chunk also writes how far the copy has come, so a copy that is killed goes on
where it was, and a chunk whose COMMIT got no answer is written once. Two that run at once notice it at their next chunk, and one of
them gives up.

While it runs, some rows are newer than others. When it ends, the copy is one moment of the source, except for what is still in flight.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import (
    Column,
    DateTime,
    MetaData,
    Table,
    Text,
    cast,
    delete,
    func,
    literal,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert

from .changes import TransactionNumber, deletions
from .databases import Databases
from .errors import DistributedSQLError
from .mergejoin import merge_join, ordered
from .twophase import OnStep, ignore
from .session import PinnedSession

CHUNK = 5_000
"""Rows of one transaction. Arbitrary: enough that the commit no longer counts, and no lock is held for long."""

AFRESH = " afresh"
"""Marks the server of a copy that has not been complete yet: what the source lacks is still to be removed, whoever goes on."""

metadata = MetaData()

progress = Table(
    "copy_progress",
    metadata,
    Column("relation", Text, primary_key=True),
    Column("server", Text, nullable=False),
    Column("horizon", TransactionNumber, nullable=False),
    Column("after_key", Text),
    Column("copied_at", DateTime(timezone=True), server_default=func.now(), nullable=False),
)
"""How far each copy has come: everything below `horizon`, and of that transaction the rows up to `after_key`. In the target."""


class CopyOvertaken(DistributedSQLError):
    """Another copy of the same table is running, and is ahead; what this one had written of its last chunk is undone."""


@dataclass(frozen=True)
class Copy:
    """What is copied: the columns that both tables have, by the key `id`."""

    source: str
    table: Any
    """A table with `Changing`."""
    target: str
    into: Any

    @property
    def columns(self) -> list[str]:
        """The columns that are copied."""
        return [column.name for column in self.into.c if column.name in self.table.c]


@dataclass(frozen=True)
class Position:
    """How far a copy has come, and of which server's numbers that speaks."""

    server: str
    horizon: str = "0"
    after_key: str | None = None


@dataclass(frozen=True)
class Copied:
    """What a run did."""

    rows: int
    deleted: int
    afresh: bool
    """Whether all of it was copied: the first time, when asked to, or because the source is another server than before."""


def copy(databases: Databases, what: Copy, *, afresh: bool = False, on_step: OnStep = ignore) -> Copied:
    """Bring a copy up to date.

    Args:
        databases: of the application.
        what: the copy.
        afresh: copy everything, and remove what the source does not have.
        on_step: is told of each transaction of the target.

    Raises:
        CopyOvertaken: another one is running.
        NodeUnavailable: a database does not answer; the next run goes on from here.
    """
    with databases.snapshot(what.source) as reading:
        # One snapshot for all that follows; what is below its horizon is in it, or never will be.
        server, horizon = reading.execute(text(_NOW)).one()
        found = databases.read(what.target, _position, what)
        run = _Run(databases, what, on_step, found)
        if not afresh and found is not None and found.server in (server, server + AFRESH):
            start, afresh = found, found.server != server
        else:
            # Also after a restore or a failover: numbers may have been given away again, and mean something else.
            start, afresh = Position(server + AFRESH), True
        if int(start.horizon) >= int(horizon):
            return Copied(0, 0, afresh)
        deleted = 0 if afresh else run.delete(_deleted(reading, what, start.horizon, horizon), start)
        rows = run.write(reading, start, horizon)
        if afresh:
            deleted = run.delete(_surplus(databases, reading, what), Position(server + AFRESH, horizon))
        run.advance(Position(server, horizon))
    return Copied(rows, deleted, afresh)


def position(databases: Databases, what: Copy) -> Position | None:
    """How far a copy has come; None if it was never begun."""
    return databases.read(what.target, _position, what)


def behind(databases: Databases, what: Copy) -> int:
    """How many rows of the source have changed since what was copied, those in flight included."""
    found = position(databases, what)
    changed = select(func.count()).select_from(what.table)
    if found is not None:
        changed = changed.where(what.table.c.changed_in >= _number(found.horizon))
        if found.after_key is not None:
            changed = changed.where(_is_after(what.table, found))

    def count(session: PinnedSession) -> int:
        return session.scalar(changed) or 0

    return databases.read(what.source, count)


class _Run:
    """One run: writes to the target, and never without saying how far it has come."""

    def __init__(self, databases: Databases, what: Copy, on_step: OnStep, found: Position | None) -> None:
        self.what = what
        self.on_step = on_step
        self.position = found
        # The position says whether a chunk was written, so it may be run again when nobody answered.
        self._target = databases.server(what.target).using(idempotent=True)

    def write(self, reading: PinnedSession, start: Position, horizon: str) -> int:
        """Copy the rows that changed from `start` on, up to `horizon`; how many they were."""
        table = self.what.table
        wanted = (
            select(*(table.c[name] for name in self.what.columns), table.c.changed_in.label("_changed_in"))
            .where(table.c.changed_in < _number(horizon))
            .order_by(table.c.changed_in, table.c.id)
        )
        if start.after_key is None:
            wanted = wanted.where(table.c.changed_in >= _number(start.horizon))
        else:
            wanted = wanted.where(_is_after(table, start))
        rows = iter(reading.execute(wanted, execution_options={"yield_per": CHUNK}))
        count = 0
        while chunk := list(islice(rows, CHUNK)):
            last = chunk[-1]
            reached = Position(start.server, last._changed_in, str(last.id))
            self._apply(lambda session, chunk=chunk: _upsert(session, self.what, chunk), reached)
            count += len(chunk)
        return count

    def delete(self, keys: list[Any], at: Position) -> int:
        """Remove rows of the target by their keys; the position stays what it is."""
        into = self.what.into
        count = 0
        for first in range(0, len(keys), CHUNK):
            gone = delete(into).where(into.c.id.in_(keys[first : first + CHUNK])).returning(into.c.id)
            count += self._apply(lambda session, gone=gone: len(session.scalars(gone).all()), at)
        return count

    def advance(self, to: Position) -> None:
        """Say that everything below a horizon is there."""
        self._apply(lambda session: 0, to)

    def _apply(self, work: Any, reached: Position) -> int:
        before = self.position

        def write(session: PinnedSession) -> int:
            session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": self.what.into.name})
            found = _position(session, self.what)
            if found == reached and found != before:
                # An attempt whose COMMIT got no answer did it.
                return 0
            if found != before:
                raise CopyOvertaken(
                    f"another copy of {self.what.into.name} into {self.what.target} is running and has come further: "
                    "let it finish",
                    node=self.what.target,
                )
            done: int = work(session)
            row = {
                "relation": self.what.into.name,
                "server": reached.server,
                "horizon": reached.horizon,
                "after_key": reached.after_key,
                "copied_at": func.now(),
            }
            said = insert(progress).values(row)
            session.execute(said.on_conflict_do_update(index_elements=[progress.c.relation], set_=row))
            return done

        done = self._target.run(write)
        self.position = reached
        self.on_step(f"at {reached.horizon}")
        return done


# Numbers of transactions are a matter of one server, and of one history of it: of the timeline, the first digits of a log file's name.
_NOW = """
    SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
                     left(pg_walfile_name(pg_current_wal_lsn()), 8), current_database()),
           pg_snapshot_xmin(pg_current_snapshot())::text
"""


def _number(value: str) -> Any:
    return cast(literal(value), TransactionNumber)


def _is_after(table: Table, place: Position) -> Any:
    key = table.c.id.type.python_type(place.after_key)
    return tuple_(table.c.changed_in, table.c.id) > tuple_(_number(place.horizon), literal(key, table.c.id.type))


def _position(session: PinnedSession, what: Copy) -> Position | None:
    wanted = select(progress.c.server, progress.c.horizon, progress.c.after_key)
    row = session.execute(wanted.where(progress.c.relation == what.into.name)).one_or_none()
    return Position(*row) if row else None


def _upsert(session: PinnedSession, what: Copy, chunk: list[Any]) -> int:
    rows = [{name: getattr(row, name) for name in what.columns} for row in chunk]
    written = insert(what.into)
    changed = {name: written.excluded[name] for name in what.columns if name != "id"}
    session.execute(written.on_conflict_do_update(index_elements=[what.into.c.id], set_=changed), rows)
    return len(rows)


def _deleted(reading: PinnedSession, what: Copy, since: str, horizon: str) -> list[Any]:
    """The keys that were deleted in between, and do not exist again."""
    table = what.table
    exists = select(table.c.id).where(table.c.id == cast(deletions.c.key, table.c.id.type)).exists()
    keys = reading.scalars(
        select(deletions.c.key).where(
            deletions.c.relation == table.name,
            deletions.c.changed_in >= _number(since),
            deletions.c.changed_in < _number(horizon),
            ~exists,
        )
    )
    return [table.c.id.type.python_type(key) for key in keys]


def _surplus(databases: Databases, reading: PinnedSession, what: Copy) -> list[Any]:
    """The keys that only the target has."""
    with databases.snapshot(what.target) as copied:
        theirs = ordered(copied, select(what.into.c.id), by=what.into.c.id)
        ours = ordered(reading, select(what.table.c.id), by=what.table.c.id)
        return [left[0] for left, right in merge_join(theirs, ours, keep="left") if right is None]
