"""The servers as the operations see them: unrelated to each other, and one of them holds the tables of models.py."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from typer import Typer

from ..db import Database
from ..db.twophase import PREFIX
from .base import BaseTopology, Step

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory


class Topology(BaseTopology):
    """Unrelated databases."""

    nodes_without_models = frozenset({"n2", "n3"})
    migrate_help = "Migrate the ledger to one revision, and every other database to its newest."
    unlogged_tables = "a crash of its server empties it, while the other databases keep their rows"
    refused = (
        (r"ALTER SYSTEM\b", "settings belong to one server"),
        (r"CREATE UNLOGGED |ALTER TABLE .*SET UNLOGGED\b", f"an UNLOGGED table: {unlogged_tables}"),
        (r"(CREATE|ALTER|DROP) (DATABASE|ROLE|USER|TABLESPACE)\b", "roles and databases belong to one server"),
    )

    def drop_schemas(self, *schemas: str) -> None:
        """Drop schemas on every node, and roll back the transactions named after them, which lock their tables."""
        for schema in schemas:
            for connection in self.connections.values():
                roll_back_prepared(connection, f"{PREFIX}{schema}")
        super().drop_schemas(*schemas)

    @staticmethod
    def migrate_other_databases(
        owner_urls: Mapping[str, URL], *, on_step: Callable[[Step], None], wait: float
    ) -> dict[str, str]:
        """Migrate the databases with a folder of their own in `migrations` to their newest revision."""
        from .histories import migrate

        return migrate(owner_urls, on_step=on_step, wait=wait)

    @staticmethod
    def versions_of_other_databases(
        owner_urls: Mapping[str, URL], *, project: Path
    ) -> dict[str, tuple["ScriptDirectory", str, str | None]]:
        """Return the history and the version of each database with a folder of its own in `migrations`."""
        from .histories import histories

        found = histories(owner_urls, project=project)
        return {history.database.name: (history.scripts, *history.find_version()) for history in found}

    @staticmethod
    @contextmanager
    def open_other_database(name: str) -> Iterator[Database]:
        """Open a database by its name."""
        from ..databases import open_databases

        with open_databases() as databases:
            yield databases.server(name)

    @staticmethod
    def database_of(table: str) -> str | None:
        """Return the database whose models declare a table; None: the ledger."""
        from ..databases import DATABASES

        others = (spec for number, spec in enumerate(DATABASES) if number)
        return next((spec.name for spec in others if table in spec.models.metadata.tables), None)

    @staticmethod
    def register_commands(app: Typer) -> None:
        """Add the commands for what happens between the databases."""
        from .commands import fdw, messages, reports, twophase
        from .copies import diff

        app.command()(diff)
        app.add_typer(fdw, name="fdw")
        app.add_typer(messages, name="messages")
        app.add_typer(reports, name="reports")
        app.add_typer(twophase, name="twophase")


def roll_back_prepared(connection: Connection, prefix: str) -> None:
    """Roll back the transactions prepared under names with this prefix by this role or one that it is a member of."""
    left = text(
        "SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts "
        "WHERE database = current_database() AND pg_has_role(owner, 'MEMBER') AND starts_with(gid, :prefix)"
    )
    for statement in connection.scalars(left, {"prefix": prefix}).all():
        with suppress(DBAPIError):
            connection.exec_driver_sql(statement.replace("%", "%%"))
