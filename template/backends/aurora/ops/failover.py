"""Make a reader the writer of the local cluster, and bring a former writer back as a reader.

In production the platform does this; here it shows what the application goes through.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.engine import URL

from .cluster import Cluster, ClusterError
from .connections import Unreachable, connect, connect_all
from .topology import links, writers

PATIENCE = 20.0
"""Seconds that a reader gets to follow the new writer; it takes less than one."""


@dataclass(frozen=True)
class Failover:
    """What a failover did."""

    former: str | None
    """The writer until then; None if there was none that answered."""
    writer: str
    seconds: float
    """From the moment the former writer was gone until the new one took writes."""


def fail_over(cluster: Cluster, node: str | None = None, *, kill: bool = False, force: bool = False) -> Failover:
    """Stop the writer and promote a reader.

    Args:
        cluster: a local one.
        node: the reader; if absent the one that has received most of the log.
        kill: stop the writer as a power cut would.
        force: promote although a node that does not answer may have what the others have not.

    Raises:
        ClusterError: no reader can be promoted, or what was acknowledged could be lost with it.
    """
    former = find_writer(cluster)
    if node is not None:
        # Before anything is stopped.
        _refuse_to_promote(cluster, node, former)
    urls = cluster.admin_urls()  # first: while nobody writes, every question costs
    # A writer that is stopped in good order first sends all it has; of one that is lost, any reader may have the last commit.
    # Where no writer answers, one of the silent nodes was it.
    silent = [name for name in urls if name != former and not _answers(name, urls[name])]
    if (kill or former is None) and len(silent) > (former is None) and not force:
        raise ClusterError(
            f"No answer from {' and '.join(silent)}: a reader among them may have what no other has, what was committed last. "
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
        raise ClusterError(
            f"{best} has received more of the log than {chosen}: what was committed last may be there only. Promote {best}."
        )
    with connect(urls[chosen], node=chosen, statement_timeout=PATIENCE) as connection:
        if not connection.scalar(text("SELECT pg_promote(true, 15)")):
            raise ClusterError(f"{chosen} did not become a writer within 15 s; its log has the reason.")
        seconds = time.monotonic() - gone
        # A former writer that returns compares its history with what the last checkpoint says.
        connection.execute(text("CHECKPOINT"))
    wait_for_readers(cluster, chosen, set(received) - {chosen})
    return Failover(former, chosen, seconds)


def _refuse_to_promote(cluster: Cluster, node: str, former: str | None) -> None:
    _known(cluster, node)
    if node == former:
        raise ClusterError(f"{node} is the writer already.")
    if not _answers(node, cluster.admin_urls()[node]):
        raise ClusterError(f"{node} cannot be reached, so it cannot be promoted: start it with `start {node}`.")


def _answers(node: str, url: URL) -> bool:
    try:
        with connect(url, node=node):
            return True
    except Unreachable:
        return False


def _known(cluster: Cluster, node: str) -> None:
    if node not in cluster.admin_urls():
        raise ClusterError(f"There is no node {node!r}: the nodes are {', '.join(cluster.admin_urls())}.")


def bring_back(cluster: Cluster, node: str) -> str:
    """Let `node` follow the present writer, whatever it was before; returns the writer's name.

    Raises:
        ClusterError: there is nobody to follow, or `node` does not come to follow.
    """
    _known(cluster, node)
    others = {name: url for name, url in cluster.admin_urls().items() if name != node}
    writer = find_writer(cluster, among=others)
    if writer is None:
        raise ClusterError(f"No other node takes writes, so {node} has nobody to follow. Promote one with `failover`.")
    cluster.rejoin_node(node)
    wait_for_readers(cluster, writer, {node})
    return writer


def find_writer(cluster: Cluster, among: Mapping[str, object] | None = None) -> str | None:
    """The node that takes writes; None if none of those that answer does.

    Raises:
        ClusterError: there are two.
    """
    found = []
    for node, url in cluster.admin_urls().items():
        if among is None or node in among:
            try:
                with connect(url, node=node) as connection:
                    found += writers({node: connection})
            except Unreachable:
                continue
    if len(found) > 1:
        raise ClusterError(
            f"{' and '.join(found)} both take writes. Stop the one that is wrong with `stop`, then bring it back with `rejoin`."
        )
    return found[0] if found else None


def wait_for_readers(cluster: Cluster, writer: str, readers: set[str]) -> None:
    """Return when all of `readers` follow `writer`.

    Raises:
        ClusterError: one does not.
    """
    deadline = time.monotonic() + PATIENCE
    urls = {node: url for node, url in cluster.admin_urls().items() if node == writer or node in readers}
    with connect_all(urls) as connections:
        while missing := [link for link in links(connections) if not link.is_up]:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"not followed: {', '.join(map(str, missing))}. The reader's log has the reason; `rejoin` rewinds it."
                )
            time.sleep(0.02)


def _received(urls: Mapping[str, URL]) -> dict[str, int]:
    """How far the log has come on each reader that answers, once nothing more arrives."""
    found: dict[str, int] = {}
    position = text("""
        SELECT pg_is_in_recovery(), greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn,
               NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')
    """)
    for node, url in urls.items():
        try:
            with connect(url, node=node) as connection:
                deadline = time.monotonic() + PATIENCE
                while True:
                    is_reader, received, is_done = connection.execute(position).one()
                    if is_done or not is_reader or time.monotonic() > deadline:
                        break
                    time.sleep(0.01)
                if is_reader:
                    found[node] = int(received)
        except Unreachable:
            continue
    return found
