"""Writers at work, in a process of their own, so that a migration does not share an interpreter with them.

Run by `schema_changes.py`.
"""

import importlib
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from sqlalchemy import text

WRITERS = 3
"""Number of writers; on a mesh one for each node."""

PAUSE = 0.002
"""Seconds between two units of work."""


class Unit(NamedTuple):
    """One unit of work, retries included, by the monotonic clock, which all processes share."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """Time that the caller of `db.run` waited."""
        return self.ended - self.began


def write(
    pipe: Connection, source: str, package: str, urls: Mapping[str, Any], nodes: Sequence[str | None]
) -> None:
    """Write to each table that the pipe names until the next message; answer with the units of work."""
    sys.path.insert(0, source)
    runtime: Any = importlib.import_module(f"{package}.db")
    policy = runtime.RetryPolicy(attempts=100_000, deadline=60)
    with runtime.Database(urls, retry=policy) as db:
        while (table := pipe.recv()) is not None:
            writers = [_Writer(db if node is None else db.using(node=node), table) for node in nodes]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.warm.wait()
            pipe.send(None)
            pipe.recv()
            for writer in writers:
                writer.stop.set()
            for writer in writers:
                writer.join()
            failed = [writer.failure for writer in writers if writer.failure]
            # An error of a driver cannot be unpickled.
            error = RuntimeError(f"a writer of {table} failed: {failed[0]}") if failed else None
            pipe.send(error or [unit for writer in writers for unit in writer.units])


class _Writer(threading.Thread):
    """Insert a row, update it, and so on."""

    def __init__(self, db: Any, table: str) -> None:
        super().__init__(daemon=True)
        self.db, self.table = db, table
        self.units: list[Unit] = []
        self.failure: Exception | None = None
        self.warm, self.stop = threading.Event(), threading.Event()

    def run(self) -> None:
        insert = text(f"INSERT INTO {self.table} (id, number) VALUES (:id, 1)")  # noqa: S608
        update = text(f"UPDATE {self.table} SET number = number + 1 WHERE id = :id")  # noqa: S608
        try:
            while not self.stop.is_set():
                key = uuid.uuid4()
                for statement in (insert, update):
                    began = time.monotonic()
                    self.db.run(_execute, statement, key)
                    self.units.append(Unit(began, time.monotonic()))
                    time.sleep(PAUSE)
                if not self.warm.is_set():
                    # The first unit of work has opened the connection.
                    self.units.clear()
                    self.warm.set()
        except Exception as error:
            self.failure = error
        finally:
            self.warm.set()


def _execute(session: Any, statement: Any, key: uuid.UUID) -> None:
    session.execute(statement, {"id": key})
