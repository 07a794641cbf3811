"""Many rows into one table: COPY, a chunk at a time, each chunk a retried transaction of its own.

    bulk_load(db, Account, ({"owner": name} for name in names), load="accounts-2026-11")

The transaction that loads a chunk also records it in `bulk_load_chunk`. So a chunk whose COMMIT got no answer is simply run
again, and a load that was interrupted is resumed by calling it again with the same name and rows: what is recorded is skipped.

Why chunks: a transaction travels as a whole. The other nodes apply one after the other, row by row, and what was committed behind
a big one waits: 0.1 s for ten thousand rows, 6 s for a million (measured with three nodes on two cores). In memory, too, there
is never more than one chunk.
"""

import logging
import re
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    Column,
    DateTime,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DataError, DBAPIError, ProgrammingError, StatementError

from .chunks import BadRow, Chunk, chunks
from .copy import Copy, Unfit
from .database import Database, Options
from .errors import DatabaseError, MisuseError, NodeUnavailable, RetriesExhausted
from .retry import RetryPolicy, first_line, sqlstate_of
from .unit import UnitOfWork

logger = logging.getLogger(__name__)

metadata = MetaData()

record = Table(
    "bulk_load_chunk",
    metadata,
    Column("load", Text, nullable=False),
    Column("chunk", Integer, nullable=False),
    Column("target", Text, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("digest", String(32)),
    Column("node", Text, nullable=False),
    Column("loaded_at", DateTime(timezone=True), server_default=func.now(), nullable=False),
    PrimaryKeyConstraint("load", "chunk", name="pk_bulk_load_chunk"),
)
"""The chunks that are loaded. Rows are only added, and in the end deleted: there is nothing for nodes to disagree about."""


class LoadChanged(DatabaseError):
    """The name belongs to a load of other rows, or of the same rows in chunks of another size."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a load has come."""

    rows: int
    """Loaded by this call."""
    skipped: int
    """Rows that an earlier call had loaded."""
    chunks: int
    """Those skipped included."""
    retries: int
    """How often a chunk was run again."""
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Of the rows loaded by this call."""
        return self.rows / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Loaded(Progress):
    """What a load did, and where."""

    node: str | None
    """None if there were no rows."""


def bulk_load(
    db: Database,
    model: type[Any] | Table,
    rows: Iterable[Mapping[str, Any]],
    *,
    load: str | None = None,
    chunk_rows: int = 10_000,
    node: str | None = None,
    key: Hashable | None = None,
    retry: RetryPolicy | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Loaded:
    """Load `rows` into the table of `model`.

    Values go through the types of the columns and columns that are not mentioned get their defaults, as with an INSERT. What
    belongs to objects does not happen: relationships, validators, events.

    Args:
        db: the database.
        model: a mapped class, or a table.
        rows: from names to values; a name is an attribute's or a column's. The first row says which columns there are. May be
            a generator; it is read a chunk at a time, outside of any transaction.
        load: the name under which the load can be resumed. Its chunks are told by the `repr` of their values, so these must
            come out the same each time, and in the same order. The records stay until `forget_load`, because nobody else can
            know when the same rows will not come again. Without a name the load cannot be resumed and its records are removed
            when it ends.
        chunk_rows: how many rows make a transaction.
        node: load on this node and no other. Whoever resumes a load on another node than the one it began on vouches for it
            that the latter has replicated all of it.
        key: load on the home node of this key. Without `node` and `key`, a load with a name goes to the home node of its
            name, so that two who start the same one meet there; and if it has begun, to the node where it began.
        retry: of each chunk; the database's policy unless given.
        on_progress: is told after each chunk.

    Raises:
        BadRow: a row cannot be loaded; chunks before it stay.
        LoadChanged: the rows are not those that were loaded under this name before.
        NodeUnavailable: the node does not answer; or the name is new here, and a node on which it may be known does not answer.
        RetriesExhausted: a chunk failed again and again for a passing reason; chunks before it stay.
        AmbiguousCommit: so it did after a COMMIT that got no answer; with a name, call again to settle it.
    """
    if chunk_rows < 1:
        raise MisuseError(f"a chunk has one row at least, not {chunk_rows}")
    if load is not None and node is None:
        node = _home_of(db, load)
        key = load if key is None else key
    work = _Load(db, f"unnamed-{uuid4()}" if load is None else load, node, key, retry)
    started = time.monotonic()
    try:
        for chunk in chunks(model, rows, size=chunk_rows, with_digest=load is not None):
            work.load(chunk)
            on_progress(Progress(**work.counts(), seconds=time.monotonic() - started))
        if load is not None:
            work.refuse_fewer_chunks()
    finally:
        if load is None:
            work.forget()
    return Loaded(**work.counts(), seconds=time.monotonic() - started, node=work.node)


def forget_load(db: Database, load: str, *, node: str | None = None) -> int:
    """Remove the records of a load, whose name may then be used for other rows; returns of how many chunks.

    Args:
        db: the database.
        load: the name.
        node: where to do it, if not where the load began.

    Raises:
        NodeUnavailable: as `bulk_load`.
    """
    node = node or _home_of(db, load)
    return 0 if node is None else db.options(node=node, idempotent=True).run(_forget, load)


def _forget(session: UnitOfWork, load: str) -> int:
    return session.connection().execute(delete(record).where(record.c.load == load)).rowcount


def _home_of(db: Database, load: str) -> str | None:
    """The node where a load began, whose records need not have reached the others; None if it has not begun.

    Raises:
        NodeUnavailable: a node that may know does not answer, and no other knows.
    """
    latest = select(record.c.chunk, record.c.node).where(record.c.load == load).order_by(record.c.chunk.desc()).limit(1)
    found: list[tuple[int, str]] = []
    silent: list[str] = []
    for node in db.nodes:
        try:
            # Twice, for a pooled connection may be dead while its node lives.
            last = db.options(node=node, retry=RetryPolicy(attempts=2)).read(
                lambda session: session.execute(latest).one_or_none()
            )
        except (NodeUnavailable, RetriesExhausted):
            silent.append(node)
        else:
            found += [(last.chunk, last.node)] if last else []
    if silent and not found:
        raise NodeUnavailable(
            f"{' and '.join(silent)} cannot be reached, and load {load!r} may have begun there. Wait for it, or say with "
            "node= where to load",
            node=silent[0],
        )
    return max(found)[1] if found else None


class _Load:
    """A load under way: where it runs, and what it has done so far."""

    def __init__(
        self, db: Database, name: str, node: str | None, key: Hashable | None, retry: RetryPolicy | None
    ) -> None:
        self.node = node
        self._db = db
        self._name = name
        self._key = key
        self._retry = retry
        self._copy: Copy | None = None
        self._rows = self._skipped = self._chunks = self._retries = 0
        # Of the chunk at hand.
        self._attempts = 0
        self._claimed = False

    def counts(self) -> dict[str, int]:
        """What is done so far, as `Progress` takes it."""
        return {"rows": self._rows, "skipped": self._skipped, "chunks": self._chunks, "retries": self._retries}

    def load(self, chunk: Chunk) -> None:
        """Load and record one chunk, unless it is recorded."""
        self._attempts, self._claimed = 0, False
        try:
            try:
                self._options().run(self._attempt, chunk, by_copy=True)
            except Unfit as reason:
                logger.info("rows %d to %d take an INSERT: %s", chunk.rows[0], chunk.rows[-1], reason)
                self._attempts -= 1
                self._options().run(self._attempt, chunk, by_copy=False)
        except StatementError as error:
            if bad := _blame(error, chunk):
                raise bad from error
            raise
        self._chunks += 1
        self._retries += self._attempts - 1
        if self._claimed:
            self._rows += len(chunk.values)
        else:
            self._skipped += len(chunk.values)

    def refuse_fewer_chunks(self) -> None:
        """Raise `LoadChanged` if more was loaded under this name than there is now."""
        if self.node is None:
            return
        last = self._options().read(
            lambda session: session.scalar(select(func.max(record.c.chunk)).where(record.c.load == self._name))
        )
        if last is not None and last > self._chunks:
            raise self._changed(f"there are {self._chunks} chunks, and {last} were loaded")

    def forget(self) -> None:
        """Remove the records; where that fails they stay, and mean nothing to anyone."""
        if self.node is not None:
            with suppress(DatabaseError, DBAPIError):
                self._options().run(_forget, self._name)

    def _options(self) -> Options:
        # Idempotent, because a chunk that is recorded is not loaded again.
        return self._db.options(node=self.node, key=self._key, idempotent=True, retry=self._retry)

    def _attempt(self, session: UnitOfWork, chunk: Chunk, *, by_copy: bool) -> None:
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
        # Somebody who loads the same chunk at this moment is waited for.
        if session.execute(claim.on_conflict_do_nothing().returning(record.c.chunk)).one_or_none() is None:
            self._compare(session, chunk)
            return
        # An attempt that finds the chunk recorded after this was preceded by one whose COMMIT had arrived.
        self._claimed = True
        connection = session.connection()
        if self._copy is None and by_copy:
            self._copy = Copy.of(chunk.shape, connection)
        if self._copy is None or not by_copy:
            keys = [column.key for column in chunk.shape.columns]
            session.execute(insert(chunk.shape.table), [dict(zip(keys, row, strict=True)) for row in chunk.values])
        else:
            self._copy.send(connection, chunk)

    def _compare(self, session: UnitOfWork, chunk: Chunk) -> None:
        """Raise `LoadChanged` if the chunk is not the one that is recorded."""
        key = (record.c.load == self._name) & (record.c.chunk == chunk.number)
        found = session.execute(select(record.c.target, record.c.rows, record.c.digest).where(key)).one()
        if found.target != chunk.shape.table.fullname:
            raise self._changed(f"it was into {found.target}, not {chunk.shape.table.fullname}")
        if found.rows != len(chunk.values):
            raise self._changed(
                f"chunk {chunk.number} had {found.rows} rows and has {len(chunk.values)}: "
                "there are more or fewer rows, or chunk_rows is another"
            )
        if found.digest != chunk.digest:
            raise self._changed(f"rows {chunk.rows[0]} to {chunk.rows[-1]} are not the ones that were loaded")

    def _changed(self, what: str) -> LoadChanged:
        return LoadChanged(
            f"load {self._name!r} was another: {what}. Resume a load with the same rows and chunk_rows; "
            "give other rows another name",
            node=self.node,
        )


def _blame(error: StatementError, chunk: Chunk) -> BadRow | None:
    """Whose fault an error is: that of a row, or None."""
    if not isinstance(error, DBAPIError):
        return BadRow(str(error.orig or error), chunk.rows)
    state = sqlstate_of(error)
    if not (isinstance(error, DataError | ProgrammingError) if state is None else state.startswith(("22", "23"))):
        return None
    diagnostics = getattr(error.orig, "diag", None)
    reason = first_line(error)
    if detail := getattr(diagnostics, "message_detail", None):
        reason = f"{reason}. {detail}"
    rows = chunk.rows
    if line := re.search(r"^COPY .+?, line (\d+)", getattr(diagnostics, "context", None) or "", re.MULTILINE):
        number = int(line[1])
        rows = rows[number - 1 : number]
    return BadRow(reason, rows, sqlstate=state)
