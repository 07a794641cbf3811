"""Ground of the rows: rendered projects, importable, with servers that are deleted at the end of the run."""

import contextlib
import functools
import gc
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL

from benchmarks.proxy import DelayProxy
from benchmarks.rows import Skip
from scaffold.questions import Questionnaire
from scaffold.render import render

ROOT = Path(__file__).parents[1]

ROUND_TRIP = 0.002
"""Round trip in seconds; about the distance of two availability zones. The goals name it."""


class Ground:
    """One run: its effort, and the projects that its rows ask for, each made on first use."""

    def __init__(self, *, quick: bool, debug: bool, console: Console, before: Path | None = None) -> None:
        self.quick = quick
        self.before = before
        """Checkout of an older build to compare with."""
        self.debug = debug
        self.console = console
        self._open = contextlib.ExitStack()
        self._projects: dict[str, Project] = {}

    def __enter__(self) -> Self:
        self._folder = Path(
            self._open.enter_context(
                tempfile.TemporaryDirectory(prefix="scaffold-bench-", ignore_cleanup_errors=True)
            )
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def effort(self, full: int, quick: int) -> int:
        """Return the number of repetitions, or rows, of this run."""
        return quick if self.quick else full

    def project(self, **answers: Any) -> "Project":
        """Return the project with these answers, rendered once per run."""
        return self._project("bench", ROOT, answers)

    def project_before(self, **answers: Any) -> "Project":
        """Return the same project as the older build renders it.

        Raises:
            Skip: no older build was named.
        """
        if self.before is None:
            raise Skip("no older build: name its checkout with --before")
        return self._project("before", self.before, answers)

    def _project(self, kind: str, root: Path, answers: Mapping[str, Any]) -> "Project":
        name = "_".join([kind, *(str(value) for _, value in sorted(answers.items()))])
        if name not in self._projects:
            self.console.log(f"rendering {name}")
            if "asyncio" in Questionnaire(root).askable:
                answers = {"asyncio": True, **answers}
            project = Project(self._folder / name, name, answers, self, root=root)
            self._projects[name] = self._open.enter_context(project)
        return self._projects[name]


class Project:
    """A rendered project and its clusters."""

    def __init__(
        self, path: Path, package: str, answers: Mapping[str, Any], ground: Ground, *, root: Path = ROOT
    ) -> None:
        self.path = path
        self.package = package
        self.ground = ground
        self._open = contextlib.ExitStack()
        render(root, path, {"project_name": package, **answers})
        sys.path.insert(0, str(self.source))

    @property
    def source(self) -> Path:
        """Folder that its package is imported from."""
        return self.path / "src"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        sys.path.remove(str(self.source))

    def module(self, name: str) -> Any:
        """Import a module of the project; typed Any, because no project exists when types are checked."""
        return importlib.import_module(f"{self.package}.{name}")

    @functools.cached_property
    def cluster(self) -> Any:
        """All nodes, linked and migrated."""
        return self.started("cluster")

    @functools.cached_property
    def alone(self) -> Any:
        """The first node by itself: no other node applies its changes, and no link reads its WAL."""
        cluster = self.started("alone")
        first, *others = cluster.urls()
        with administration(cluster.admin_urls()[first]) as execute:
            for (name,) in execute("SELECT subname FROM pg_subscription"):
                execute(f'ALTER SUBSCRIPTION "{name}" DISABLE')
        for node in others:
            cluster.stop_node(node)
        with administration(cluster.admin_urls()[first]) as execute:
            execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
        return cluster

    @property
    def url(self) -> URL:
        """URL of the node that is alone."""
        url: URL = next(iter(self.alone.urls().values()))
        return url

    @functools.cached_property
    def far_url(self) -> URL:
        """URL of the same node behind a network with a round trip of `ROUND_TRIP`."""
        return self.far(self.url)

    def far(self, url: URL) -> URL:
        """Return the URL of a node behind a network with a round trip of `ROUND_TRIP`."""
        proxy = self._open.enter_context(DelayProxy(url.port or 0, ROUND_TRIP))
        return url.set(port=proxy.port)

    def database(self, nodes: Mapping[str, URL], **settings: Any) -> Any:
        """Return the application's `Database` on these nodes, as its settings configure it."""
        return self.module("db").Database.from_settings(self.settings(nodes, **settings))

    def settings(self, nodes: Mapping[str, URL], **settings: Any) -> Any:
        """Return the application's `Settings` for these nodes."""
        urls = {name: url.render_as_string(hide_password=False) for name, url in nodes.items()}
        return self.module("settings").Settings(nodes=urls, admin_nodes=urls, **settings)

    def started(self, name: str, *, may_create: bool = True) -> Any:
        """Start a cluster of this name, linked and migrated.

        Args:
            name: name of the cluster.
            may_create: let the application's role create tables, as rows with tables of their own need it.
        """
        self.ground.console.log(f"starting {self.package}: {name}")
        cluster = self.module("ops.cluster.embedded").Embedded(self.path / ".cluster" / name)
        self._open.callback(cluster.destroy)
        cluster.up()
        self.module("ops.migrate").migrate(cluster.admin_urls(), **owner(cluster), project=self.path)
        for node, url in cluster.urls().items() if may_create else ():
            with administration(cluster.admin_urls()[node]) as execute:
                if not execute("SELECT pg_is_in_recovery()")[0][0]:
                    execute(f'GRANT CREATE ON SCHEMA public TO "{url.username}"')
        # An application has no objects of a migration; collecting them would stop it for 80 ms.
        gc.collect()
        gc.freeze()
        return cluster


def owner(cluster: Any) -> dict[str, Any]:
    """Return the argument that names the owner of the tables; an older build has one role for all."""
    if hasattr(cluster, "owner_urls"):
        return {"owner_urls": cluster.owner_urls()}
    return {"owner": next(iter(cluster.urls().values())).username}


@contextlib.contextmanager
def administration(url: URL) -> Iterator[Any]:
    """Connect in autocommit; yield a function that runs one statement and returns its rows."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield lambda sql: _rows(connection.execute(text(sql)))
    finally:
        engine.dispose()


def _rows(result: Any) -> list[Any]:
    return list(result) if result.returns_rows else []


def child_environment(*paths: Path) -> dict[str, str]:
    """Return the environment of a process that imports from `paths` first."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in paths)}
