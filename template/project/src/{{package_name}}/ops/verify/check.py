"""What a check is: a question to the cluster, and a finding as its answer."""

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from inspect import getdoc
from pathlib import Path
from typing import ClassVar

from sqlalchemy.engine import URL

from ..cluster import Cluster
from .scratch import Scratch


class Status(StrEnum):
    """How a check ended. A SKIP is never a pass."""

    PASS = "PASS"  # noqa: S105
    WARN = "WARN"
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True)
class Finding:
    """The answer: one line that names the node and the cause, and the numbers behind it."""

    status: Status
    summary: str
    evidence: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """The cluster under question."""

    urls: Mapping[str, URL]
    """For the application's role."""
    admin_urls: Mapping[str, URL]
    """For the role that may look into replication."""
    project: Path
    """Where the migrations are."""
    seed: int
    """Of everything random, so that a run can be repeated."""
    cluster: Cluster | None = None
    """The local cluster that it is, for checks that take nodes away."""

    @property
    def owner(self) -> str:
        """The application's role, which owns what is created."""
        return next(iter(self.urls.values())).username or ""

    @cached_property
    def scratch(self) -> Scratch:
        """A schema of its own for what checks write; made on first use, dropped at the end."""
        return Scratch.create(self.urls, self.admin_urls, self.owner)

    @property
    def has_scratch(self) -> bool:
        """Whether a check has written anything."""
        return "scratch" in self.__dict__

    def random(self, *salt: object) -> random.Random:
        """A source of random numbers that depends on the seed and on who asks."""
        return random.Random(repr((self.seed, *salt)))  # noqa: S311


class Check(ABC):
    """The first line of the docstring is the title; what follows says what to do when it fails."""

    requires: ClassVar[tuple[str, ...]] = ()
    """Names of the checks without which this one means nothing."""
    limit: ClassVar[float] = 5.0
    """Seconds until the check counts as failed, whatever it is doing."""

    @abstractmethod
    def run(self, subject: Subject) -> Finding:
        """Put the question."""

    @classmethod
    def title(cls) -> str:
        """What holds if the check passes."""
        return (getdoc(cls) or cls.__name__).partition("\n")[0].removesuffix(".")

    @classmethod
    def hint(cls) -> str:
        """What to do when it does not."""
        return " ".join((getdoc(cls) or "").partition("\n")[2].split())
