"""The base class of all checks, the context that a check gets, the result that it returns, and how checks are run."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property, partial
from inspect import getdoc
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import URL, Connection, Select, text
from sqlalchemy.exc import DBAPIError

from ...db import PoolLimits
from ...db.retry import first_line, refuses_writes, sqlstate_of
from ..base import OperationError, TopologyError
from ..cluster import Cluster
from ..cluster.nodes import ROLES
from ..connections import Unreachable, connect_all, refuse_writes
from ..migrate import drop_scratch, scratch_schemas
from ..topology import Topology
from .scratch import Scratch


class Status(StrEnum):
    """Outcome of a check. A SKIP is never a pass."""

    PASS = "PASS"  # noqa: S105
    WARN = "WARN"
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True)
class CheckResult:
    """Result of a check: one line that names the node and the cause, and the numbers behind it."""

    status: Status
    summary: str
    evidence: Mapping[str, object] = field(default_factory=dict)


passed, warned, failed, skipped = (partial(CheckResult, status) for status in Status)


def judge(problems: list[str], summary: str, evidence: Mapping[str, object], doubts: Sequence[str] = ()) -> CheckResult:
    """Return a FAIL with the problems if there are any, else a WARN with the doubts, else a PASS with the summary."""
    if doubts:
        evidence = {**evidence, "doubts": doubts}
    if problems:
        return failed(_first(problems), {**evidence, "problems": problems})
    return warned(_first(doubts), evidence) if doubts else passed(summary, evidence)


def _first(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
    return "; ".join(lines[:5]) + more


MAX_ROWS = 1_000_000
"""Rows of a table, by the server's estimate, above which no check reads all of it: it would take minutes."""


class WouldWrite(OperationError):
    """A check asks for something to write to in a run that only reads, as if a server had refused the write."""

    sqlstate = "25006"


class LacksPrivilege(OperationError):
    """The role of a connection sees nothing of what a check compares, as if a server had refused the query."""

    sqlstate = "42501"


