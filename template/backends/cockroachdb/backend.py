"""CockroachDB, as the running application has to treat it.

One database is spread over all nodes, and every node serves all of it. Transactions are SERIALIZABLE: the loser of a
race gets 40001, perhaps only from COMMIT. SQLSTATEs: https://www.cockroachlabs.com/docs/stable/common-errors
"""

import logging
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

from sqlalchemy import Engine

from ..limits import PoolLimits, Timeouts
from ..settings import Settings
from .base import BaseBackend
from .connection import SETTING, prepare
from .errors import MisuseError
from .routing import Route as BaseRoute
from .routing import RouteOptions as BaseRouteOptions
from .routing import Router

logger = logging.getLogger(__name__)

IsolationLevel: TypeAlias = Literal["READ COMMITTED", "SERIALIZABLE"]
"""Isolation levels that a unit of work may ask for. READ COMMITTED loses updates of rows that are not locked first."""

CONNECTIONS_PER_VCPU = 4
"""Useful number of active connections per vCPU of the cluster: more only wait for each other.
https://www.cockroachlabs.com/docs/stable/connection-pooling"""


class RouteOptions(BaseRouteOptions, total=False):
    """Options of `Database.using`; an option that is not given keeps its value."""

    isolation_level: IsolationLevel | None
    """Isolation level; None: SERIALIZABLE."""
    stale: bool
    """Read the database as it was about five seconds ago: the nearest replica answers, without waiting for writers."""


@dataclass(frozen=True, kw_only=True)
class Route(BaseRoute):
    """Options in force for a unit of work; see `RouteOptions`."""

    stale: bool = False

    @property
    def mode(self) -> str:
        """Access mode of the connection.

        Raises:
            MisuseError: a stale route is to be written to.
        """
        if not self.stale:
            return "read" if self.readonly else "write"
        if not self.readonly:
            raise MisuseError("stale data can only be read: use db.using(stale=True).read(…)")
        return "stale read"


class Backend(BaseBackend[Route]):
    """One database that every node serves."""

    default_route = Route()
    isolation_level = "SERIALIZABLE"
    # 58C00 and 58C01: the node does not reach a majority of the replicas.
    unavailable = BaseBackend.unavailable | {"58C00", "58C01"}
    # XXUUU has every error without a code, such as a link between nodes that broke ("rpc error: code = Unavailable").
    stands_for = {("XXUUU", "rpc error"): "08006"}
    login_refused = re.compile(
        f"{BaseBackend.login_refused.pattern}|password authentication|is not valid|NOLOGIN|certificate|identity"
    )
    # COPY takes the text format from every server of this line.
    binary_copy = False
    # Each row is written to a majority of the nodes; a transaction and its indexes have to fit into commands of 64 MB.
    chunk_rows = 2_000
    chunk_bytes = 4_000_000

    def __init__(self, *, cluster_vcpus: int | None = None) -> None:
        """Create the backend.

        Args:
            cluster_vcpus: vCPUs of all nodes together; if given, pools that are too large for them are warned of.
        """
        self._cluster_vcpus = cluster_vcpus

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Create the backend as the settings describe it."""
        return cls(cluster_vcpus=settings.cluster_vcpus)

    def router(self, nodes: Sequence[str], *, preferred_node: str | None, cooldown: float) -> Router:
        """Create a router that spreads work over all nodes."""
        return SpreadingRouter(nodes, preferred_node=preferred_node, cooldown=cooldown)

    def session_settings(self, mode: str, timeouts: Timeouts) -> dict[str, str]:
        """Return the settings of a connection; a stale read asks for follower reads.

        A DDL statement in a transaction does not commit what came before it.
        """
        settings = super().session_settings(mode, timeouts) | {SETTING: "off"}
        return settings | {"default_transaction_use_follower_reads": "on"} if mode == "stale read" else settings

    def configure_engine(self, engine: Engine, node: str, *, statement_timeout: float) -> None:
        """Let the engine's connections hang up on a silent node, and refuse servers that are not CockroachDB."""
        prepare(engine, node, statement_timeout=statement_timeout)

    def check_pool(self, engine: Engine, node: str, pool: PoolLimits, *, nodes: int) -> None:
        """Warn of pools that together are larger than the cluster; no node has a limit of its own."""
        most = nodes * pool.max_connections
        if self._cluster_vcpus and most > (room := CONNECTIONS_PER_VCPU * self._cluster_vcpus):
            self._cluster_vcpus = None
            logger.warning(
                "the cluster has work for %d connections, but %d process(es) may open %d: lower POOL_SIZE",
                *(room, pool.processes, most),
            )


class SpreadingRouter(Router):
    """Spread work over all nodes, because each serves everything; a preferred node or the key's node comes first."""

    def _order(self, route: BaseRoute) -> list[str]:
        shuffled = random.sample(self.nodes, len(self.nodes))
        return sorted(shuffled, key=self._affinity(route))
