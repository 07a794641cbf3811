"""Incremental sync of a table of one database into another: each run copies what is new since the last one, once.

    sync_table(databases, TableSync("orders", Order.__table__, "reports", OrderCopy.__table__))

New rows are found by the number of the transaction that changed them last. Neither a timestamp nor the highest key
finds them all, because a transaction that began earlier may commit later, with an older time and smaller keys than rows
that were copied long ago. PostgreSQL reports the oldest transaction that still runs, and no later commit has a smaller
number. So a run copies up to there, skips no row, and is delayed by a transaction that stays open or prepared. In the
source, triggers set the number and record deletions for every writer; they refuse TRUNCATE, which names no rows.

Rows are copied in chunks. The transaction that writes a chunk also writes the position of the sync, so a run that is
killed resumes there, and a chunk whose COMMIT was not answered is written once. A run stops at its next chunk if it
finds another run ahead. During a run some rows are newer than others; at its end the copy shows one moment of the
source, less the transactions in flight.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from sqlalchemy import Column, DateTime, MetaData, Table, Text, cast, delete, func, literal, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Mapped, MappedAsDataclass, Session, declared_attr, mapped_column
from sqlalchemy.types import UserDefinedType

from .databases import Databases
from .errors import DistributedSQLError
from .mergejoin import merge_join, ordered
from .session import PinnedSession
from .twophase import OnStep, ignore_step

CHUNK = 5_000
"""Rows of one transaction. Arbitrary: enough that the commit costs little, few enough that no lock is held for long."""

FULL_REFRESH = " full refresh"
"""Suffix of `server` in a position during a full refresh: rows that the source lacks are still to be deleted."""

# The source -----------------------------------------------------------------------------------------------------------


class Xid8(UserDefinedType[str]):
    """PostgreSQL's `xid8`: a transaction number of 64 bits that a server never reuses. The driver returns text."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the name of the type in SQL."""
        return "xid8"


# Reflection, and with it Alembic's comparison of types, then recognizes the type.
ischema_names["xid8"] = Xid8


class ChangeTrackingMixin:
    """Add a column with the number of the transaction that changed a row last."""

    @declared_attr
    @classmethod
    def changed_in(cls) -> Mapped[str]:
        """Declare the column; a trigger sets it."""
        return mapped_column(Xid8, server_default=text("pg_current_xact_id()"), index=True)


class DataclassChangeTrackingMixin(MappedAsDataclass):
    """Add the same column to a model that is a dataclass; it is no argument of the constructor."""

    changed_in: Mapped[str] = mapped_column(Xid8, server_default=text("pg_current_xact_id()"), index=True, init=False)


source_metadata = MetaData()

