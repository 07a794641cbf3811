"""Settings and clocks of servers, for the checks of their setup."""

import time
from collections.abc import Mapping

from sqlalchemy import Connection, text

MAX_CLOCK_SKEW = 0.5
"""Seconds by which two clocks may differ. Arbitrary: far above what NTP allows, far below what does harm."""

ANSWERS = 5
"""Number of times that a server is asked for its time, unless it answers quickly before."""


def read_settings(connections: Mapping[str, Connection]) -> dict[str, dict[str, str]]:
    """Return the settings of each server by name, as pg_settings has them."""
    query = text("SELECT name, setting FROM pg_settings")
    return {node: dict(map(tuple, connection.execute(query))) for node, connection in connections.items()}


def compare_clocks(connections: Mapping[str, Connection]) -> tuple[dict[str, float], list[str]]:
    """Return the seconds by which each clock is ahead of this machine's, and a line for each that is not as most are.

    The clock nearer to that of this machine counts as right where there are only two.
    """
    skews = {node: _skew(connection) for node, connection in connections.items()}
    ordered = sorted(skews.values())
    right = min(ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2], key=abs)
    problems = []
    for node, skew in skews.items():
        if (off := abs(skew - right)) > MAX_CLOCK_SKEW:
            word = "ahead of" if skew > right else "behind"
            line = f"{node}: its clock is {off:.1f} s {word} that of the others"
            problems.append(f"{line}; let its machine follow the same source of time as theirs")
    return skews, problems


def _skew(connection: Connection) -> float:
    """Return the seconds by which a server's clock is ahead, from the quickest of a few answers.

    A slow answer of a busy machine would look like a difference between the clocks.
    """
    answers: list[tuple[float, float]] = []
    while len(answers) < ANSWERS and not (answers and min(answers)[0] < MAX_CLOCK_SKEW / 10):
        before = time.time()
        theirs = float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())::float8")) or 0)
        took = time.time() - before
        answers.append((took, round(theirs - before - took / 2, 3)))
    return min(answers)[1]
