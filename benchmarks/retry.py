"""Cost of `db.run` without contention, and its gain when eight threads want the same rows."""

import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.contention import THREADS, Outcome, contend, merged, naive
from benchmarks.ground import ROOT, Ground, child_environment
from benchmarks.keys import pgedge
from benchmarks.rows import Goal, Measured, Row, Skip, at_least, at_most
from benchmarks.schema import tables
from benchmarks.timing import alternate, interleave, per_second, percentile, ratio, short, spread

PEER = ("sqlalchemy-cockroachdb>=2.0.4,<3", "psycopg[binary]>=3.2.10,<4", "pydantic-settings>=2.8")


def without_contention(ground: Ground) -> Measured:
    """Measure a unit of work that reads and changes one row, without contention."""
    project = pgedge(ground)
    found = tables(project)
    plain = sessionmaker(found.engine)

    def work(session: Session) -> None:
        session.get_one(found.Balance, 1).amount += 1

    with project.database({"n1": project.url}) as db:

        def theirs() -> None:
            with plain.begin() as session:
                work(session)

        rounds = []
        for _ in range(ground.effort(15, 3)):
            # Server processes differ by some percent among themselves: each round has new ones.
            found.engine.dispose()
            db.dispose()
            rounds.append(alternate(lambda: db.run(work), theirs, 200))
    value = spread([mine / other for mine, other in rounds])
    mine, other = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Measured(value.value, short(mine), short(other), f"{value}; {short(mine - other)} more")


# Contention


@dataclasses.dataclass(frozen=True)
class Contest:
    """Outcomes of all rounds."""

    naive: list[Outcome]
    ours: list[Outcome]


@functools.cache
def contest(ground: Ground) -> Contest:
    """Run ours and the naive loop in turn, on one server at SERIALIZABLE."""
    project = pgedge(ground)
    found = tables(project)
    engine = create_engine(project.url, isolation_level="SERIALIZABLE", pool_size=THREADS)
    each = ground.effort(150, 40)
    rounds: dict[str, list[Outcome]] = {"naive": [], "ours": []}
    with project.database({"n1": project.url}, pool={"size": THREADS}) as db:
        options = db.using(isolation_level="SERIALIZABLE")

        def played(name: str, run: Any) -> Callable[[], float]:
            def play() -> float:
                outcome = contend(run, found.Balance, found.engine, each=each)
                rounds[name].append(outcome)
                return outcome.rate

            return play

        interleave(
            {"naive": played("naive", naive(engine)), "ours": played("ours", options.run)},
            ground.effort(9, 3),
        )
    engine.dispose()
    # The first round of each filled the pools.
    return Contest(rounds["naive"][1:], rounds["ours"][1:])


def committed(ground: Ground) -> Measured:
    """Compare committed transactions per second with the naive loop."""
    found = contest(ground)
    ours, theirs = ([outcome.rate for outcome in outcomes] for outcomes in (found.ours, found.naive))
    value = ratio(ours, theirs)
    return Measured(
        value.value, per_second(statistics.median(ours)), per_second(statistics.median(theirs)), str(value)
    )


def tail(ground: Ground) -> Measured:
    """Compare the 99th percentile of the time from the call to the commit with the naive loop."""
    found = contest(ground)
    ours, theirs = (percentile(merged(outcomes).latencies, 99) for outcomes in (found.ours, found.naive))
    halves = [percentile(merged(outcomes).latencies, 50) for outcomes in (found.ours, found.naive)]
    return Measured(
        ours / theirs, short(ours), short(theirs), f"p50 {short(halves[0])} against {short(halves[1])}"
    )


def attempts(ground: Ground) -> Measured:
    """Count the calls of the function per commit."""
    found = contest(ground)
    ours, theirs = (merged(outcomes).attempts_per_commit for outcomes in (found.ours, found.naive))
    return Measured(ours, f"{ours:.2f}", f"{theirs:.2f}")


