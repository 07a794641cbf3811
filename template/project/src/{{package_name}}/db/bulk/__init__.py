"""Bulk loads: many rows into one table by COPY, in chunks that are retried and can be resumed.

    bulk_load(db, Account, ({"owner": name} for name in names), load="accounts-2026-11")

The transaction that loads a chunk also records it in the table `bulk_load_chunk`. A chunk whose COMMIT reply was lost
is therefore safe to run again, and calling `bulk_load` again with the same name and rows resumes an interrupted load:
it skips the recorded chunks. A failure costs one chunk, locks are short, and memory holds no more than one chunk.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DataError, DBAPIError, ProgrammingError, StatementError

from ..backend import Backend
from ..database import Database
from ..errors import DistributedSQLError, MisuseError
from ..retry import first_line, sqlstate_of
from ..session import PinnedSession
from ._chunks import BadRow, Chunk, chunks
from ._copy import CopyStatement, Way
from ._sequences import CountedColumn, counted_columns
from ._stored import stored_type

__all__ = [
    "BadRow",
    "LoadChanged",
    "Loaded",
    "Progress",
    "bulk_load",
    "forget_load",
    "metadata",
    "record",
    "stored_type",
]

metadata = sa.MetaData()
"""Metadata of `record`, for migrations."""

record = sa.Table(
    "bulk_load_chunk",
    metadata,
    sa.Column("load", sa.Text, nullable=False),
    sa.Column("chunk", sa.Integer, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("digest", sa.String(32)),
    sa.Column("node", sa.Text, nullable=False),
    sa.Column("loaded_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    sa.PrimaryKeyConstraint("load", "chunk", name="pk_bulk_load_chunk"),
)
"""Chunks that are loaded. Its rows are never updated, so replication cannot conflict on them."""


class LoadChanged(DistributedSQLError):
    """The name belongs to a load of other rows, or of the same rows in chunks of another size."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a bulk load."""

    rows: int  # loaded by this call
    skipped: int  # rows that an earlier call had loaded
    chunks: int  # so far, the skipped ones included
    retries: int  # attempts that had to be repeated
    seconds: float  # since the call began

    @property
    def rows_per_second(self) -> float:
        """Rate of the rows that this call loaded."""
        return self.rows / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Loaded(Progress):
    """Result of a bulk load."""

    node: str | None  # node of the last chunk; None if there were no rows


