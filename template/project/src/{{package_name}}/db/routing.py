"""Choose the node of a unit of work: once, before its first statement.

A node that refused a connection is marked down for a cool-down (a circuit breaker) and other nodes come first; after
the cool-down the preferred node is first again. A unit of work never changes its node.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import Self, TypedDict

from ..limits import RetryPolicy
from .errors import NoNodes, WrongNode


class RouteOptions(TypedDict, total=False):
    """Options of `Database.using`; an option that is not given keeps its value."""

    node: str | None
    """Run on this node and no other."""
    key: Hashable | None
    """Send work with the same key to the same node while that node answers. Keys are compared by `repr`."""
    idempotent: bool
    """Running the work twice has the effect of once, so an ambiguous commit is settled by running the work again."""
    retry: RetryPolicy | None
    """Retry policy; None: that of the database."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """Options in force for a unit of work; see `RouteOptions`."""

    node: str | None = None
    key: Hashable | None = None
    idempotent: bool = False
    isolation_level: str | None = None
    retry: RetryPolicy | None = None
    readonly: bool = False

    @property
    def mode(self) -> str:
        """Access mode of the connection; each mode has its own engine."""
        return "read" if self.readonly else "write"

    @cached_property
    def for_reads(self) -> Self:
        """Return these options for work that only reads."""
        return replace(self, readonly=True)


@dataclass
class Router:
    """Order the nodes for a unit of work, the one to try first in front."""

    nodes: Sequence[str]  # in the order of preference
    _: KW_ONLY
    preferred_node: str | None = None
    cooldown: float = 2.0  # in seconds of `clock`
    clock: Callable[[], float] = time.monotonic
    _down_until: dict[str, float] = field(default_factory=dict, init=False)

    def candidates(self, route: Route) -> list[str]:
        """Return the nodes that may do this work, best first."""
        if not self.nodes:
            raise NoNodes("no node is configured: start a local cluster with `up`, or set the nodes' URLs")
        if route.node is not None:
            if route.node not in self.nodes:
                raise WrongNode(f"there is no node {route.node!r}: the nodes are {', '.join(self.nodes)}")
            return [route.node]
        now = self.clock()
        # Nodes that are down come last instead of being left out: all of them may be down. `sorted` is stable.
        return sorted(self._order(route), key=lambda node: self._down_until.get(node, 0.0) > now)

    def mark_down(self, node: str) -> bool:
        """Put `node` last for the cool-down; return True if it has answered since it was marked down before."""
        is_news = node not in self._down_until
        self._down_until[node] = self.clock() + self.cooldown
        return is_news

    def mark_up(self, node: str) -> None:
        """End the cool-down of `node`, because it answered."""
        self._down_until.pop(node, None)

    def _order(self, route: Route) -> list[str]:
        return sorted(self.nodes, key=self._affinity(route))

    def _affinity(self, route: Route) -> Callable[[str], bytes | bool]:
        if route.key is None:
            return lambda node: node != self.preferred_node
        # Rendezvous hashing: a new node takes an even share of the keys and moves no others.
        key = repr(route.key)
        return lambda node: blake2b(f"{node}\0{key}".encode(), digest_size=8).digest()
