"""pgEdge (PostgreSQL with Spock), as the running application has to treat it.

Each node is a PostgreSQL server of its own that takes writes. Locks, uniqueness and foreign keys hold on one node; a
transaction that one node committed reaches the others a moment later. SERIALIZABLE, too, holds on one node only.
"""

from typing import Any, Literal, TypeAlias

from sqlalchemy import select

from ..limits import RetryPolicy
from .base import BaseBackend, D
from .errors import NodeUnavailable, RetriesExhausted
from .routing import Route as Route
from .routing import RouteOptions as BaseRouteOptions

IsolationLevel: TypeAlias = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
"""Isolation levels that a unit of work may ask for."""


class RouteOptions(BaseRouteOptions, total=False):
    """Options of `Database.using`; an option that is not given keeps its value."""

    isolation_level: IsolationLevel | None
    """Isolation level; None: READ COMMITTED. REPEATABLE READ gives a read one snapshot."""


class Backend(BaseBackend[Route]):
    """Several nodes, each with a history of its own."""

    default_route = Route()
    commits_are_shared = False
    # With `spock.readonly` a write is an internal_error: "spock: invalid statement for a read-only cluster".
    stands_for = {("XX000", "read-only"): "25006"}
    chunk_rows = 10_000
    """The other nodes apply a transaction as a whole, and later transactions wait for it: 0.1 s for ten thousand rows,
    6 s for a million (measured with three nodes on two cores)."""

    def route_load(self, db: D, load: str | None, node: str | None) -> D:
        """Keep a bulk load on the node where it began, because other nodes may not have its records yet.

        A load that has not begun goes to the given node or key, else to the node of its name as a key, so that two
        calls with the same name meet.
        """
        if db.route.node is None and node is None and load is not None:
            node = _begun_on(db, load)
            if node is None and db.route.key is None:
                return db.using(key=load)
        return db if node is None else db.using(node=node)

    def sequence_nodes(self, db: D) -> list[D]:
        """Return `db` with the route to each node: the position of a sequence is not replicated."""
        return [db.using(node=node) for node in db.nodes]


def _begun_on(db: D, load: str) -> str | None:
    """Return the node where a load began; None if it has not begun."""
    # The bulk load imports this module.
    from .bulk import record

    latest = select(record.c.chunk, record.c.node).where(record.c.load == load).order_by(record.c.chunk.desc()).limit(1)
    found: list[Any] = []
    silent: list[str] = []
    for node in db.nodes:
        # Two attempts, because a pooled connection may be dead while its node lives.
        once = db.using(node=node, retry=RetryPolicy(attempts=2))
        try:
            found += once.read(lambda session: session.execute(latest).all())
        except (NodeUnavailable, RetriesExhausted):
            silent.append(node)
    if silent and not found:
        advice = "Wait until it can be reached, or choose the node with db.using(node=…)"
        message = f"{' and '.join(silent)} cannot be reached, and load {load!r} may have begun there. {advice}"
        raise NodeUnavailable(message, node=silent[0])
    return max(found)[1] if found else None