def bulk_load(
    db: Database,
    model: type[Any] | sa.Table,
    rows: Iterable[Mapping[str, Any]],
    *,
    load: str | None = None,
    chunk_rows: int = Backend.chunk_rows,
    chunk_bytes: int = Backend.chunk_bytes,
    as_stored: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Loaded:
    """Load `rows` into the table of `model`, in chunks that are retried each.

    The table then holds what an INSERT of the same values would store: the columns' types convert the values, columns
    that are not named get their defaults, and a chunk with values that COPY would store otherwise takes an INSERT.
    Sequences of the columns that the rows name are raised above the loaded values, on every node that counts by itself.
    Features of ORM objects do not apply: relationships, validators, events.

    Args:
        db: the database; its options (`db.using(node=…, retry=…)`) apply to each chunk.
        model: a mapped class with one table, or a table.
        rows: mappings from attribute or column names to values; the first row sets which columns are loaded. A
            generator is read one chunk at a time, outside of any transaction.
        load: name of the load; call again with the same name to resume. The rows must then come in the same order, with
            the same `repr` of their values and in chunks of the same size. The records of the chunks stay until
            `forget_load`. A load without a name cannot be resumed, and its records are deleted when it ends.
        chunk_rows: size limit of one chunk, in rows.
        chunk_bytes: approximate size limit of one chunk, in bytes of text, binary data, JSON and arrays.
        as_stored: take text and None as the columns store them, as COPY FROM does: the server converts the text, and no
            TypeDecorator sees it.
        on_progress: called after each chunk.

    Raises:
        BadRow: a row cannot be loaded, or has a missing value of another library, such as pandas.NaT, instead of None;
            earlier chunks stay.
        LoadChanged: the rows differ from those that were loaded under this name.
        NodeUnavailable: no node that may load the rows, or that may have records of the load, can be reached; or a
            node whose sequence has to be raised cannot.
        RetriesExhausted: every attempt at a chunk failed for a reason that may pass; earlier chunks stay.
        AmbiguousCommit: the same, after a COMMIT that got no reply; with a name, call again to settle it.
        MisuseError: a limit is below 1, the model has several tables, or the call is inside a unit of work.
    """
    if chunk_rows < 1 or chunk_bytes < 1:
        raise MisuseError(f"a chunk has at least one row and one byte, not {chunk_rows} and {chunk_bytes}")
    work = _Load(db, load)
    started = time.monotonic()
    try:
        limits = {"max_rows": chunk_rows, "max_bytes": chunk_bytes}
        for chunk in chunks(model, rows, **limits, with_digest=load is not None, as_stored=as_stored):
            work.load(chunk)
            on_progress(Progress(**work.counts, seconds=time.monotonic() - started))
        if load is not None:
            work.refuse_fewer_chunks()
    finally:
        if load is None and work.node is not None:
            # Records that stay are never read.
            with suppress(DistributedSQLError, DBAPIError):
                work.forget()
    return Loaded(**work.counts, seconds=time.monotonic() - started, node=work.node)


def forget_load(db: Database, load: str) -> int:
    """Delete the records of a load, so that its name is free for other rows; return the number of its chunks."""
    return _Load(db, load).forget()


class _Load:
    """A load in progress; without a name, `load` is None."""

    def __init__(self, db: Database, load: str | None) -> None:
        self.node: str | None = None
        self.counts = {"rows": 0, "skipped": 0, "chunks": 0, "retries": 0}
        # A recorded chunk is not loaded again.
        self._db = db.using(idempotent=True)
        self._load = load
        self._name = f"unnamed-{uuid4()}" if load is None else load
        self._copy: CopyStatement | None = None
        self._counted: list[CountedColumn] | None = None

    def load(self, chunk: Chunk) -> None:
        """Load and record a chunk, unless it is recorded."""
        self._attempts, self._claimed = 0, False
        try:
            if self._counted is None:
                self._counted = counted_columns(self._db, chunk.shape)
            for column in self._counted:
                # Before the rows are there, so that no other session gets one of their numbers.
                column.raise_above(chunk, self._db.backend.sequence_nodes(self._db))
            self._target.run(self._attempt, chunk)
        except StatementError as error:
            if bad := _bad_row(error, chunk.rows):
                raise bad from error
            raise
        self.counts["chunks"] += 1
        self.counts["retries"] += self._attempts - 1
        self.counts["rows" if self._claimed else "skipped"] += len(chunk.values)

    def refuse_fewer_chunks(self) -> None:
        """Raise `LoadChanged` if more chunks are recorded than this call had."""
        latest = sa.select(sa.func.max(record.c.chunk)).where(record.c.load == self._name)
        last = self._target.run(lambda session: session.scalar(latest)) or 0
        if last > self.counts["chunks"]:
            raise self._changed(f"there are {self.counts['chunks']} chunks, and {last} were loaded")

    def forget(self) -> int:
        records = sa.delete(record).where(record.c.load == self._name)
        return self._target.run(lambda session: session.connection().execute(records).rowcount)

    @property
    def _target(self) -> Database:
        return self._db.backend.route_load(self._db, self._load, self.node)

    def _attempt(self, session: PinnedSession, chunk: Chunk) -> None:
        self._attempts += 1
        self.node = session.node
        claim = postgresql.insert(record).values(
            load=self._name,
            chunk=chunk.number,
            target=chunk.shape.table.fullname,
            rows=len(chunk.values),
            digest=chunk.digest,
            node=session.node,
        )
        # Waits for any transaction that loads the same chunk at this moment.
        if session.execute(claim.on_conflict_do_nothing().returning(record.c.chunk)).one_or_none() is None:
            self._compare(session, chunk)
            return
        # Stays True if a later attempt finds the chunk recorded: then the COMMIT of this one arrived.
        self._claimed = True
        self._write(session, chunk)

    def _write(self, session: PinnedSession, chunk: Chunk) -> None:
        connection = session.connection()
        self._copy = self._copy or CopyStatement.of(chunk.shape, connection)
        way, rows = self._copy.prepare(chunk) if self._copy else (Way.INSERT, ())
        if self._copy and way is not Way.INSERT:
            self._copy.send(connection, chunk, way, rows)
        else:
            _insert(session, chunk)

    def _compare(self, session: PinnedSession, chunk: Chunk) -> None:
        """Raise `LoadChanged` if the chunk differs from the recorded one."""
        key = (record.c.load == self._name) & (record.c.chunk == chunk.number)
        found = session.execute(sa.select(record.c.target, record.c.rows, record.c.digest).where(key)).one()
        if found.target != chunk.shape.table.fullname:
            raise self._changed(f"it was into {found.target}, not {chunk.shape.table.fullname}")
        if found.rows != len(chunk.values):
            sizes = f"chunk {chunk.number} had {found.rows} rows and has {len(chunk.values)}"
            raise self._changed(f"{sizes}: there are more or fewer rows, or chunk_rows or chunk_bytes differs")
        if found.digest != chunk.digest:
            raise self._changed(f"rows {chunk.rows[0]} to {chunk.rows[-1]} differ from the ones that were loaded")

    def _changed(self, difference: str) -> LoadChanged:
        advice = "Resume a load with the same rows and chunk sizes; give other rows another name"
        return LoadChanged(f"load {self._name!r} was another: {difference}. {advice}", node=self.node)


def _insert(session: PinnedSession, chunk: Chunk) -> None:
    """Insert a chunk; if that fails, insert its rows one by one, to find the one that cannot be inserted."""
    columns = {f"v{number}": column for number, column in enumerate(chunk.shape.columns)}
    typed = zip(columns, chunk.shape.types, strict=True)
    values = {columns[name]: sa.bindparam(name, type_=type_) for name, type_ in typed}
    statement = sa.insert(chunk.shape.table).values(values)
    rows = [dict(zip(columns, row, strict=True)) for row in chunk.values]
    try:
        with session.begin_nested():
            session.execute(statement, rows)
        return
    except _OF_VALUES as error:
        if _bad_row(error, chunk.rows) is None:
            raise
    for number, row in zip(chunk.rows, rows, strict=True):
        try:
            session.execute(statement, [row])
        except _OF_VALUES as error:
            if bad := _bad_row(error, range(number, number + 1)):
                raise bad from error
            raise


_OF_VALUES = (StatementError, ArithmeticError, TypeError, ValueError)
"""Errors that a value causes: on the server, or in the driver before it is sent."""

_MISFITS = ("22", "23", "0A000", "42601", "42804", "42846")
"""SQLSTATEs, or their classes, of values: data_exception, integrity_constraint_violation, feature_not_supported (the
conversion of NaN), syntax_error (in a tsvector), datatype_mismatch, cannot_coerce."""


def _bad_row(error: Exception, rows: range) -> BadRow | None:
    """Translate an error that one of the rows caused; return None for any other error."""
    if not isinstance(error, DBAPIError):
        return BadRow(str(getattr(error, "orig", None) or error), rows)
    state = sqlstate_of(error)
    if not (isinstance(error, DataError | ProgrammingError) if state is None else state.startswith(_MISFITS)):
        return None
    diagnostics = getattr(error.orig, "diag", None)
    detail = getattr(diagnostics, "message_detail", None)
    if line := re.search(r"^COPY .+?, line (\d+)", getattr(diagnostics, "context", None) or "", re.MULTILINE):
        rows = rows[int(line[1]) - 1 :][:1]
    return BadRow(first_line(error) + (f". {detail}" if detail else ""), rows, sqlstate=state)
