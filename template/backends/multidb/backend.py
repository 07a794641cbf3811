"""Independent PostgreSQL databases, as the running application has to treat each of them.

A unit of work is in one database; no other has any of its rows, and no work goes to another database instead.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from .base import BaseBackend
from .routing import Route as Route
from .routing import RouteOptions as BaseRouteOptions
from .routing import Router

IsolationLevel: TypeAlias = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
"""Isolation levels that a unit of work may ask for."""


class RouteOptions(BaseRouteOptions, total=False):
    """Options of `Database.using`; an option that is not given keeps its value."""

    isolation_level: IsolationLevel | None
    """Isolation level; None: READ COMMITTED. REPEATABLE READ gives a read one snapshot."""


class SingleNodeRouter(Router):
    """Route to one node only: the named one, that of the key, or the preferred one; no other node can stand in."""

    def _order(self, route: Route) -> list[str]:
        return super()._order(route)[:1]


class Backend(BaseBackend[Route]):
    """Nodes that have nothing in common."""

    default_route = Route()

    def router(self, nodes: Sequence[str], *, preferred_node: str | None, cooldown: float) -> Router:
        """Create a router that never sends work to another node instead."""
        return SingleNodeRouter(nodes, preferred_node=preferred_node, cooldown=cooldown)
