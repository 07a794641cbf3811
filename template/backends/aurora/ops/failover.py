"""Promote a reader of the local cluster, and make a former writer a reader again.

In production the platform does this; here it shows how the application copes with it.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from .cluster import Cluster, ClusterError
from .cluster.compose import Compose
from .cluster.embedded import Embedded
from .cluster.nodes import find_node
from .connections import Unreachable, connect, connect_all
from .topology import Topology

FOLLOW_TIMEOUT = 20.0
"""Seconds until a reader must follow the new writer; it takes less than one."""


@dataclass(frozen=True)
class Failover:
    """Result of a failover."""

    former: str | None
    """Node that was the writer; None if no writer answered."""
    writer: str
    seconds: float
    """Time from the end of the former writer until the new writer took writes."""


def fail_over(cluster: Cluster, node: str | None = None, *, kill: bool = False, force: bool = False) -> Failover:
    """Stop the writer and promote a reader.

    Args:
        cluster: a local cluster.
        node: the reader to promote; if absent, the reader that has received most of the WAL.
        kill: stop the writer as a power cut would.
        force: promote even if a node that does not answer may have commits that the others lack.

    Raises:
        ClusterError: no reader can be promoted, or acknowledged commits could be lost.
    """
    former = find_writer(cluster)
    urls = cluster.admin_urls()  # before the writer is stopped, because it takes time
    answering = {name for name, _ in _reachable(urls)}
    if node is not None:
        find_node(node)
        if node == former:
            raise ClusterError(f"{node} is the writer already.")
        if node not in answering:
            raise ClusterError(f"{node} cannot be reached, so it cannot be promoted: start it with `start {node}`.")
    # A writer sends all its WAL before an orderly stop; after a kill, any reader may be the only one with the last
    # commit. If no writer answers, one of the silent nodes was the writer.
    silent = [name for name in urls if name != former and name not in answering]
    if (kill or former is None) and len(silent) > (former is None) and not force:
        raise ClusterError(
            f"No answer from {' and '.join(silent)}: a reader among them may be the only node with the last commits. "
            "Start it first, or accept the loss with --force."
        )
    if former is not None:
        cluster.stop_node(former, kill=kill)
    gone = time.monotonic()
    received = _received(urls)
    if not received:
        raise ClusterError("No reader answers, so none can be promoted. Start one with `start`.")
    best = max(received, key=lambda name: received[name])
    chosen = node or best
    if chosen not in received:
        raise ClusterError(f"{chosen} does not answer, so it cannot be promoted; {best} could be.")
    if received[chosen] < received[best]:
        raise ClusterError(f"{best} has received more WAL than {chosen}, perhaps the last commits. Promote {best}.")
    with connect(urls[chosen], node=chosen, statement_timeout=FOLLOW_TIMEOUT, pinned=True) as connection:
        if not connection.scalar(text("SELECT pg_promote(true, 15)")):
            raise ClusterError(f"{chosen} did not become a writer within 15 s; its server log has the reason.")
        seconds = time.monotonic() - gone
        # A former writer that returns compares its timeline with the last checkpoint.
        connection.execute(text("CHECKPOINT"))
    _wait_for_readers(cluster, chosen, set(received) - {chosen})
    return Failover(former, chosen, seconds)


def bring_back(cluster: Cluster, node: str) -> str:
    """Make `node` a reader of the present writer, whatever it was before; return the writer's name.

    Raises ClusterError if no other node takes writes, or if `node` does not follow.
    """
    find_node(node)
    writer = find_writer(cluster, but=node)
    if writer is None:
        raise ClusterError(f"No other node takes writes, so {node} has none to follow. Promote one with `failover`.")
    cast("Compose | Embedded", cluster).rejoin_node(node)
    _wait_for_readers(cluster, writer, {node})
    return writer


def find_writer(cluster: Cluster, *, but: str | None = None) -> str | None:
    """Return the node other than `but` that takes writes, or None; raise ClusterError if several do."""
    urls = {node: url for node, url in cluster.admin_urls().items() if node != but}
    found = [node for node, connection in _reachable(urls) if Topology({node: connection}).writers()]
    if len(found) > 1:
        raise ClusterError(
            f"{' and '.join(found)} both take writes. Stop the wrong one with `stop`, then bring it back with `rejoin`."
        )
    return found[0] if found else None


def _wait_for_readers(cluster: Cluster, writer: str, readers: set[str]) -> None:
    deadline = time.monotonic() + FOLLOW_TIMEOUT
    urls = {node: url for node, url in cluster.admin_urls().items() if node == writer or node in readers}
    with connect_all(urls, pinned=True) as connections:
        topology = Topology(connections)
        while missing := [link for link in topology.links() if not link.is_up]:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"not followed: {', '.join(map(str, missing))}. The reader's server log has the reason; "
                    "`rejoin` rewinds it."
                )
            time.sleep(0.02)


def _reachable(urls: Mapping[str, URL]) -> Iterator[tuple[str, Connection]]:
    """Yield a connection to each node that answers."""
    for node, url in urls.items():
        with suppress(Unreachable), connect(url, node=node, pinned=True) as connection:
            yield node, connection


def _received(urls: Mapping[str, URL]) -> dict[str, int]:
    """Return the WAL position in bytes that each reader has received, after its receiver has ended."""
    found: dict[str, int] = {}
    position = text("""
        SELECT pg_is_in_recovery(), greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn,
               NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')
    """)
    for node, connection in _reachable(urls):
        deadline = time.monotonic() + FOLLOW_TIMEOUT
        while True:
            is_reader, received, is_done = connection.execute(position).one()
            if is_done or not is_reader or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        if is_reader:
            found[node] = int(received)
    return found