@dataclass(frozen=True)
class CheckContext:
    """The cluster to check, in one run."""

    urls: Mapping[str, URL]
    """URL of each node for the application's role."""
    admin_urls: Mapping[str, URL]
    """URL of each node for a role that may create schemas and read the state of replication."""
    seed: int
    """Seed of all random choices, to repeat a run."""
    owner_urls: Mapping[str, URL] = field(kw_only=True)
    """URL of each node for the role that owns the tables."""
    project: Path = Path()
    """Folder with an `alembic.ini` for this program; else the revisions are those of the package."""
    cluster: Cluster | None = None
    """The local cluster, for checks that stop nodes; without it they are skipped."""
    pool: PoolLimits = field(default_factory=PoolLimits)
    """Pool of the application, which needs room on every node."""
    transaction_pooler: bool = False
    """`urls` lead to a pooler in transaction mode; those of `admin_urls` never do."""
    read_only: bool = False
    """The servers refuse all writes, and checks that write or lack a privilege are skipped."""

    _idle: "_Idle" = field(default_factory=lambda: _Idle(), init=False, repr=False, compare=False)

    @property
    def application(self) -> str:
        """The application's role."""
        return self._role("application", self.urls)

    @property
    def owner(self) -> str:
        """The role that owns the tables."""
        return self._role("owner", self.owner_urls)

    def _role(self, role: str, urls: Mapping[str, URL]) -> str:
        """Return the role of the URLs; the reader or the monitor may log in for the one with the usual name."""
        name = next(iter(urls.values())).username or ""
        return ROLES[role] if name in (ROLES["reader"], ROLES["monitor"]) else name

    @cached_property
    def scratch(self) -> Scratch:
        """The schema that checks write to; created on first use, dropped at the end."""
        if self.read_only:
            raise WouldWrite("would write")
        with self.topology() as topology:
            users = {self.application, self.owner}
            return Scratch(topology, self.urls, users, transaction_pooler=self.transaction_pooler)

    @contextmanager
    def topology(self, **options: Any) -> Iterator[Topology]:
        """Connect to every node, in autocommit, as the role of `admin_urls`, with SQLAlchemy's execution options.

        Without options, the connections of an earlier call are used again; checks do not change their sessions.
        """
        with ExitStack() as opened:
            connections = None if options else self._idle_connections(opened)
            if connections is None:
                connections = opened.enter_context(connect_all(self.admin_urls, pinned=True))
            for connection in connections.values():
                connection.execution_options(**options)
                # Views of the state of a server are empty then, as if nothing were there.
                if self.read_only and connection.scalar(text(_SEES_STATE)) is False:
                    raise LacksPrivilege(f"{connection.engine.url.username} does not see the state of a server")
            yield Topology(connections)
            # Not after an error.
            if self._idle.is_kept and not options:
                self._idle.sets.append((opened.pop_all(), connections))

    def _idle_connections(self, opened: ExitStack) -> dict[str, Connection] | None:
        """Return connections that an earlier call has opened and that still work; `opened` closes them."""
        with suppress(IndexError, DBAPIError):
            held, connections = self._idle.sets.pop()
            opened.enter_context(held)
            for connection in connections.values():
                connection.exec_driver_sql("SELECT 1")
            return connections
        return None

    @contextmanager
    def on_scratch(self) -> Iterator[Topology]:
        """Connect to every node as the application's role, for queries of scratch tables."""
        with connect_all(self.urls, transaction_pooler=self.transaction_pooler) as connections:
            for connection in connections.values():
                connection.execution_options(**self.scratch.options)
            yield Topology(connections)

    @contextmanager
    def alone(self, *, wait: float = 120.0) -> Iterator[None]:
        """Keep other runs away, whose load and lost nodes the checks would find; drop what killed runs have left.

        A run that only reads does neither.

        Args:
            wait: time in seconds to wait for another run to end.

        Raises:
            MigrationError: another run goes on for longer; the message names its session.
        """
        with ExitStack() as held:
            held.enter_context(self._idle.kept())
            if self.read_only:
                with refuse_writes():
                    yield
                return
            # If a node cannot be reached, the checks report that, and those that need it are skipped.
            with suppress(Unreachable, TopologyError, DBAPIError):
                topology = held.enter_context(self.topology())
                held.enter_context(topology.verify_lock(wait=wait))
                if left := scratch_schemas(topology):
                    with topology.migration_lock(wait=wait):
                        drop_scratch(topology, left)
            yield

    def check_sight(self) -> None:
        """Raise LacksPrivilege in a run that only reads if the role may not use the schema of the tables."""
        if self.read_only:
            with connect_all(self.owner_urls) as connections:
                for node, connection in connections.items():
                    if connection.scalar(text("SELECT current_schema()")) is None:
                        role = self.owner_urls[node].username
                        raise LacksPrivilege(f"{node}: {role} may not use the schema of the tables")

    def read_everywhere(self, query: Select[Any]) -> dict[str, list[Any]]:
        """Return the first column of a query of scratch tables on every node, once all nodes have caught up."""
        with self.topology() as topology:
            topology.wait_for_catchup(timeout=10)
        with self.on_scratch() as topology:
            return {node: list(connection.scalars(query)) for node, connection in topology.connections.items()}