deletions = Table(
    "deletion",
    source_metadata,
    Column("relation", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("changed_in", Xid8, server_default=text("pg_current_xact_id()"), nullable=False),
)
"""Keys of deleted rows, each with the last transaction that deleted it."""

FUNCTIONS = """
    CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.changed_in := pg_current_xact_id();
        RETURN NEW;
    END $$;

    CREATE FUNCTION note_deletion() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO deletion (relation, key) VALUES (TG_TABLE_NAME, OLD.id::text)
        ON CONFLICT (relation, key) DO UPDATE SET changed_in = pg_current_xact_id();
        RETURN NULL;
    END $$;

    CREATE FUNCTION refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'a table sync copies the rows of %, and TRUNCATE does not name them: use DELETE', TG_TABLE_NAME;
    END $$;
"""
"""Trigger functions; a migration creates them once per database, after the table of deletions."""

REMOVE_FUNCTIONS = "DROP FUNCTION note_change(), note_deletion(), refuse_truncate()"


def triggers(table: str) -> str:
    """Return the statements that start to track the changes of a table with the key `id`, for a migration."""
    return f"""
        CREATE TRIGGER note_change BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION note_change();
        CREATE TRIGGER note_deletion AFTER DELETE OR UPDATE OF id ON {table}
            FOR EACH ROW EXECUTE FUNCTION note_deletion();
        CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON {table} EXECUTE FUNCTION refuse_truncate();
    """


# The target -----------------------------------------------------------------------------------------------------------

target_metadata = MetaData()

progress = Table(
    "sync_progress",
    target_metadata,
    Column("relation", Text, primary_key=True),
    Column("server", Text, nullable=False),
    Column("horizon", Xid8, nullable=False),
    Column("after_key", Text),
    Column("synced_at", DateTime(timezone=True), server_default=func.now(), nullable=False),
)
"""Position of each sync: copied are the rows of the transactions below `horizon`, and its own up to `after_key`."""


@dataclass(frozen=True)
class Position:
    """Position of a sync, in the transaction numbers of one server."""

    server: str
    horizon: str = "0"
    after_key: str | None = None


class SyncOvertaken(DistributedSQLError):
    """Another run of the same sync is ahead. The last chunk of this run was rolled back."""


@dataclass(frozen=True)
class TableSync:
    """Source and target of a sync. The columns that both tables have are copied; both have the key `id`."""

    source: str
    """Name of the database that is copied from."""
    table: Any
    """A table with `ChangeTrackingMixin`."""
    target: str
    """Name of the database that is copied to."""
    into: Any
    """The table there."""

    @property
    def columns(self) -> list[str]:
        """Names of the copied columns."""
        return [column.name for column in self.into.c if column.name in self.table.c]


@dataclass(frozen=True)
class SyncResult:
    """Numbers of rows that a run copied and deleted."""

    rows: int
    deleted: int
    full_refresh: bool
    """Everything was copied: at the first run, on request, or because the source is on another server than before."""


def sync_table(
    databases: Databases, sync: TableSync, *, full_refresh: bool = False, on_step: OnStep = ignore_step
) -> SyncResult:
    """Bring a copy up to date.

    Args:
        databases: the databases of the application.
        sync: source and target.
        full_refresh: copy everything, and delete rows that the source lacks.
        on_step: callback for each transaction of the target.

    Raises:
        SyncOvertaken: another run is ahead.
        NodeUnavailable: a database does not answer; the next run resumes here.
    """
    with databases.snapshot(sync.source) as reading:
        # All reads use one snapshot, which has every row below its horizon that will ever be there.
        server, horizon = reading.execute(text(_NOW)).one()
        run = _Run(databases, sync, on_step)
        start = run.position
        if full_refresh or start is None or start.server not in (server, server + FULL_REFRESH):
            # Also after a restore or a failover, when the server may have assigned the same numbers again.
            start = Position(server + FULL_REFRESH)
        full_refresh = start.server != server
        if int(start.horizon) >= int(horizon):
            return SyncResult(0, 0, full_refresh)
        deleted = 0 if full_refresh else run.delete(_deleted(reading, sync, start.horizon, horizon), start)
        rows = run.copy(reading, start, horizon)
        if full_refresh:
            deleted = run.delete(_surplus(databases, reading, sync), Position(server + FULL_REFRESH, horizon))
        run.apply(lambda session: 0, Position(server, horizon))
    return SyncResult(rows, deleted, full_refresh)


def position(databases: Databases, sync: TableSync) -> Position | None:
    """Return the position of a sync; None before its first run."""
    return databases.read(sync.target, position_of, sync)


def lag(databases: Databases, sync: TableSync) -> int:
    """Return the number of source rows that changed since the position of the sync, rows in flight included."""
    found = position(databases, sync)
    changed = select(func.count()).select_from(sync.table)
    if found is not None:
        changed = changed.where(_after(sync.table, found))
    return databases.read(sync.source, lambda session: session.scalar(changed) or 0)


def position_of(target: Session | Connection, sync: TableSync) -> Position | None:
    """Return the position of a sync, read from its target; None before its first run."""
    query = select(progress.c.server, progress.c.horizon, progress.c.after_key)
    row = target.execute(query.where(progress.c.relation == sync.into.name)).one_or_none()
    return Position(*row) if row else None


def server_of(source: Session | Connection) -> str:
    """Return the `server` of positions that refer to the transaction numbers of this source."""
    return str(source.execute(text(_NOW)).one()[0])


def changed_since(source: Session | Connection, sync: TableSync, at: Position, keys: Sequence[str]) -> set[str]:
    """Return those of these keys, as text, whose rows were changed or deleted after a position."""
    table, key = sync.table, sync.table.c.id
    changed = select(cast(key, Text)).where(key.in_([key.type.python_type(value) for value in keys]), _after(table, at))
    later = deletions.c.changed_in >= _number(at.horizon)
    deleted = select(deletions.c.key).where(deletions.c.relation == table.name, deletions.c.key.in_(keys), later)
    return {*source.scalars(changed), *source.scalars(deleted)}


class _Run:
    """One run; each of its transactions on the target also writes the position."""

    def __init__(self, databases: Databases, sync: TableSync, on_step: OnStep) -> None:
        self.position = position(databases, sync)
        self._sync = sync
        self._on_step = on_step
        # Idempotent, because the position tells whether a chunk was written.
        self._target = databases.server(sync.target).using(idempotent=True)

    def copy(self, reading: PinnedSession, start: Position, horizon: str) -> int:
        """Copy the rows that changed from `start` up to `horizon` and return their number."""
        sync, table = self._sync, self._sync.table
        changed = (
            select(*(table.c[name] for name in sync.columns), table.c.changed_in.label("_changed_in"))
            .where(_after(table, start), table.c.changed_in < _number(horizon))
            .order_by(table.c.changed_in, table.c.id)
        )
        rows = iter(reading.execute(changed, execution_options={"yield_per": CHUNK}))
        count = 0
        while chunk := list(islice(rows, CHUNK)):
            reached = Position(start.server, chunk[-1]._changed_in, str(chunk[-1].id))
            self.apply(partial(_upsert, sync=sync, chunk=chunk), reached)
            count += len(chunk)
        return count

    def delete(self, keys: list[Any], at: Position) -> int:
        """Delete rows of the target by their keys, at an unchanged position, and return their number."""
        chunks = (keys[first : first + CHUNK] for first in range(0, len(keys), CHUNK))
        return sum(self.apply(partial(_delete, sync=self._sync, keys=chunk), at) for chunk in chunks)

    def apply(self, work: Callable[[PinnedSession], int], reached: Position) -> int:
        """Run `work` on the target in the transaction that writes the position it reaches; return its result."""
        before, sync = self.position, self._sync

        def write(session: PinnedSession) -> int:
            session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": sync.into.name})
            found = position_of(session, sync)
            if found == reached and found != before:
                # An earlier attempt, whose COMMIT was not answered, wrote this chunk.
                return 0
            if found != before:
                raise SyncOvertaken(
                    f"another sync of {sync.into.name} into {sync.target} is running and ahead: let it finish",
                    node=sync.target,
                )
            done = work(session)
            row = {"relation": sync.into.name, **vars(reached), "synced_at": func.now()}
            new = insert(progress).values(row)
            session.execute(new.on_conflict_do_update(index_elements=[progress.c.relation], set_=row))
            return done

        done = self._target.run(write)
        self.position = reached
        self._on_step(f"at {reached.horizon}")
        return done


# Transaction numbers are unique on one timeline of one server. A WAL file's name begins with that of the timeline.
_NOW = """
    SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
                     left(pg_walfile_name(pg_current_wal_lsn()), 8), current_database()),
           pg_snapshot_xmin(pg_current_snapshot())::text
"""


def _number(value: str) -> Any:
    return cast(literal(value), Xid8)


def _after(table: Table, start: Position) -> Any:
    """Return the condition for the rows after a position."""
    if start.after_key is None:
        return table.c.changed_in >= _number(start.horizon)
    key = literal(table.c.id.type.python_type(start.after_key), table.c.id.type)
    return tuple_(table.c.changed_in, table.c.id) > tuple_(_number(start.horizon), key)


def _upsert(session: PinnedSession, sync: TableSync, chunk: list[Any]) -> int:
    rows = [{name: getattr(row, name) for name in sync.columns} for row in chunk]
    new = insert(sync.into)
    # The key is set only in a copy that has no other column, because triggers may take it for a deletion.
    changed = {name: new.excluded[name] for name in sync.columns if name != "id"} or {"id": new.excluded.id}
    session.execute(new.on_conflict_do_update(index_elements=[sync.into.c.id], set_=changed), rows)
    return len(rows)


def _delete(session: PinnedSession, sync: TableSync, keys: list[Any]) -> int:
    key = sync.into.c.id
    return len(session.scalars(delete(sync.into).where(key.in_(keys)).returning(key)).all())


def _deleted(reading: PinnedSession, sync: TableSync, since: str, horizon: str) -> list[Any]:
    """Return the keys that were deleted from `since` up to `horizon` and do not exist again."""
    key = sync.table.c.id
    exists = select(key).where(key == cast(deletions.c.key, key.type)).exists()
    changed = deletions.c.changed_in >= _number(since), deletions.c.changed_in < _number(horizon)
    found = select(deletions.c.key).where(deletions.c.relation == sync.table.name, *changed, ~exists)
    return [key.type.python_type(value) for value in reading.scalars(found)]


def _surplus(databases: Databases, reading: PinnedSession, sync: TableSync) -> list[Any]:
    """Return the keys that only the target has."""
    with databases.snapshot(sync.target) as copied:
        theirs = ordered(copied, select(sync.into.c.id), by=sync.into.c.id)
        ours = ordered(reading, select(sync.table.c.id), by=sync.table.c.id)
        return [left[0] for left, right in merge_join(theirs, ours, keep="left") if right is None]
