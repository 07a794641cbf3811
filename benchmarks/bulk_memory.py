"""Measure the growth of a process that loads rows.

Run by `bulk.py` in a process of its own, for a peak cannot be reset.
"""

import importlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.orm import DeclarativeBase, Mapped


def main(package: str, count: int) -> int:
    """Load `count` rows; return by how many bytes the peak of resident memory rose."""
    db_module: Any = importlib.import_module(f"{package}.db")
    settings_module: Any = importlib.import_module(f"{package}.settings")
    bulk: Any = importlib.import_module(f"{package}.db.bulk")

    class Base(DeclarativeBase):
        pass

    class Ours(db_module.PrimaryKeyMixin, Base):  # type: ignore[misc]
        __tablename__ = "bench_ours"
        name: Mapped[str]
        value: Mapped[int]

    def rows(number: int) -> Iterator[dict[str, Any]]:
        return ({"name": f"name {value}", "value": value} for value in range(number))

    nodes = {"n1": os.environ["BENCH_URL"]}
    settings = settings_module.Settings(nodes=nodes, admin_nodes=nodes)
    with db_module.Database.from_settings(settings) as db:
        # Imports, connections and caches are there before the first row counts.
        bulk.bulk_load(db, Ours, rows(1))
        before = peak()
        bulk.bulk_load(db, Ours, rows(count))
        return peak() - before


def peak() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux a program inherits the peak of the one that started it.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2])))
