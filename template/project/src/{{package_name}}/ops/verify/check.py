"""The base class of all checks, with the context that a check gets and the result that it returns."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, partial
from inspect import getdoc
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import Select
from sqlalchemy.engine import URL

from ..cluster import Cluster
from ..connections import connect_all
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


passed = partial(CheckResult, Status.PASS)
warned = partial(CheckResult, Status.WARN)
failed = partial(CheckResult, Status.FAIL)
skipped = partial(CheckResult, Status.SKIP)


def judge(problems: list[str], summary: str, evidence: Mapping[str, object], doubts: Sequence[str] = ()) -> CheckResult:
    """Return a FAIL with the problems if there are any, else a WARN with the doubts, else a PASS with the summary."""
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        return failed("; ".join(problems[:5]) + more, {**evidence, "problems": problems})
    return warned("; ".join(doubts), evidence) if doubts else passed(summary, evidence)


@dataclass(frozen=True)
class CheckContext:
    """The cluster to check, in one run."""

    urls: Mapping[str, URL]
    """URL of each node for the application's role."""
    admin_urls: Mapping[str, URL]
    """URL of each node for a role that may create schemas and read the state of replication."""
    seed: int
    """Seed of all random choices, to repeat a run."""
    project: Path = Path()
    """Folder that contains `migrations`."""
    cluster: Cluster | None = None
    """The local cluster, for checks that stop nodes; without it they are skipped."""

    @property
    def owner(self) -> str:
        """The application's role, which owns its tables."""
        return next(iter(self.urls.values())).username or ""

    @cached_property
    def scratch(self) -> Scratch:
        """The schema that checks write to; created on first use, dropped at the end."""
        with self.topology() as topology:
            return Scratch(topology, self.urls, self.owner)

    @contextmanager
    def topology(self, **options: Any) -> Iterator[Topology]:
        """Connect to every node, in autocommit, as the role of `admin_urls`, with SQLAlchemy's execution options."""
        with connect_all(self.admin_urls) as connections:
            for connection in connections.values():
                connection.execution_options(**options)
            yield Topology(connections)

    def read_everywhere(self, query: Select[Any]) -> dict[str, list[Any]]:
        """Return the first column of a query of scratch tables on every node, once all nodes have caught up."""
        with self.topology(**self.scratch.options) as topology:
            topology.wait_for_catchup()
            return {node: list(connection.scalars(query)) for node, connection in topology.connections.items()}

    def random(self, *salt: object) -> random.Random:
        """Return a source of random numbers that depends on the seed and on `salt`."""
        return random.Random(repr((self.seed, *salt)))  # noqa: S311


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
        """Run the check."""

    def skip_reason(self, context: CheckContext) -> str | None:
        """Return why the check would prove nothing on this cluster; None to run it."""
        return None

    @classmethod
    def is_needed_by(cls, other: "type[Check]") -> bool:
        """Return whether `other` is skipped if this check failed."""
        return cls.__name__ in other.requires or other.__name__ in cls.required_by

    @classmethod
    def title(cls) -> str:
        """Return the sentence that is true if the check passes."""
        return (getdoc(cls) or cls.__name__).partition("\n")[0].removesuffix(".")

    @classmethod
    def hint(cls) -> str:
        """Return what to do if the check fails."""
        return " ".join((getdoc(cls) or "").partition("\n")[2].split())