def given_up(ground: Ground) -> Measured:
    """Count units of work that ended in an error."""
    found = contest(ground)
    ours, theirs = (merged(outcomes) for outcomes in (found.ours, found.naive))
    note = f"of {ours.committed + ours.given_up:,}"
    return Measured(ours.given_up + ours.stopped, str(ours.given_up), str(theirs.given_up), note)


# Against sqlalchemy-cockroachdb


@functools.cache
def peers(ground: Ground) -> dict[str, Outcome]:
    """Run ours and `run_transaction` in turn, in a process with the SQLAlchemy that the peer needs."""
    project = pgedge(ground)
    tables(project)
    python = peer_environment()
    process = subprocess.run(
        [
            *(python, "-m", "benchmarks.peer_cockroachdb", project.package),
            *(str(ground.effort(5, 2)), str(ground.effort(150, 40)), str(ground.effort(3, 1))),
        ],
        cwd=ROOT,
        # A URL is a secret, and everybody can list the arguments of a process.
        env={
            **child_environment(ROOT, project.source),
            "BENCH_URL": project.url.render_as_string(hide_password=False),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(process.stderr.strip().rpartition("\n")[2])
    return {name: Outcome(**outcome) for name, outcome in json.loads(process.stdout).items()}


def peer_environment() -> Path:
    """Return the Python of an environment with sqlalchemy-cockroachdb, created on first use.

    Raises:
        Skip: it cannot be installed.
    """
    if sys.prefix == sys.base_prefix:
        raise Skip("run `make bench`: sqlalchemy-cockroachdb goes into an environment inside .venv")
    folder = Path(sys.prefix) / "bench-cockroachdb"
    python, complete = folder / "bin" / "python", folder / "complete"
    if complete.exists():
        return python
    venv.create(folder, clear=True, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEER]
    result = subprocess.run(install, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Skip(
            f"sqlalchemy-cockroachdb cannot be installed: {result.stderr.strip().rpartition(chr(10))[2]}"
        )
    complete.touch()
    return python


def against_run_transaction(ground: Ground) -> Measured:
    """Compare committed transactions per second with the best of the peer's settings that terminate."""
    found = peers(ground)
    bounded = [outcome for name, outcome in found.items() if name.startswith("bounded")]
    best = max(bounded, key=lambda outcome: outcome.rate)
    ours = found["ours"].rate
    return Measured(
        ours / best.rate,
        per_second(ours),
        per_second(best.rate),
        "; ".join(f"{name}: {_describe(outcome)}" for name, outcome in found.items()),
    )


def never_for_ever(ground: Ground) -> Measured:
    """Count units of work that had not ended at the time limit, or ended in an error."""
    found = peers(ground)
    lost = {name: outcome.stopped + outcome.given_up for name, outcome in found.items()}
    theirs = "/".join(str(lost[name]) for name in found if not name.startswith("ours"))
    return Measured(lost["ours"], str(lost["ours"]), theirs, "the peer's settings in the order above")


def _describe(outcome: Outcome) -> str:
    return (
        f"{outcome.rate:,.0f}/s, {outcome.attempts_per_commit:.2f} attempts, "
        f"{outcome.given_up} given up, {outcome.stopped} for ever"
    )


ROWS = [
    Row(
        name="retry: db.run without contention against Session.begin()",
        measure=without_contention,
        goal=at_most(1.05),
    ),
    Row(
        name="retry, hot rows: tx/s against a naive loop",
        measure=committed,
        goal=at_least(1.5),
    ),
    Row(
        name="retry, hot rows: p99 against a naive loop",
        measure=tail,
        goal=at_most(1),
    ),
    Row(
        name="retry, hot rows: attempts per commit",
        measure=attempts,
        goal=at_most(1.7),
        unit="",
    ),
    Row(
        name="retry, hot rows: given up",
        measure=given_up,
        goal=Goal("=", 0),
        unit="",
    ),
    Row(
        name="retry, hot rows: tx/s against run_transaction",
        measure=against_run_transaction,
        goal=at_least(1.5),
    ),
    Row(
        name="retry, hot rows: looping for ever or given up, against run_transaction",
        measure=never_for_ever,
        goal=Goal("=", 0),
        unit="",
    ),
]
