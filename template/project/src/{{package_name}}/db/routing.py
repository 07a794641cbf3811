"""Which node a unit of work goes to: decided once, before its first statement.

A node that refused a connection is left alone for a while (a circuit breaker), the next one takes its work, and the
preferred node gets it back when the cool-down is over. A unit of work never moves once it has begun.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from .errors import NoNodes, WrongNode


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """What a unit of work asks of its node."""

    readonly: bool = False
    node: str | None = None
    """This node and no other."""
    key: Hashable | None = None
    """Work with the same key goes to the same home node, as long as that node answers. Told apart by `repr`."""


class Router:
    """Orders the nodes for a unit of work, the one to try first in front."""

    def __init__(
        self,
        nodes: Sequence[str],
        *,
        home: str | None = None,
        cooldown: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes = tuple(nodes)
        self._home = home
        self._cooldown = cooldown
        self._clock = clock
        self._resting_until: dict[str, float] = {}

    def candidates(self, route: Route) -> list[str]:
        """The nodes that may do this work, best first.

        Raises:
            NoNodes: none is configured.
            WrongNode: the route names a node that does not exist.
        """
        if not self._nodes:
            raise NoNodes("no node is configured: start a local cluster with `up`, or set the nodes' URLs")
        if route.node is not None:
            if route.node not in self._nodes:
                raise WrongNode(f"there is no node {route.node!r}: the nodes are {', '.join(self._nodes)}")
            return [route.node]
        order = sorted(self._nodes, key=self._affinity(route))
        now = self._clock()
        # A resting node is the last resort, not out of the question: all may be resting. `sorted` keeps equals in order.
        return sorted(order, key=lambda node: self._resting_until.get(node, 0.0) > now)

    def rest(self, node: str) -> None:
        """Leave `node` alone for the cool-down: it refused a connection or broke one."""
        self._resting_until[node] = self._clock() + self._cooldown

    def recovered(self, node: str) -> None:
        """`node` answered: it takes its work back at once."""
        self._resting_until.pop(node, None)

    def _affinity(self, route: Route) -> Callable[[str], bytes | bool]:
        if route.key is None:
            return lambda node: node != self._home

        # Rendezvous hashing: a node that is added takes an even share of the keys and moves no others.
        key = repr(route.key)
        return lambda node: blake2b(f"{node}\0{key}".encode(), digest_size=8).digest()