@dataclass
class _Idle:
    """Connections to all nodes that wait for the next check."""

    is_kept: bool = False
    """True while a run goes on."""
    sets: list[tuple[ExitStack, dict[str, Connection]]] = field(default_factory=list)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep connections until the block ends."""
        self.is_kept = True
        try:
            yield
        finally:
            self.is_kept = False
            while self.sets:
                self.sets.pop()[0].close()


# No row where the server has no such role.
_SEES_STATE = "SELECT pg_has_role(oid, 'USAGE') FROM pg_roles WHERE rolname = 'pg_read_all_stats'"


class Check(ABC):
    """One check. The first line of a subclass's docstring is its title, the rest its hint."""

    requires: ClassVar[tuple[str, ...]] = ("EveryNodeAnswers",)
    """Names of earlier checks; if one of them failed, this check is skipped."""
    required_by: ClassVar[tuple[str, ...]] = ()
    """Names of later checks to skip if this one failed, where they cannot name it: not every project has it."""
    timeout: ClassVar[float] = 5.0
    """Seconds after which the check fails."""

    @abstractmethod
    def run(self, context: CheckContext) -> CheckResult:
        """Run the check, or return a SKIP if it would prove nothing on this cluster."""

    @classmethod
    def title(cls) -> str:
        """Return the sentence that is true if the check passes."""
        return (getdoc(cls) or cls.__name__).partition("\n")[0].removesuffix(".")

    @classmethod
    def hint(cls) -> str:
        """Return what to do if the check fails."""
        return " ".join((getdoc(cls) or "").partition("\n")[2].split())


@dataclass(frozen=True)
class Run:
    """A check that was run or skipped, with its result and its duration in seconds."""

    check: type[Check]
    result: CheckResult
    duration: float = 0.0


@dataclass(frozen=True)
class Report:
    """Results of all checks of one run."""

    runs: list[Run]
    seed: int
    started: datetime

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return all(run.result.status is not Status.FAIL for run in self.runs)


class NothingIsLeftBehind(Check):
    """Nothing is left behind.

    Drop the schemas whose names start with `_verify_`; the next `verify` or `migrate` does so.
    """

    timeout = 60.0

    def run(self, context: CheckContext) -> CheckResult:
        """Drop the scratch schema."""
        with context.topology() as topology:
            context.scratch.drop(topology)
        return passed("the scratch schema is dropped")


def verify(
    context: CheckContext,
    checks: Sequence[type[Check]],
    *,
    on_start: Callable[[type[Check]], None] = lambda check: None,
) -> Report:
    """Run `checks` in order, each after a call of `on_start`; skip those that require a failed one."""
    with context.alone():
        report = Report([], context.seed, datetime.now(UTC))
        # Checks that failed, or were skipped because another one did.
        bad: list[type[Check]] = []
        try:
            for check in checks:
                on_start(check)
                needs = [
                    one.title() for one in bad if one.__name__ in check.requires or check.__name__ in one.required_by
                ]
                report.runs.append(Run(check, skipped(f"needs: {'; '.join(needs)}")) if needs else _run(check, context))
                if needs or report.runs[-1].result.status is Status.FAIL:
                    bad.append(check)
        finally:
            # After an interrupt, too; unless no check has asked for the scratch schema.
            if "scratch" in vars(context):
                report.runs.append(_run(NothingIsLeftBehind, context))
        return report


def _run(check: type[Check], context: CheckContext) -> Run:
    """Run a check in a thread, and let it fail if it raises an error or takes longer than its timeout."""
    results: list[CheckResult] = []

    def run() -> None:
        try:
            results.append(check().run(context))
        except Exception as error:
            line = first_line(error) or type(error).__name__
            state = sqlstate_of(error) or sqlstate_of(error.__cause__ or error)
            # The driver has no SQLSTATE for a database that the role may not connect to.
            lacks = state == "42501" or (context.read_only and "permission denied for database" in line)
            if context.read_only and (lacks or refuses_writes(error) or state == "25006"):
                results.append(skipped(f"lacks a privilege: {line}" if lacks else "would write"))
                return
            if lacks:
                line += "; the admin nodes must be given for a role that may read the state of replication"
            results.append(failed(line))

    started = time.monotonic()
    # A hanging server can block its client for ever, despite all timeouts: then the thread, a daemon, is abandoned.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(check.timeout)
    result = results[0] if results else failed(f"no result within {check.timeout:.0f} s")
    return Run(check, result, time.monotonic() - started)
