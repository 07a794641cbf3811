"""A PostgreSQL writer and its readers, as the running application has to treat them.

One node takes writes; the others replay its WAL a moment later and refuse writes. A failover makes another node the
writer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

from sqlalchemy import Connection

from ..settings import Settings
from .base import BaseBackend
from .deadline import deadlines
from .errors import DistributedSQLError
from .replicas import ReplicaRouter, remember_write
from .routing import Route as BaseRoute
from .routing import RouteOptions as BaseRouteOptions
from .routing import Router

IsolationLevel: TypeAlias = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
"""Isolation levels that a unit of work may ask for."""


class RouteOptions(BaseRouteOptions, total=False):
    """Options of `Database.using`; an option that is not given keeps its value."""

    isolation_level: IsolationLevel | None
    """Isolation level; None: READ COMMITTED. REPEATABLE READ gives a read one snapshot."""
    max_lag: float | None
    """Seconds that a reader may be behind; None: any number."""


@dataclass(frozen=True, kw_only=True)
class Route(BaseRoute):
    """Options in force for a unit of work; see `RouteOptions`."""

    max_lag: float | None = None


class Backend(BaseBackend[Route]):
    """One writer and its readers."""

    def __init__(self, *, read_wait: float = 0.1, max_lag: float | None = None, commit_timeout: float = 5.0) -> None:
        """Create the backend. Durations are in seconds.

        Args:
            read_wait: time that a reader gets to replay the last write; then the writer serves the read.
            max_lag: seconds that a reader may be behind, for reads that name no limit; None: any number.
            commit_timeout: longest COMMIT; no timeout of the server ends one that waits for a standby.
        """
        self.default_route = Route(max_lag=max_lag)
        self._read_wait = read_wait
        self._commit_timeout = commit_timeout

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Create the backend as the settings describe it."""
        return cls(read_wait=settings.read_wait, max_lag=settings.max_lag, commit_timeout=settings.commit_timeout)

    def router(self, nodes: Sequence[str], *, preferred_node: str | None, cooldown: float) -> Router:
        """Create a router that sends writes to the writer and reads to the readers."""
        self._router = ReplicaRouter(nodes, preferred_node=preferred_node, cooldown=cooldown, wait=self._read_wait)
        return self._router

    def refusal(self, connection: Connection, node: str, route: Route) -> DistributedSQLError | None:
        """Return the reason why a node cannot do this work: it is a reader, or too far behind."""
        return self._router.refusal(connection, node, readonly=route.readonly, max_lag=route.max_lag)

    @contextmanager
    def committing(self, connection: Connection, *, readonly: bool, in_doubt: bool) -> Iterator[None]:
        """Limit the time of COMMIT and take a token of the write."""
        if in_doubt:
            # Only a commit that writes can prove that the rows found here survive: a standby has to confirm it.
            connection.exec_driver_sql("SELECT pg_logical_emit_message(true, 'settled', '')")
        driver_connection: Any = connection.connection.driver_connection
        with deadlines.limit(driver_connection.fileno(), self._commit_timeout):
            yield
        if not readonly:
            remember_write(connection)
