"""The databases beside that of models.py have histories of their own: `migrations/orders`, `migrations/catalog` and so on.

A revision is a file as Alembic writes it, with `upgrade` and `downgrade`, and runs in one transaction of its database: on PostgreSQL and
on SQLite alike it happens as a whole or not at all. The version is kept where it is true, in the database itself.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ..db.databases import FileSettings, Place
from ..db.retry import first_line
from ..db.sqlite import SqliteDatabase
from ..places import PLACES
from .connections import Unreachable, engine_for
from .migrate import Step, load_config
from .statements import MigrationError, short, without_literals
from .topology import alone, refusal

FOLDER = "migrations"


@dataclass(frozen=True)
class History:
    """One database: where its revisions are, and how to get at it."""

    place: Place
    scripts: ScriptDirectory
    config: Config
    url: URL | None
    """For the role that may change the schema; None: a file."""
    folder: Path
    owner: str

    @property
    def head(self) -> str:
        """The newest revision."""
        return self.scripts.get_current_head() or "base"

    def version(self) -> str:
        """The revision the database is at; looking makes no file."""
        if self.url is None and not self._file.exists():
            return "base"
        with self._connection() as connection:
            return MigrationContext.configure(connection).get_current_revision() or "base"

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.place.name}.sqlite3"

    def upgrade(self, on_step: Callable[[Step], None]) -> None:
        """Go to the newest revision, one transaction for each.

        Raises:
            MigrationError: a revision failed, and left nothing behind.
        """
        while (version := self.version()) != self.head:
            try:
                following = next(
                    script
                    for script in reversed(list(self.scripts.iterate_revisions(self.head, version)))
                    if script.revision != version
                )
                on_step(Step(following.revision, following.doc, self.place.name))
                self._run(following.revision)
            except (CommandError, RevisionError, StopIteration) as error:
                raise MigrationError(f"{self.place.name}: {error}") from error
            except DBAPIError as error:
                raise MigrationError(f"{self.place.name}: the revision failed: {str(error.orig).strip()}") from error

    def go_to(self, revision: str) -> None:
        """Go to an older revision, the newest first, in one transaction."""
        if self.version() != revision:
            self._run(revision, back=True)

    def _run(self, revision: str, *, back: bool = False) -> None:
        with (
            self._connection() as connection,
            self._alone(connection),
            self._environment(revision, back=back) as environment,
        ):
            if self.url is not None:
                event.listen(connection, "before_cursor_execute", _refuse)
            environment.configure(connection=connection)
            with environment.begin_transaction():
                environment.run_migrations()

    @contextmanager
    def _alone(self, connection: Connection) -> Iterator[None]:
        if self.url is None:
            # Whoever writes to a file has it to themselves.
            yield
            return
        with alone(connection) as is_alone:
            connection.commit()
            if not is_alone:
                raise MigrationError(f"{self.place.name}: another migration is running; wait for it to end")
            yield

    def _environment(self, target: str, *, back: bool) -> EnvironmentContext:
        move = self.scripts._downgrade_revs if back else self.scripts._upgrade_revs
        return EnvironmentContext(self.config, self.scripts, fn=lambda version, _context: move(target, version))

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        if self.url is None:
            file = SqliteDatabase(self.place.name, self._file)
            with file, file.engine_for().connect() as connection:
                yield connection
            return
        engine = engine_for(self.url, statement_timeout=60)
        try:
            connection = engine.connect()
        except DBAPIError as error:
            raise Unreachable(self.place.name, error) from None
        with connection:
            if self.url.username != self.owner:
                connection.exec_driver_sql(f"SET ROLE {connection.dialect.identifier_preparer.quote(self.owner)}")
            connection.commit()
            yield connection


def _refuse(_connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
    """Refuse a statement before it is sent, while nothing has happened yet."""
    if reason := refusal(without_literals(statement)):
        raise MigrationError(f"refused: {short(statement)}. Reason: {reason}")


def histories(
    admin_urls: Mapping[str, URL], *, owner: str, folder: Path | None = None, project: Path = Path()
) -> list[History]:
    """The databases that have a folder of their own in `migrations`, in the order of places.py.

    Args:
        admin_urls: the nodes, for a role that may change the schema.
        owner: the role that is to own what is created.
        folder: of the SQLite files; that of the settings if absent.
        project: the folder of `alembic.ini`.

    Raises:
        MigrationError: this is no project's folder, or the settings do not say where a database is.
    """
    load_config(project)
    found = []
    for place in PLACES:
        revisions = project / FOLDER / place.name
        if not revisions.is_dir():
            continue
        if place.node is not None and place.node not in admin_urls:
            raise MigrationError(f"{place.name} lives on {place.node}, and no URL of that node is known")
        config = Config()
        config.set_main_option("script_location", str(project / FOLDER))
        scripts = ScriptDirectory(str(project / FOLDER), version_locations=[str(revisions)])
        url = admin_urls[place.node] if place.node is not None else None
        found.append(History(place, scripts, config, url, folder or FileSettings().sqlite_folder, owner))
    return found


def migrate(
    admin_urls: Mapping[str, URL],
    *,
    owner: str,
    folder: Path | None = None,
    project: Path = Path(),
    on_step: Callable[[Step], None] = lambda step: None,
) -> dict[str, str]:
    """Bring every database that has a history of its own to its newest revision; returns which that is, by name.

    The arguments are those of `histories`, and `on_step` is told of each revision before it runs.

    Raises:
        MigrationError: a revision failed and left nothing behind; what other databases reached, they keep.
        Unreachable: a database cannot be reached; those before it are done.
    """
    done = {}
    for history in histories(admin_urls, owner=owner, folder=folder, project=project):
        try:
            history.upgrade(on_step)
        except DBAPIError as error:
            raise MigrationError(f"{history.place.name}: {first_line(error)}") from error
        done[history.place.name] = history.head
    return done
