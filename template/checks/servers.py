"""Settings and clocks of servers, for the checks of their setup."""

import time
from collections.abc import Mapping

from sqlalchemy import Connection, text

MAX_CLOCK_SKEW = 0.5
"""Seconds by which two clocks may differ. Arbitrary: far above what NTP allows, far below what does harm."""


def read_settings(connections: Mapping[str, Connection]) -> dict[str, dict[str, str]]:
    """Return the settings of each server by name, as pg_settings has them."""
    query = text("SELECT name, setting FROM pg_settings")
    return {node: dict(map(tuple, connection.execute(query))) for node, connection in connections.items()}


def compare_clocks(connections: Mapping[str, Connection]) -> tuple[dict[str, float], list[str]]:
    """Return the seconds by which each clock is ahead of this machine's, and a complaint if they differ too much."""
    skews: dict[str, float] = {}
    for node, connection in connections.items():
        before = time.time()
        theirs = float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())::float8")) or 0)
        skews[node] = round(theirs - (before + time.time()) / 2, 3)
    differ = max(skews.values()) - min(skews.values()) > MAX_CLOCK_SKEW
    return skews, [f"the clocks differ by more than {MAX_CLOCK_SKEW} s: {skews}"] if differ else []
