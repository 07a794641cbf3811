"""Migrate the databases beside that of models.py, each from a folder of its own: `migrations/orders` and so on.

A revision is a file as Alembic writes it and runs in one transaction of its database, on PostgreSQL and on SQLite: a
revision that fails leaves nothing behind. Each database stores its own version.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ..databases import DATABASES
from ..db.databases import DatabaseSpec
from ..db.retry import first_line
from ..db.sqlite import SqliteDatabase
from ..settings import Settings
from .base import MigrationError, Step
from .connections import Unreachable, engine_for
from .migrate import applied, find_path, load_config, only, resolve, version_of
from .topology import Topology


@dataclass(frozen=True)
class History:
    """The revisions of one database."""

    database: DatabaseSpec
    scripts: ScriptDirectory
    url: URL | None
    """URL for the role that owns what is created; None if the database is a file."""
    file: Path
    """SQLite file, if the database is one."""

    @property
    def head(self) -> str:
        """The newest revision."""
        return resolve(self.scripts, "head")

    def version(self) -> str:
        """Return the revision the database is at, without creating a file."""
        if self.url is None and not self.file.exists():
            return "base"
        with self._connection() as connection:
            return version_of(connection) or "base"

    def find_version(self) -> tuple[str, str | None]:
        """Return the revision the database is at, or an empty text and the reason why that is unknown."""
        try:
            return self.version(), None
        except (Unreachable, DBAPIError) as error:
            return "", str(error) if isinstance(error, Unreachable) else first_line(error)

    def upgrade(self, on_step: Callable[[Step], None], *, wait: float = 0.0) -> None:
        """Migrate to the newest revision, one transaction per revision; wait up to `wait` seconds for another runner.

        Raises:
            MigrationError: a revision failed, and left nothing behind.
        """
        try:
            for script, _ in find_path(self.scripts, [self._applied()], "head", down=False):
                on_step(Step(script.revision, script.doc, self.database.name))
                self._run(script, wait=wait)
        except (CommandError, RevisionError, MigrationError) as error:
            raise MigrationError(f"{self.database.name}: {error}") from error
        except DBAPIError as error:
            raise MigrationError(f"{self.database.name}: the revision failed: {str(error.orig).strip()}") from error

    def go_to(self, revision: str) -> None:
        """Go to a revision, also to an older one, one transaction per revision."""
        for script, back in find_path(self.scripts, [self._applied()], revision, down=True):
            self._run(script, back=back)

    def _applied(self) -> set[str]:
        return applied(self.scripts, self.version())

    def _run(self, script: Script, *, back: bool = False, wait: float = 0.0) -> None:
        environment = EnvironmentContext(Config(), self.scripts, fn=only(self.scripts, script, back=back))
        with self._connection() as connection:
            # A file takes one writer at a time anyway.
            topology = Topology({self.database.name: connection})
            with topology.migration_lock(wait=wait) if self.url is not None else nullcontext(), environment:
                if self.url is not None:
                    connection.commit()
                    event.listen(connection, "before_cursor_execute", _refuse)
                environment.configure(connection=connection)
                with environment.begin_transaction():
                    environment.run_migrations()

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        if self.url is None:
            opened = SqliteDatabase(self.database.name, self.file)
            with opened, opened.engine_for().connect() as connection:
                yield connection
            return
        try:
            connection = engine_for(self.url, statement_timeout=60).connect()
        except DBAPIError as error:
            raise Unreachable(self.database.name, error) from None
        with connection:
            yield connection


def _refuse(_connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
    """Refuse a statement before it is sent."""
    if reason := Topology({}).refusal(statement, "schema"):
        raise MigrationError(f"refused: {shorten(statement, 80)}. Reason: {reason}")


def histories(owner_urls: Mapping[str, URL], *, folder: Path | None = None, project: Path = Path()) -> list[History]:
    """Return the histories of the databases that have a folder in `migrations`, in the order of databases.py.

    Args:
        owner_urls: the nodes, for the role that owns what is created.
        folder: folder of the SQLite files; None: that of the settings.
        project: a folder with an `alembic.ini` for this program; else the revisions are those of the package.

    Raises:
        MigrationError: the settings do not name the node of a database.
    """
    folder_of_all = Path(load_config(project).get_main_option("script_location") or "")
    found = []
    for database in DATABASES:
        revisions = folder_of_all / database.name
        if not revisions.is_dir():
            continue
        if database.node is not None and database.node not in owner_urls:
            raise MigrationError(f"{database.name} lives on {database.node}, and no URL of that node is known")
        scripts = ScriptDirectory(str(folder_of_all), version_locations=[str(revisions)])
        url = owner_urls[database.node] if database.node is not None else None
        file = (folder or Settings().sqlite_folder) / f"{database.name}.sqlite3"
        found.append(History(database, scripts, url, file))
    return found


def migrate(
    owner_urls: Mapping[str, URL],
    *,
    folder: Path | None = None,
    project: Path = Path(),
    on_step: Callable[[Step], None] = lambda step: None,
    wait: float = 0.0,
) -> dict[str, str]:
    """Migrate every database that has a history to its newest revision; return that revision by database.

    Args:
        owner_urls: the nodes, for the role that owns what is created.
        folder: folder of the SQLite files; None: that of the settings.
        project: a folder with an `alembic.ini` for this program; else the revisions are those of the package.
        on_step: called for each revision before it runs.
        wait: time in seconds to wait for another migration of a database to end.

    Raises:
        MigrationError: a revision failed and left nothing behind; other databases keep what they reached.
        Unreachable: a database cannot be reached; those before it are done.
    """
    done = {}
    for history in histories(owner_urls, folder=folder, project=project):
        try:
            history.upgrade(on_step, wait=wait)
        except DBAPIError as error:
            raise MigrationError(f"{history.database.name}: {first_line(error)}") from error
        done[history.database.name] = history.head
    return done
