"""`sqlalchemy_cockroachdb.run_transaction` and ours in one process, which `retry.py` starts.

The server is plain PostgreSQL, as in the tests of a project. There ROLLBACK TO SAVEPOINT keeps the snapshot,
so a transaction that lost a race loses it again: for ever, by default.
"""

import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from sqlalchemy import BigInteger, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy_cockroachdb import run_transaction  # type: ignore[import-not-found]

from benchmarks.contention import THREADS, Outcome, RunWork, Work, contend, merged
from benchmarks.timing import interleave

FOR_EVER = 3.0
"""Seconds after which a run with the default settings is stopped."""


class Base(DeclarativeBase):
    """Base of the models."""


class Balance(Base):
    """Row of the table that `schema.py` creates."""

    __tablename__ = "bench_balance"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)


def main(package: str, rounds: int, each: int, slow_rounds: int) -> dict[str, Any]:
    """Let all contend in turn; return the merged outcomes by name."""
    url = os.environ["BENCH_URL"]
    engine = create_engine(url, isolation_level="SERIALIZABLE", pool_size=THREADS)
    factory = sessionmaker(engine)
    db_module: Any = importlib.import_module(f"{package}.db")
    settings_module: Any = importlib.import_module(f"{package}.settings")
    settings = settings_module.Settings(nodes={"n1": url}, admin_nodes={"n1": url}, pool={"size": THREADS})
    db = db_module.Database.from_settings(settings)
    contenders: dict[str, RunWork] = {"ours": db.using(isolation_level="SERIALIZABLE").run}
    contenders["bounded(10, backoff 1 s)"] = bounded(factory, max_retries=10, max_backoff=1)
    contenders["bounded(3)"] = bounded(factory, max_retries=3, max_backoff=0)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in [*contenders, "default"]}

    def played(name: str, run: RunWork, time_limit: float = 60.0) -> Callable[[], float]:
        def play() -> float:
            outcome = contend(run, Balance, engine, each=each, time_limit=time_limit)
            outcomes[name].append(outcome)
            return outcome.rate

        return play

    interleave({name: played(name, run) for name, run in contenders.items()}, rounds)
    for name in contenders:
        del outcomes[name][0]
    for _ in range(slow_rounds):
        played("default", bounded(factory, max_retries=None, max_backoff=0), FOR_EVER)()
    return {name: dataclasses.asdict(merged(found)) for name, found in outcomes.items()}


def bounded(factory: Any, *, max_retries: int | None, max_backoff: int) -> RunWork:
    """Return the peer with these settings, named as in its manual."""

    def run(work: Work) -> object:
        result: object = run_transaction(factory, work, max_retries=max_retries, max_backoff=max_backoff)
        return result

    return run


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *map(int, sys.argv[2:]))))
